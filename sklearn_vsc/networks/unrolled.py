"""Encoders unrolled from an iterative sparse coder and tied to the decoder's dictionary.

A few steps of accelerated ISTA (LISTA, with weights given by the dictionary) replace a multilayer
perceptron: the network encodes with the same dictionary that decodes, so that only a few numbers
per atom remain to be learned.

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

# Features of each atom, which `AtomHeads` reads.
_FEATURES = ("loc", "code", "size", "evidence", "log_scale", "one")


class UnrolledCoder(nn.Module):
    """A fixed number of steps of accelerated ISTA from zero, with atoms scaled to unit norm.

    The steps approach the lasso codes of each row; thresholds and step size are learned. The step
    size never exceeds the inverse of the largest eigenvalue of the atoms' Gram matrix, so the
    iteration cannot diverge, whatever the dictionary.

    Parameters
    ----------
    n_components : int
        Number of atoms K.
    n_unrolled : int
        Number of steps T.
    thresholds : tuple of two floats
        Positive initial thresholds of the first and the last step, with geometric interpolation
        in between. Equal thresholds lead to the lasso codes with this penalty; decreasing ones
        find the large codes first and then undo most of the shrinkage.
    step : float
        Initial step size, in (0, 1), as a share of the largest safe step.
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
        # Generated backwards, so that a single step gets the last threshold.
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
            Observed entries; the residual counts only there.
        unit : Tensor or float
            Unit of the thresholds.

        Returns
        -------
        code, correlation : Tensor of shape (n, K)
            For unit atoms, ``correlation + code`` is the correlation with the residual without
            the atom's own contribution.
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
    """Apply soft thresholding with a separate threshold for each atom."""
    return relu(value - threshold) - relu(-value - threshold)


def _next_time(time: float) -> float:
    """Return the next element of the sequence that determines FISTA's momentum."""
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
    """Return the atoms scaled to unit norm; zero atoms stay zero."""
    return normalize(dictionary, dim=1, eps=1e-12)


@torch.no_grad()
def _longest_step(atoms: Tensor) -> Tensor:
    """Return the inverse of a bound on the largest eigenvalue, without gradient."""
    bound = lipschitz_bound(atoms)
    # With an all-zero dictionary any step will do.
    return torch.where(bound > 0, 1 / bound, 1)


class TiedEncoder(nn.Module):
    """Features of each atom for the posterior of its code, computed by an unrolled coder.

    Let r be the correlation of the unit atom with the residual without its own contribution, w the
    norm of the atom and v the variance of a code that is on. Under a Gaussian slab, the posterior
    of a single code then has location ``w r / (w^2 + noise / v)``. `AtomHeads` starts from this
    location, the log of the posterior scale relative to the prior scale, and the log Bayes factor
    for the code being on. All features are in units of the noise or the prior, so they adapt as
    these change in training.

    Parameters
    ----------
    coder : UnrolledCoder
        Unrolled coder, whose thresholds are in units of the noise's standard deviation.
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
        """Return features (n, 6, K) of rows minus the intercept, from the entries in ``mask``."""
        code, correlation = self.coder(x, dictionary, mask, unit=noise_variance.sqrt())
        norm = dictionary.norm(dim=1)
        ridge = noise_variance / self.slab_variance
        if mask is None:
            alone, precision = code + correlation, norm.square() + ridge
        else:
            # Only part of each unit atom is observed in a row; it counts with that energy.
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
    """Map the features of each atom to the parameters of its code's posterior.

    Parameters
    ----------
    n_components : int
        Number of atoms.
    gate_heads : sequence of float
        For each head, its initial weight on the log-odds of the code being on.
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
        # Five times faster than einsum, which turns this into many tiny matrix products.
        return (features.unsqueeze(1) * self.weight).sum(2)
