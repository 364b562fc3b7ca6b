"""The sparse linear model as a module: posteriors by sweeps, and no network."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor, nn

from .._rows.arrays import to_numpy
from ..latents import Draws, LatentFamily, LatentPosterior
from ..likelihoods import GaussianLikelihood
from ..networks import LinearDecoder
from ..solvers.linear_model.learner import Cooling, Learner
from ..solvers.linear_model.maximisation import N_LEVELS, WhatIsLearned
from ..solvers.linear_model.noise_metric import NoiseMetric
from ..solvers.linear_model.parameters import Contrasts, SparseLinear
from ..solvers.linear_model.row_posteriors import (
    Stops,
    expected_log_prob,
    residuals,
    same_observed,
)
from ..solvers.linear_model.sums import RowSums
from ..solvers.missing import observed
from ..solvers.posterior.collapsed import log_evidence
from ..solvers.posterior.free_form import MOST_SWEEPS
from ..solvers.posterior.refit import refit
from .inferred_posterior import InferredPosterior, inferred

_DOUBLE = np.dtype(np.float64)


class SparseLinearModel(nn.Module):
    """Codes times atoms, dense columns and Gaussian noise, each with a closed form.

    Rows come in and go out in the units of the model; NaN marks a missing entry.

    Parameters
    ----------
    start : SparseLinear
        The model to start from.
    learned : WhatIsLearned
        Which parameters are learned.
    likelihood : GaussianLikelihood
        Noise of the features.
    family : LatentFamily
        The prior as it was declared; densities that are learned are in ``density``.
    row_scale : {'noise', 'row'} or None
        What each row has a scale of its own of.
    refine_tol : float
        Sweeps end once they raise the bound of the row by less than this, in nats.
    shared_noise : bool
        Whether one noise variance holds for all features.
    """

    dense: Tensor
    density: Tensor
    log_freedom: Tensor
    levels: Tensor
    shares: Tensor
    feature_scale: Tensor
    noise_floor: Tensor
    n_steps: Tensor
    pressure: Tensor

    scales: tuple[str, ...] = ()
    networks: tuple[nn.Module, ...] = ()
    encoder: nn.Module | None = None
    has_closed_bound = True
    can_refine = True
    default_sweeps = MOST_SWEEPS

    def __init__(
        self,
        start: SparseLinear,
        learned: WhatIsLearned,
        likelihood: GaussianLikelihood,
        family: LatentFamily,
        row_scale: str | None,
        refine_tol: float,
        *,
        shared_noise: bool = False,
    ) -> None:
        super().__init__()
        self.decoder = LinearDecoder(torch.from_numpy(start.atoms).float())
        self.likelihood = likelihood
        self.family = copy.deepcopy(family)
        # Saved and loaded along, though no draw of this model relaxes a gate.
        self.family.temperature = family.temperature
        self.slab = start.slab
        self._learned = replace(learned, scale=np.empty(0), floor=np.empty(0))
        self.row_scale = row_scale
        self.refine_tol = refine_tol
        self.shared_noise = shared_noise
        n_components, n_features = start.atoms.shape
        self.n_components = n_components
        self.numbers_per_row = 6 * max(n_components, n_features)
        n_levels = N_LEVELS if row_scale == "row" else 0
        has_dense = len(start.dense) > 0
        self._hold("dense", start.dense)
        self._hold("density", start.density)
        self._hold("log_freedom", np.log(start.freedom) if row_scale == "noise" else np.zeros(0))
        self._hold("levels", np.ones(n_levels))
        self._hold("shares", np.ones(n_levels) / max(1, n_levels))
        self._hold("feature_scale", learned.scale)
        self._hold("noise_floor", learned.floor)
        sizes = {
            "n_rows": (), "design": (n_components + 1,) * 2, "variance": (n_components,),
            "data": (n_components + 1, n_features), "squares": (n_features,),
            "products": (n_features if has_dense else 0,) * 2, "inclusion": (n_components,),
            "size": (n_components,), "square": (n_components,), "active": (n_components,),
        }  # fmt: skip
        for name, shape in sizes.items():
            self._hold(f"sum_{name}", np.zeros(shape))
        self._hold("n_steps", np.zeros(()))
        self._hold("pressure", np.ones(()))
        # Only while a fit runs.
        self.cooling: Cooling | None = None
        self.put(start)

    def _hold(self, name: str, values: Any) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(values, dtype=float)))

    def _array(self, name: str) -> NDArray:
        return to_numpy(getattr(self, name), _DOUBLE)

    # --- parameters as arrays, and back

    @property
    def n_codes(self) -> int:
        """Number of codes of a row."""
        return self.n_components

    @property
    def parameters_now(self) -> SparseLinear:
        """The parameters of the model, as arrays."""
        noise = to_numpy(self.likelihood.noise_variance, _DOUBLE)
        atoms = to_numpy(self.decoder.weight, _DOUBLE)
        contrasts = None
        if self.row_scale == "row" and bool((self.levels != 1).any()):
            contrasts = Contrasts(self._array("levels"), self._array("shares"))
        freedom = math.inf
        if self.row_scale == "noise":
            freedom = math.exp(float(self.log_freedom))
        return SparseLinear(
            atoms,
            to_numpy(self.decoder.bias, _DOUBLE),
            np.broadcast_to(noise, atoms.shape[1]).copy(),
            self._array("dense"),
            self._array("density"),
            self.slab,
            freedom,
            contrasts,
        )

    @torch.no_grad()
    def put(self, model: SparseLinear) -> None:
        """Take these parameters over."""
        self.decoder.weight.copy_(torch.from_numpy(model.atoms))
        self.decoder.bias.copy_(torch.from_numpy(model.intercept))
        if self.shared_noise:
            self.likelihood.set_noise_variance(float(model.noise.mean()))
        else:
            self.likelihood.put_noise_variance(torch.from_numpy(model.noise))
        self.dense.copy_(torch.from_numpy(model.dense))
        self.density.copy_(torch.from_numpy(model.density))
        if self.row_scale == "noise":
            self.log_freedom.fill_(math.log(model.freedom))
        if self.row_scale == "row" and model.contrasts is not None:
            self.levels.copy_(torch.from_numpy(model.contrasts.levels))
            self.shares.copy_(torch.from_numpy(model.contrasts.shares))

    @property
    def learned(self) -> WhatIsLearned:
        """Which parameters are learned."""
        scale, floor = self._array("feature_scale"), self._array("noise_floor")
        return replace(self._learned, scale=scale, floor=floor)

    @property
    def learns_density(self) -> bool:
        """Whether the density of the codes is learned."""
        return self._learned.learns_density

    def learner(self) -> Learner:
        """Return what learns from further batches of rows, with all that it remembers."""
        sums = None
        if self._array("sum_n_rows") > 0:
            sums = RowSums(**{f.name: self._array(f"sum_{f.name}") for f in fields(RowSums)})
        return Learner(
            self.parameters_now,
            self.learned,
            sums,
            int(self.n_steps),
            float(self.pressure),
            has_contrast=self.row_scale == "row",
            cooling=self.cooling,
        )

    @property
    def is_settling(self) -> bool:
        """Whether training still moves the noise for another reason than the bound."""
        return self.learner().is_settling

    @torch.no_grad()
    def take(self, learner: Learner) -> None:
        """Take over what a learner has found and remembers."""
        self.put(learner.model)
        if learner.sums is not None:
            for each in fields(RowSums):
                value = torch.from_numpy(np.asarray(getattr(learner.sums, each.name)))
                getattr(self, f"sum_{each.name}").copy_(value)
        self.n_steps.fill_(learner.n_steps)
        self.cooling = learner.cooling
        self.pressure.fill_(learner.pressure)

    # --- posteriors and codes

    def _stops(self, n_refine: int) -> Stops:
        return Stops(max_sweeps=n_refine or MOST_SWEEPS, bound_tol=self.refine_tol)

    def infer(self, x: Tensor, n_refine: int, kl_weight: float = 1.0) -> InferredPosterior:
        """Posterior of each row, by at most so many sweeps."""
        return inferred(self.parameters_now, x, self._stops(n_refine))

    def posterior_depends_on_noise(self, n_refine: int) -> bool:
        """Whether the noise variance enters the posterior of a row."""
        return True

    def sparse_code(self, x: Tensor, posterior: LatentPosterior, *, refined: bool) -> Tensor:
        """Sparse point estimate of each row, given its posterior from `infer`.

        The codes that are more likely not zero than zero, at the best linear estimate given which
        they are; codes that may not be negative are at the mean of their slab.
        """
        if self.slab.positive:
            return posterior.mode()
        return refitted(self.parameters_now, x, cast(InferredPosterior, posterior))

    def by_atom(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code of each atom, (n, K), and 1 where a row uses the atom, else 0."""
        return code, (code != 0).to(code)

    # --- likelihood and bounds

    def decode(self, code: Tensor) -> Tensor:
        """Mean of p(x given z)."""
        return self.decoder(code)

    def closed_bound(self, x: Tensor, posterior: LatentPosterior) -> Tensor:
        """Lower bound on log p(x) that a posterior gives, (n,), nats."""
        return cast(InferredPosterior, posterior).bound

    def log_weights(
        self, x: Tensor, posterior: LatentPosterior, draws: Draws, *, exact_ratio: bool
    ) -> Tensor:
        """Log weights of draws, (n_draws, n), nats, for scoring.

        Where rows have contrasts, they are those of the most likely contrast alone.
        """
        log_likelihood = self._log_likelihood(x, posterior, draws.code)
        if exact_ratio:
            return log_likelihood + posterior.log_ratio(draws).sum(-1)
        return log_likelihood - posterior.kl(draws).sum(-1)

    def _log_likelihood(self, x: Tensor, posterior: LatentPosterior, code: Tensor) -> Tensor:
        """Log p(x given z), dense columns and scales of rows integrated out, (n_draws, n)."""
        posterior = cast(InferredPosterior, posterior)
        model = self.parameters_now
        rows, output = to_numpy(x, _DOUBLE), to_numpy(self.decoder(code), _DOUBLE)
        contrast = to_numpy(posterior.contrast[:, 0], _DOUBLE)
        found = np.empty(output.shape[:2])
        for numbers, seen in same_observed(rows):
            metric = NoiseMetric(model, _DOUBLE, seen)
            cut = slice(None) if seen is None else seen
            residual = (rows[numbers] - output[:, numbers])[..., cut] / contrast[numbers, None]
            error = metric.energy(residual.reshape(-1, metric.n_features))
            log_det = metric.log_det + 2 * metric.n_features * np.log(contrast[numbers])
            # The bound on an expectation is the density itself where the error is certain.
            found[:, numbers] = expected_log_prob(
                error.reshape(len(output), -1), log_det, metric.n_features, model.freedom
            )
        if model.contrasts is not None:
            nearest = np.abs(np.log(contrast)[:, None] - np.log(model.contrasts.levels)).argmin(1)
            found = found + np.log(model.contrasts.shares[nearest])
        return torch.from_numpy(found).to(x)

    @property
    def can_collapse(self) -> bool:
        """Whether slabs integrate out given the gates: normal ones, on both sides of zero."""
        normal = self.slab.name == "gaussian" and not self.slab.positive
        return normal and not len(self.dense) and self.row_scale is None

    def collapsed_log_weights(self, x: Tensor, posterior: LatentPosterior, draws: Draws) -> Tensor:
        """Log p(x, S) - log q(S given x) of drawn supports S, (n_draws, n), nats, for scoring."""
        posterior = cast(InferredPosterior, posterior)
        deviation = self.likelihood.noise_variance.detach().sqrt().expand(x.shape[1])
        mask = observed(x)
        log_scale = deviation.log().expand_as(x)
        if mask is not None:
            log_scale = torch.where(mask, log_scale, 0)
        rows = (x - self.decoder.bias.detach()) / deviation
        atoms = self.decoder.weight.detach() / deviation
        evidence = log_evidence(rows, atoms, 1.0, self.slab.scale, draws.active, mask)
        return evidence - log_scale.sum(1) + posterior.gate_log_ratio(draws).sum(-1)

    # --- samples

    def sample(self, n_samples: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draw rows: codes from the prior, dense columns, noise, and scales of rows."""
        model = self.parameters_now
        seed = int(torch.randint(2**31, (), generator=generator))
        rng = np.random.default_rng(seed)
        codes = draw_codes(model, n_samples, rng)
        noise = rng.standard_normal((n_samples, len(model.noise))) * np.sqrt(model.noise)
        noise = noise + rng.standard_normal((n_samples, len(model.dense))) @ model.dense
        if not math.isinf(model.freedom):
            noise /= np.sqrt(rng.chisquare(model.freedom, (n_samples, 1)) / model.freedom)
        rows = codes @ model.atoms + noise
        if model.contrasts is not None:
            rows *= rng.choice(model.contrasts.levels, (n_samples, 1), p=model.contrasts.shares)
        return torch.from_numpy(model.intercept + rows).to(dtype)


def refitted(model: SparseLinear, x: Tensor, posterior: InferredPosterior) -> Tensor:
    """Return the best linear estimate of the codes of each row that are more likely not zero."""
    rows = to_numpy(x, _DOUBLE)
    support = to_numpy(posterior.inclusion, _DOUBLE) > 0.5
    contrast = to_numpy(posterior.contrast, _DOUBLE)
    weight = to_numpy(posterior.weight[:, 0], _DOUBLE)
    ridge = 1 / model.slab.mean_square(model.density)
    code, present = np.zeros(support.shape), model.present
    support, ridge = support[:, present], ridge[present]
    for numbers, metric, residual in residuals(model.only(present), rows):
        products = metric.products(residual / contrast[numbers])
        found = refit(products, metric.gram, weight[numbers], ridge, support[numbers])
        code[np.ix_(numbers, present)] = found
    return torch.from_numpy(code * contrast).to(x)


def draw_codes(model: SparseLinear, n_samples: int, rng: np.random.Generator) -> NDArray:
    """Draw codes from their priors."""
    slab, shape = model.slab, (n_samples, len(model.density))
    if slab.name == "laplace":
        size = rng.exponential(slab.scale, shape)
    elif slab.name == "gaussian":
        size = np.abs(slab.scale * rng.standard_normal(shape))
    else:
        threshold = slab.threshold(model.density)
        # A normal draw beyond the threshold, less the threshold.
        size = -slab.scale * ndtri(model.density / 2 * (1 - rng.random(shape))) - threshold
    sign = 1.0 if slab.positive else rng.choice([-1.0, 1.0], shape)
    return np.where(rng.random(shape) < model.density, sign * size, 0.0)
