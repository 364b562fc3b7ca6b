"""Encoders unrolled from an iterative sparse coder, tied to the dictionary that they code with.

A few steps of an accelerated ISTA (LISTA, with the weights that the dictionary gives) replace a
multilayer perceptron: the network codes with the very dictionary that decodes, and what is left
to learn is a handful of numbers for each atom.

References
----------
Gregor and LeCun (2010), Learning fast approximations of sparse coding.
Beck and Teboulle (2009), A fast iterative shrinkage-thresholding algorithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu, softplus

from ..solvers.lasso.fista import lipschitz_bound

# Features of each atom that `AtomHeads` reads.
_FEATURES = ("loc", "code", "size", "evidence", "log_scale", "one")


class UnrolledCoder(nn.Module):
    """A fixed number of steps of accelerated ISTA, started from zero, on atoms of unit norm.

    The steps go towards the lasso codes of each row; thresholds and step are learned. The step is
    never longer than the inverse of the largest eigenvalue of the atoms' inner products, so the
    iteration cannot diverge, whatever the dictionary.

    Parameters
    ----------
    n_components : int
        Number of atoms K.
    n_unrolled : int
        Number of steps T.
    thresholds : tuple of two floats
        Positive values that the thresholds of the first and the last step start from, geometric
        in between. Equal ones lead to the lasso codes with this penalty; falling ones find the
        large codes first and then take back most of the shrinkage.
    step : float
        What the step starts from, in (0, 1): a share of the longest safe one.
    correction : bool
        Whether a learned linear function of the codes, which starts at zero, is added to the
        final correlations.
    """

    def __init__(
        self,
        n_components: int,
        n_unrolled: int = 8,
        *,
        thresholds: tuple[float, float] = (1.0, 1.0),
        step: float = 0.98,
        correction: bool = False,
    ) -> None:
        super().__init__()
        self.n_unrolled = n_unrolled
        first, last = map(math.log10, thresholds)
        # Backwards, so that a single step is the last one.
        start = torch.logspace(last, first, n_unrolled).flip(0)
        start = start + torch.log(-torch.expm1(-start))  # the inverse of softplus
        self.raw_thresholds = nn.Parameter(start[:, None].repeat(1, n_components))
        self.raw_step = nn.Parameter(torch.tensor(math.log(step / (1 - step))))
        self.correction = (
            nn.Parameter(torch.zeros(n_components, n_components)) if correction else None
        )

    @property
    def thresholds(self) -> Tensor:
        """Penalty of each atom's code at each step, (T, K)."""
        return softplus(self.raw_thresholds)

    def forward(
        self,
        x: Tensor,
        dictionary: Tensor,
        mask: Tensor | None = None,
        unit: Tensor | float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return codes of the unit atoms, and their correlations with the residual.

        Parameters
        ----------
        x : Tensor of shape (n, D)
            Rows.
        dictionary : Tensor of shape (K, D)
            Atoms of any norm.
        mask : bool Tensor of shape (n, D) or None
            Entries that are observed; residuals count there alone.
        unit : Tensor or float
            Unit of the thresholds.

        Returns
        -------
        code, correlation : Tensor of shape (n, K)
            For unit atoms ``correlation + code`` is the correlation with the residual that
            leaves the atom itself out.
        """
        atoms = unit_atoms(dictionary)
        residual = _Residual(x, atoms, mask)
        step = torch.sigmoid(self.raw_step) * _longest_step(atoms)
        first, *others = (step * unit * self.thresholds).unbind()
        code = ahead = _shrink(step * residual.start, first)
        time = _next_time(1.0)
        for threshold in others:
            moved = ahead + step * residual.correlation(ahead)
            before, code = code, _shrink(moved, threshold)
            time, last_time = _next_time(time), time
            ahead = code + (last_time - 1) / time * (code - before)
        correlation = residual.correlation(code)
        if self.correction is not None:
            correlation = correlation + code @ self.correction
        return code, correlation


def _shrink(value: Tensor, threshold: Tensor) -> Tensor:
    """Soft thresholding, each atom with its own threshold."""
    return relu(value - threshold) - relu(-value - threshold)


def _next_time(time: float) -> float:
    """Sequence whose ratios are FISTA's momentum."""
    return 0.5 * (1 + math.sqrt(1 + 4 * time * time))


class _Residual:
    """Correlations of unit atoms with the residual of a code, in their cheaper form."""

    def __init__(self, x: Tensor, atoms: Tensor, mask: Tensor | None) -> None:
        n_components, n_features = atoms.shape
        self.x = x if mask is None else torch.where(mask, x, 0)
        self.atoms, self.mask = atoms, mask
        self.start = self.x @ atoms.T
        use_gram = mask is None and n_components < 2 * n_features
        self.gram = atoms @ atoms.T if use_gram else None

    def correlation(self, code: Tensor) -> Tensor:
        if self.gram is not None:
            return self.start - code @ self.gram
        residual = self.x - code @ self.atoms
        return (residual if self.mask is None else self.mask * residual) @ self.atoms.T


def unit_atoms(dictionary: Tensor) -> Tensor:
    """Return atoms of norm one; atoms of zeros stay as they are."""
    return normalize(dictionary, dim=1, eps=1e-12)


@torch.no_grad()
def _longest_step(atoms: Tensor) -> Tensor:
    """Inverse of a bound on the largest eigenvalue, as a number that no gradient passes."""
    bound = lipschitz_bound(atoms)
    # Atoms of zeros have nothing to step on.
    return torch.where(bound > 0, 1 / bound, 1)


class TiedEncoder(nn.Module):
    """Features of each atom for the posterior of its code, from an unrolled coder.

    With r the correlation of the unit atom and the residual that leaves it out, w the atom's
    norm and v the variance of a code that is on, the posterior of one code under a Gaussian
    slab has location ``w r / (w^2 + noise / v)``. That, the log of its scale against the
    prior's, and the log of the Bayes factor for the code being on are what `AtomHeads` starts
    from; everything is in units of noise or prior, which training moves.

    Parameters
    ----------
    coder : UnrolledCoder
        With thresholds in units of the noise's standard deviation.
    prior_scale : float
        Unit of the posterior's location.
    slab_variance : float
        Variance of a code that is on.
    """

    def __init__(self, coder: UnrolledCoder, prior_scale: float, slab_variance: float) -> None:
        super().__init__()
        self.coder = coder
        self.prior_scale = prior_scale
        self.slab_variance = slab_variance

    def forward(
        self, x: Tensor, dictionary: Tensor, noise_variance: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return features (n, 6, K) of rows less the intercept, of their entries in ``mask``."""
        code, correlation = self.coder(x, dictionary, mask, unit=noise_variance.sqrt())
        norm = dictionary.norm(dim=1)
        ridge = noise_variance / self.slab_variance
        if mask is None:
            alone, precision = code + correlation, norm.square() + ridge
        else:
            # Of a unit atom a row sees a part; the atom by itself is that part.
            seen = mask.to(x) @ unit_atoms(dictionary).square().T
            alone, precision = seen * code + correlation, seen * norm.square() + ridge
        gain = norm / precision / self.prior_scale
        size = alone.abs() * norm / precision.sqrt() / noise_variance.sqrt()
        log_scale = 0.5 * torch.log(ridge / precision).expand_as(code)
        features = {
            "loc": gain * alone,
            "code": gain * code,
            "size": size,
            "evidence": 0.5 * size.square(),
            "log_scale": log_scale,
            "one": torch.ones_like(code),
        }
        return torch.stack([features[name] for name in _FEATURES], dim=1)


class AtomHeads(nn.Module):
    """Map each atom's own features to the parameters of its code's posterior.

    Parameters
    ----------
    n_components : int
        Number of atoms.
    gate_heads : sequence of float
        For each head, how much it moves with the log-odds of the code being on.
    """

    def __init__(self, n_components: int, gate_heads: tuple[float, ...]) -> None:
        super().__init__()
        start = torch.zeros(len(gate_heads), len(_FEATURES), n_components)
        start[0, _FEATURES.index("loc")] = 1.0
        start[1, _FEATURES.index("log_scale")] = 1.0
        for head, weight in enumerate(gate_heads):
            start[head, _FEATURES.index("evidence")] += weight
            start[head, _FEATURES.index("log_scale")] += weight
        self.weight = nn.Parameter(start)

    def forward(self, features: Tensor) -> Tensor:
        """Return the heads of each row, (n, n_heads, n_components)."""
        # Five times as fast as einsum, which turns this into many tiny matrix products.
        return (features.unsqueeze(1) * self.weight).sum(2)
