"""From a description to a sparse linear model that learns by closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..latents import LatentFamily, SpikeSlab, Thresholded
from ..likelihoods import GaussianLikelihood
from ..solvers.linear_model.first_atoms import lasso_atoms
from ..solvers.linear_model.learner import FIRST_DENSITY, atoms_for
from ..solvers.linear_model.maximisation import WhatIsLearned
from ..solvers.linear_model.parameters import LEAST_DENSITY, Slab, SparseLinear
from .description import ModelDescription, Start
from .objectives import Objective
from .sparse_linear import SparseLinearModel

# Share of the variance of the rows that codes of the prior start with.
_INITIAL_POWER = 0.5
# With this number of rows for each atom, a lasso finds the first atoms.
_ROWS_OF_LASSO = 4
# Noise on the first atoms, of unit norm or in the unit of the rows.
_LITTLE, _SOME = 1e-3, 0.1
# Degrees of freedom that learning them starts from.
_INITIAL_FREEDOM = 10.0
# A noise variance is at least this share of the variance of its feature, or of all features.
_LEAST_NOISE = 1e-6
# Less variance than this, in units of the model, is rounding error.
_LEAST_VARIANCE = 1e-6
# Share of the variance that the first dense columns take.
_DENSE_SHARE = 0.3
# Rounding error of a number of size one.
_ROUNDING = 2.0**-23


@dataclass(frozen=True)
class SparseLinearDescription(ModelDescription):
    """A sparse linear model with Gaussian noise, learned without a network.

    Attributes
    ----------
    make_family : callable
        Returns the prior as declared.
    check_family : callable
        Raises the errors of a prior that cannot be learned.
    check_choices : callable
        Raises the errors of parameters that do not go together.
    noise : {'shared', 'per_feature'}, float or ndarray
        Noise variance: learned, or given in squared units of X.
    density : float, {'learned', 'per_component'} or None
        Prior density of the codes; None: that of the declared prior.
    n_dense : int
        Dense columns beside the codes.
    row_scale : {'noise', 'row'} or None
        What each row has a scale of its own of.
    positive : bool
        Whether codes are never negative.
    """

    make_family: Callable[[], LatentFamily] = field(kw_only=True)
    check_family: Callable[[LatentFamily], None] = field(kw_only=True)
    check_choices: Callable[[], None] = field(kw_only=True)
    noise: str | float | NDArray = field(kw_only=True)
    density: str | float | None = field(kw_only=True)
    n_dense: int = field(kw_only=True)
    row_scale: str | None = field(kw_only=True)
    positive: bool = field(kw_only=True)

    # A share of the whole rise of the bound.
    default_tol: ClassVar[float] = 5e-3

    def check(self) -> None:
        """Check what the constraints of single parameters cannot say."""
        super().check()
        self.check_choices()

    @property
    def objective(self) -> Objective:
        """The bound that training maximises, in closed form."""
        return Objective("exact")

    @property
    def obstacle_to_collapsing(self) -> str | None:
        """Name the parameter that keeps slabs from being integrated out, if there is one."""
        if self.slab.name != "gaussian":
            return f"slab={self.slab.name!r}"
        if self.positive:
            return "positive_code=True"
        if self.n_dense:
            return f"n_dense={self.n_dense!r}"
        return f"row_scale={self.row_scale!r}" if self.row_scale else None

    @cached_property
    def family(self) -> LatentFamily:
        """The prior as declared."""
        return self.make_family()

    @cached_property
    def slab(self) -> Slab:
        """Distribution of a code that is not zero."""
        slab = slab_of(self.family, self.positive)
        assert slab is not None
        return slab

    def build(self, start: Start, generator: torch.Generator) -> SparseLinearModel:  # type: ignore[override]
        """Return the model at its start: atoms from rows, and noise that explains them.

        Parameters
        ----------
        start : Start
            A sample of the training rows, and the units of the model.
        generator : torch.Generator
            Decides the first atoms.
        """
        self.check_family(self.family)
        if self.n_dense > start.n_features:
            raise ValueError(
                f"n_dense={self.n_dense} is more than the number of features of X, "
                f"{start.n_features}: with as many dense columns, every covariance is possible."
            )
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        rows = np.ascontiguousarray(start.rows.double().numpy())
        filled = np.nan_to_num(rows - np.nanmean(rows, axis=0))
        variance = np.mean(filled**2, axis=0)
        # In units of the model it is one, unless all rows are equal.
        overall = float(variance.mean())
        overall = overall if overall > _LEAST_VARIANCE else 1.0
        unit, given = start.units.scale, None
        if not isinstance(self.noise, str):
            _check_length(self.noise, variance)
            given = np.broadcast_to(np.asarray(self.noise, float), variance.shape) / unit**2
            _check_proportion(given, overall, self.noise)
        shared = self.noise == "shared" if isinstance(self.noise, str) else np.ndim(self.noise) == 0
        offset = np.abs(start.units.offset.astype(float)) / unit
        rounding = _ROUNDING * (offset + np.nanmax(np.abs(rows), axis=0))
        scale = np.full_like(variance, math.sqrt(overall))
        if not shared:
            varies = variance > (4 * rounding) ** 2
            scale = np.sqrt(np.where(varies, variance, _LEAST_NOISE * overall))
        floor = noise_floor(rows, variance, overall, rounding)
        if shared:
            floor = np.full_like(floor, max(_LEAST_NOISE * overall, float(floor.mean())))
        n_components = self.n_codes(rows.shape[1])
        density = self._start_density(n_components)
        noise = np.maximum(scale**2, floor) if given is None else given.copy()
        atoms = np.zeros((n_components, rows.shape[1]))
        few = n_components
        if isinstance(self.density, str):
            # The others wait until there are more rows.
            few = atoms_for(len(rows), n_components)
            density[few:] = LEAST_DENSITY
        atoms[:few] = _first_atoms(filled / scale, few, density[:few], self.slab, rng) * scale
        model = SparseLinear(
            atoms,
            np.zeros(rows.shape[1]),
            noise,
            _first_dense(filled / scale, self.n_dense, rng) * scale,
            density,
            self.slab,
            _INITIAL_FREEDOM if self.row_scale == "noise" else math.inf,
        )
        learned = self._learned(given is not None, scale, floor)
        likelihood = GaussianLikelihood(1.0 if given is None else given[0], learned=given is None)
        return SparseLinearModel(
            model, learned, likelihood, self.family, self.row_scale, self.refine_tol,
            shared_noise=shared,
        )  # fmt: skip

    def _start_density(self, n_components: int) -> NDArray:
        density = self.density
        if density is None:
            density = self.family.prior_inclusion
        return np.full(n_components, FIRST_DENSITY if isinstance(density, str) else density)

    def _learned(self, fixed_noise: bool, scale: NDArray, floor: NDArray) -> WhatIsLearned:
        noise = "fixed" if fixed_noise else str(self.noise)
        words = {"learned": "shared", "per_component": "per_component"}
        if isinstance(self.density, str):
            return WhatIsLearned(noise, words[self.density], 1.0, scale, floor)
        target = float(self._start_density(1)[0])
        return WhatIsLearned(noise, "fixed" if fixed_noise else "target", target, scale, floor)


def slab_of(family: LatentFamily, positive: bool) -> Slab | None:
    """Return the slab of a prior that is a spike and slab; None where it is not one."""
    # Neither case asks for the threshold or the density, which cost a search for a root.
    if isinstance(family, Thresholded):
        if family.gamma_shape is None and family.has_threshold:
            name = "laplace" if family.base == "laplace" else "thresholded"
            return Slab(name, family.prior_scale, positive)
        return Slab("laplace", family.prior_scale, positive) if family.has_free_gates else None
    gated = family.as_gated()
    if gated is None or not isinstance(gated, SpikeSlab):
        return None
    return Slab(gated.slab_name, gated.prior_scale, positive)


def noise_floor(rows: NDArray, variance: NDArray, overall: float, rounding: NDArray) -> NDArray:
    """Return the least noise variance of each feature, in units of the model.

    A number that is known to a resolution of h has noise of at least h^2 / 12. The resolution of a
    feature is the smallest difference of two of its values; that of a constant one is the smallest
    of all features. Besides, no noise is smaller than rounding error.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_features)
        A sample of rows in units of the model; NaN is a missing entry.
    variance : ndarray of shape (n_features,)
        Variances of the features.
    overall : float
        Their mean.
    rounding : ndarray of shape (n_features,)
        Size of rounding errors.
    """
    gaps = np.full(rows.shape[1], np.inf)
    for feature, column in enumerate(rows.T):
        steps = np.diff(np.unique(column[~np.isnan(column)]))
        steps = steps[steps > 4 * rounding[feature]]
        if steps.size:
            gaps[feature] = steps.min()
    gaps = np.where(np.isinf(gaps), gaps.min(), gaps)
    gaps = np.where(np.isinf(gaps), 0.0, gaps)
    least = _LEAST_NOISE * np.where(variance > (4 * rounding) ** 2, variance, overall)
    return np.maximum(np.maximum(gaps**2 / 12, rounding**2), least)


def _check_length(noise: float | NDArray, variance: NDArray) -> None:
    if np.ndim(noise) and np.shape(noise) != variance.shape:
        raise ValueError(
            "The 'noise_variance' parameter must hold one number for each of the "
            f"{len(variance)} features of X; got {np.size(noise)}."
        )


def _check_proportion(given: NDArray, overall: float, asked: float | NDArray | str) -> None:
    if not (np.isfinite(given).all() and (given > 1e-10 * overall).all()):
        raise ValueError(
            f"noise_variance={asked!r} is out of proportion to X: each value must be at least "
            "1e-10 times the variance of X; use noise_variance='per_feature' to learn it."
        )


def _first_atoms(
    rows: NDArray, n_components: int, density: NDArray, slab: Slab, rng: np.random.Generator
) -> NDArray:
    """Return atoms for rows that have features of one size.

    The lasso learns them where there are several rows for each atom. Elsewhere atoms are random
    rows, with noise, so that equal rows and rows of zeros give different atoms.
    """
    n_features = rows.shape[1]
    if len(rows) >= _ROWS_OF_LASSO * n_components:
        atoms = lasso_atoms(rows, n_components, rng, positive=slab.positive)
        noise = _LITTLE
    else:
        atoms = rows[rng.permutation(len(rows))[:n_components]]
        missing = n_components - len(atoms)
        atoms = np.concatenate([atoms, rng.standard_normal((missing, n_features))])
        noise = _SOME * (math.sqrt(float(np.mean(rows**2))) or 1.0)
    atoms = atoms + noise * rng.standard_normal(atoms.shape)
    power = _INITIAL_POWER * n_features / n_components / (density * slab.mean_square(density))
    return atoms * np.sqrt(power / np.sum(atoms**2, axis=1))[:, None]


def _first_dense(rows: NDArray, n_dense: int, rng: np.random.Generator) -> NDArray:
    """Return a share of the first principal components of rows."""
    dense = np.zeros((n_dense, rows.shape[1]))
    if n_dense:
        few = rows[rng.permutation(len(rows))[: 20 * n_dense + 1000]]
        _, size, components = np.linalg.svd(few, full_matrices=False)
        found = components[:n_dense] * size[:n_dense, None] / math.sqrt(len(few))
        dense[: len(found)] = _DENSE_SHARE * found
        # Columns beyond the rank start small, in random directions.
        dense += 1e-3 * rng.standard_normal(dense.shape)
    return dense
