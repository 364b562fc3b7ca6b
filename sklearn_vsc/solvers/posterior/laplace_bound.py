"""Lower bound on log p(x) from lasso codes.

The model is z_k ~ Laplace(0, b), x given z ~ N(z V, s2 I), with alpha = s2 / b, so that the
lasso code u at alpha is its posterior mode. The posterior is approximated by independent
Laplace distributions centred on u, whose scales c maximise the bound. In units of b, with
rho = c / b, m = ``|u| / b`` and kappa = b^2 v'v / s2 (v the atom), a coordinate costs

    kappa rho^2 - log rho + m + rho exp(-m / rho) - 1,

where the last four terms are the Kullback-Leibler divergence from the prior. Where entries of x
are missing, the likelihood covers only the observed entries, and v'v sums over them alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_MAX_NEWTON_STEPS = 100


@dataclass(frozen=True)
class LaplaceModel:
    """The generative model whose posterior mode is the lasso code at ``alpha``.

    Attributes
    ----------
    alpha : float
        Weight of the l1 norm; positive.
    noise_variance : float
        Variance s2 of the observation noise.
    """

    alpha: float
    noise_variance: float

    @property
    def prior_scale(self) -> float:
        """Scale b of the Laplace prior of each code."""
        return self.noise_variance / self.alpha


def relative_scales(magnitude: Tensor, curvature: Tensor) -> Tensor:
    """Return the posterior scales that maximise the bound, in units of the prior scale.

    Parameters
    ----------
    magnitude : Tensor
        m = ``|u| / b`` of each coordinate.
    curvature : Tensor
        kappa = b^2 v'v / s2 of each coordinate; non-negative, and broadcastable with
        ``magnitude``.

    Returns
    -------
    rho : Tensor
        The root of 2 kappa rho^2 + (rho + m) exp(-m / rho) = 1.
    """
    magnitude, curvature = torch.broadcast_tensors(magnitude, curvature)
    # The left side increases in rho and decreases in m: the root lies between the roots for m = 0
    # and for infinite m.
    low = 2 / (1 + (1 + 8 * curvature).sqrt())
    high = (2 * curvature).rsqrt()
    # Started from the nearer end, Newton steps rarely leave the bracket.
    rho = torch.where(magnitude > high, high, low)
    for _ in range(_MAX_NEWTON_STEPS):
        decay = torch.exp(-magnitude / rho)
        excess = 2 * curvature * rho.square() + (rho + magnitude) * decay - 1
        low = torch.where(excess < 0, rho, low)
        high = torch.where(excess > 0, rho, high)
        slope = 4 * curvature * rho + decay * (1 + (rho + magnitude) * magnitude / rho.square())
        new = rho - excess / slope
        # Take the Newton step if it stays inside the bracket, otherwise bisect.
        new = torch.where((new >= low) & (new <= high), new, (low * high).sqrt())
        new = torch.where(excess == 0, rho, new)
        settled = (new - rho).abs() <= 4 * torch.finfo(rho.dtype).eps * rho
        rho = new
        if settled.all():
            break
    return rho


def coordinate_cost(magnitude: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimum cost of each coordinate and the relative scale that attains it."""
    rho = relative_scales(magnitude, curvature)
    divergence = -rho.log() + magnitude + rho * torch.exp(-magnitude / rho) - 1
    return curvature * rho.square() + divergence, rho


def atom_energies(dictionary: Tensor, observed: Tensor | None = None) -> Tensor:
    """Return ||v||^2 of each atom, summed over the observed features of each row if given.

    Parameters
    ----------
    dictionary : Tensor of shape (n_components, n_features)
        Atoms.
    observed : Tensor of shape (n_rows, n_features), bool, optional
        Mask of the observed entries; by default all.

    Returns
    -------
    energies : Tensor of shape (n_components,) or (n_rows, n_components)
    """
    energies = dictionary.square()
    return energies.sum(1) if observed is None else observed.to(energies) @ energies.T


def posterior_scales(
    codes: Tensor, dictionary: Tensor, model: LaplaceModel, observed: Tensor | None = None
) -> Tensor:
    """Return the scale of the Laplace posterior of each code.

    Parameters
    ----------
    codes : Tensor of shape (n_rows, n_components)
        Lasso codes, on which the posterior is centred.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms.
    model : LaplaceModel
        Generative model.
    observed : Tensor of shape (n_rows, n_features), bool, optional
        Mask of the observed entries; by default all.

    Returns
    -------
    scales : Tensor of shape (n_rows, n_components)
        Scales c, in units of the codes.
    """
    rho = _by_coordinate(codes, dictionary, model, observed)[1]
    return rho * model.prior_scale


def lower_bounds(
    codes: Tensor,
    residual_energy: Tensor,
    dictionary: Tensor,
    model: LaplaceModel,
    observed: Tensor | None = None,
) -> Tensor:
    """Return the lower bound on log p(x) of each row, in nats.

    Parameters
    ----------
    codes : Tensor of shape (n_rows, n_components)
        Lasso codes, on which the posterior is centred; any other codes give a valid bound too.
    residual_energy : Tensor of shape (n_rows,)
        ||x - u V||^2 of each row, over the observed entries.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms.
    model : LaplaceModel
        Generative model.
    observed : Tensor of shape (n_rows, n_features), bool, optional
        Mask of the observed entries; by default all.

    Returns
    -------
    bounds : Tensor of shape (n_rows,)
    """
    cost = _by_coordinate(codes, dictionary, model, observed)[0].sum(1)
    s2 = model.noise_variance
    n_observed = dictionary.shape[1] if observed is None else observed.sum(1)
    normaliser = 0.5 * n_observed * math.log(2 * math.pi * s2)
    return -normaliser - residual_energy / (2 * s2) - cost


def _by_coordinate(
    codes: Tensor, dictionary: Tensor, model: LaplaceModel, observed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return cost and relative scale of each code, computed only once for zero codes of an atom."""
    curvature = _curvature(atom_energies(dictionary, observed), model)
    cost, rho = (
        values.expand(codes.shape).clone()
        for values in coordinate_cost(torch.zeros_like(curvature), curvature)
    )
    on = codes != 0
    magnitude = codes[on].abs() / model.prior_scale
    cost[on], rho[on] = coordinate_cost(magnitude, curvature.expand(codes.shape)[on])
    return cost, rho


def _curvature(energies: Tensor, model: LaplaceModel) -> Tensor:
    """Return kappa = b^2 ||v||^2 / s2 of each atom, without squaring a small scale."""
    ratio = math.sqrt(model.noise_variance) / model.alpha
    return (energies.sqrt() * ratio).square()


@dataclass(frozen=True)
class CodeStatistics:
    """Statistics that determine the mean bound of some rows, given the model.

    Attributes
    ----------
    residual_energy : float
        Mean of ||x - u V||^2 over the rows.
    magnitudes : Tensor of shape (n_nonzero,)
        Absolute values of the non-zero codes.
    energies : Tensor of shape (n_nonzero,)
        ||v||^2 of their atoms.
    n_zero : int
        Number of zero codes whose atoms have unit norm.
    zero_energies : Tensor of shape (n_other_zero,)
        ||v||^2 of the atoms of the other zero codes.
    n_rows : int
        Number of rows.
    n_features : float
        Mean number of observed features per row.
    """

    residual_energy: float
    magnitudes: Tensor
    energies: Tensor
    n_zero: int
    zero_energies: Tensor
    n_rows: int
    n_features: float

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        residual_energy: Tensor,
        n_features: float,
        energies: Tensor | None = None,
    ) -> Self:
        """Compute the statistics; atoms have unit norm unless ``energies`` gives one per code."""
        on = codes != 0
        magnitudes = codes[on].abs()
        if energies is None:
            n_zero, zero_energies = codes.numel() - magnitudes.numel(), codes.new_empty(0)
            on_energies = torch.ones_like(magnitudes)
        else:
            n_zero, on_energies, zero_energies = 0, energies[on], energies[~on]
        return cls(
            float(residual_energy.mean()),
            magnitudes,
            on_energies,
            n_zero,
            zero_energies,
            len(codes),
            n_features,
        )

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Combine the statistics of blocks of rows."""
        n_rows = sum(part.n_rows for part in parts)
        return cls(
            sum(part.residual_energy * part.n_rows for part in parts) / n_rows,
            torch.cat([part.magnitudes for part in parts]),
            torch.cat([part.energies for part in parts]),
            sum(part.n_zero for part in parts),
            torch.cat([part.zero_energies for part in parts]),
            n_rows,
            sum(part.n_features * part.n_rows for part in parts) / n_rows,
        )

    def noise_variance_update(self, model: LaplaceModel) -> float:
        """Return the best noise variance, given the posterior scales of the current model.

        The prior scale b = s2 / alpha changes with it. A fixed point maximises the mean bound,
        since the posterior scales are optimal for the current noise variance.
        """
        curvature = torch.tensor(model.noise_variance / model.alpha**2, dtype=torch.float64)
        b = model.prior_scale
        none = torch.zeros_like(curvature)
        zero = b * relative_scales(none, curvature)
        zeros = b * relative_scales(none, curvature * self.zero_energies)
        scales = b * relative_scales(self.magnitudes / b, curvature * self.energies)
        spread = float((self.energies * scales.square()).sum()) + self.n_zero * float(zero) ** 2
        spread += float((self.zero_energies * zeros.square()).sum())
        # E|z| under the posterior.
        size = float((self.magnitudes + scales * torch.exp(-self.magnitudes / scales)).sum())
        size += self.n_zero * float(zero) + float(zeros.sum())
        n_codes = (len(self.magnitudes) + self.n_zero + len(self.zero_energies)) / self.n_rows
        energy = 0.5 * self.residual_energy + (spread + model.alpha * size) / self.n_rows
        return energy / (0.5 * self.n_features + n_codes)
