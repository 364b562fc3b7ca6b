"""Training objectives: the bound of each row, by the gradient estimator that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..latents import Draws, GatedPosterior, LatentFamily, LatentPosterior
from ..likelihoods import Likelihood
from ..solvers.missing import n_observed
from . import gate_gradients
from .bounds import OBJECTIVES, iwae

# The noise variance is pulled up when the density is within a twentieth of the prior's density, and
# at most to twice the value that the rows ask for: there the slope of the likelihood balances the
# pull.
_PULL_WIDTH = 0.05
_FULL_PULL = 0.25
SCORE_GRADIENTS = ("reinforce", "nvil", "muprop", "rebar")


@dataclass(frozen=True)
class Objective:
    """The bound that is trained, and the estimator of its gradient.

    Attributes
    ----------
    bound : {'elbo', 'max_elbo', 'iwae', 'exact', 'code'}
        'exact' is the ELBO in closed form, without draws; 'code' the penalised likelihood of
        the code of a sparse autoencoder.
    n_draws : int
        Draws per row.
    kl_weight : float
        Weight of the KL, or of the log ratio of prior and posterior.
    gates : str or None
        Score-function estimator for the gates of a spike and slab, one of `SCORE_GRADIENTS`.
    doubly_reparameterised : bool
        Whether the importance-weighted bound of a continuous family uses the gradient of
        Tucker et al. (2018), whose signal does not fade as draws are added.
    n_refine : int
        For 'exact': sweeps of coordinate ascent on the encoder's posterior. The decoder then
        learns from the refined posterior, and the encoder from its own ELBO.
    """

    bound: str = "elbo"
    n_draws: int = 1
    kl_weight: float = 1.0
    gates: str | None = None
    doubly_reparameterised: bool = False
    n_refine: int = 0


@dataclass(frozen=True)
class TrainingStep:
    """What a model returns for a batch in training.

    Attributes
    ----------
    bound : Tensor of shape (n,)
        Objective of each row, nats, to be maximised.
    parts : dict of str to Tensor of shape (n,)
        Parts of the objective of each row, outside any graph: ``log_likelihood`` and ``kl``
        without its weight, whose difference is the bound of 'elbo' and 'exact'; for 'max_elbo' the
        parts of the chosen draw; for 'iwae' the parts of the ELBO, which this bound exceeds; for
        'code' ``log_likelihood`` and ``penalty``. Where codes can be zero, ``density`` is the share
        of codes that are not, under the posterior or in its draws.
    """

    bound: Tensor
    parts: dict[str, Tensor]


class _Trainable(Protocol):
    """What objectives ask of a model."""

    decoder: nn.Module
    likelihood: Likelihood
    family: LatentFamily
    gate_baseline: gate_gradients.NVILBaseline | None

    @property
    def linear_gaussian(self) -> Any: ...
    def posterior(self, x: Tensor) -> LatentPosterior: ...
    def refine(
        self, x: Tensor, posterior: LatentPosterior, n_sweeps: int, kl_weight: float = 1.0
    ) -> LatentPosterior: ...
    def share_of_active(self, posterior: LatentPosterior) -> Tensor: ...
    def log_likelihood(self, x: Tensor, code: Tensor) -> Tensor: ...
    def expected_log_likelihood(self, x: Tensor, posterior: LatentPosterior) -> Tensor: ...


def training_step(
    model: _Trainable,
    x: Tensor,
    objective: Objective,
    generator: torch.Generator,
    *,
    kl_weight: float,
    noise_scale: float = 1.0,
    batch_mean: Callable[[Tensor], Tensor] = torch.mean,
) -> TrainingStep:
    """Return the objective of each row, to be maximised, and its parts.

    Parameters
    ----------
    model : LatentVariableModel
        The model in training.
    x : Tensor of shape (n, n_features)
        A batch of rows in the units of the model; NaN marks a missing entry.
    objective : Objective
        The bound and the estimator of its gradient.
    generator : torch.Generator
        Source of the posterior's draws.
    kl_weight : float
        Weight of the KL at this step.
    noise_scale : float
        Factor of the draws' noise at this step.
    batch_mean : callable
        Takes the mean over a batch of which x may be a part.
    """
    if objective.bound == "exact":
        if objective.n_refine:
            return _refined_step(model, x, objective.n_refine, kl_weight, batch_mean)
        return _exact_step(model, x, model.posterior(x), kl_weight)
    posterior = model.posterior(x)
    if objective.gates is not None:
        gated = posterior.as_gated()
        surrogate = _gated_log_likelihood(model, x, gated, objective, generator, noise_scale)
        log_likelihood, kl = surrogate.mean(0), gated.training_kl().sum(-1)
        parts = _parts(model, gated, log_likelihood, kl)
        return TrainingStep(log_likelihood - kl_weight * kl, parts)
    draws = posterior.rsample(posterior.noise(objective.n_draws, generator), noise_scale)
    if objective.doubly_reparameterised:
        return _doubly_reparameterised_iwae(model, x, posterior, draws, kl_weight)
    if objective.bound == "iwae":
        log_ratio = posterior.log_ratio(draws).sum(-1)
    else:
        log_ratio = -posterior.training_kl(draws).sum(-1)
    log_likelihood = model.log_likelihood(x, draws.code)
    log_weights = log_likelihood + kl_weight * log_ratio
    parts = _parts_of_draws(
        model, objective.bound, posterior, draws, log_likelihood, log_weights, log_ratio
    )
    return TrainingStep(OBJECTIVES[objective.bound](log_weights), parts)


def _exact_step(
    model: _Trainable, x: Tensor, posterior: LatentPosterior, kl_weight: float
) -> TrainingStep:
    """ELBO of a posterior in closed form."""
    kl = posterior.training_kl().sum(-1)
    log_likelihood = model.expected_log_likelihood(x, posterior)
    parts = _parts(model, posterior, log_likelihood, kl)
    return TrainingStep(log_likelihood - kl_weight * kl, parts)


def _refined_step(
    model: _Trainable,
    x: Tensor,
    n_refine: int,
    kl_weight: float,
    batch_mean: Callable[[Tensor], Tensor],
) -> TrainingStep:
    """ELBO of the refined posterior; the encoder learns from the ELBO of its own posterior.

    At the best posterior the ELBO has no slope in the posterior's parameters: the gradient of the
    decoder is that of the refined bound.
    """
    with _frozen(model.decoder, model.likelihood):
        posterior = model.posterior(x)
        reached = _exact_step(model, x, posterior, kl_weight).bound
    refined = model.refine(x, posterior, n_refine, kl_weight)
    step = _exact_step(model, x, refined, kl_weight)
    bound = step.bound + (reached - reached.detach())
    share = batch_mean(model.share_of_active(refined))
    return TrainingStep(bound + _density_pull(model, share, n_observed(x)), step.parts)


@torch.no_grad()
def _parts(
    model: _Trainable,
    posterior: LatentPosterior,
    log_likelihood: Tensor,
    kl: Tensor,
    draws: Draws | None = None,
) -> dict[str, Tensor]:
    """Return the parts of a bound, and the density of the draws or of the posterior.

    Call it after the bound is built: what a posterior caches must keep its graph.
    """
    parts = {
        "log_likelihood": log_likelihood.detach(),
        # One KL for each draw where it has no closed form.
        "kl": (kl if kl.ndim == 1 else kl.mean(0)).detach(),
    }
    if model.family.is_continuous:
        return parts
    if draws is None:
        return parts | {"density": posterior.inclusion.detach().mean(-1)}
    return parts | {"density": draws.active.to(kl.dtype).mean((0, 2))}


@torch.no_grad()
def _parts_of_draws(
    model: _Trainable,
    bound: str,
    posterior: LatentPosterior,
    draws: Draws,
    log_likelihood: Tensor,
    log_weights: Tensor,
    log_ratio: Tensor,
) -> dict[str, Tensor]:
    """Return the parts of a bound that draws estimate."""
    if bound == "max_elbo":
        best = log_weights.argmax(0, keepdim=True)
        log_ratio = log_ratio.expand_as(log_weights).gather(0, best)
        log_likelihood = log_likelihood.gather(0, best)
    # The mean log ratio of relaxed gates differs from the KL.
    kl = posterior.kl(draws).sum(-1) if bound == "iwae" else -log_ratio
    return _parts(model, posterior, log_likelihood.mean(0), kl, draws)


def _density_pull(model: _Trainable, share_of_active: Tensor, n_features: Tensor | int) -> Tensor:
    """Zero, with a slope that keeps codes no denser than the prior.

    A learned noise variance alone decides how many codes a row uses: the log-odds of the prior
    are small beside the gain of each code under a small noise variance. So the density of the
    prior limits the noise variance.
    """
    room = 1 - share_of_active / model.family.prior_inclusion
    strength = _FULL_PULL * n_features * (1 - room / _PULL_WIDTH).clamp(0, 1)
    pull = strength * model.linear_gaussian.likelihood.noise_variance.log()
    return pull - pull.detach()


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Keep the parameters of some modules out of the graph that is built in this context."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _gated_log_likelihood(
    model: _Trainable,
    x: Tensor,
    posterior: GatedPosterior,
    objective: Objective,
    generator: torch.Generator,
    noise_scale: float,
) -> Tensor:
    """Surrogate of E log p(x given g v): pathwise for the slab, score-function for the gates."""
    noise = posterior.noise(objective.n_draws, generator)
    slab = posterior.slab_draws(noise, noise_scale)
    argument = posterior.gate_argument(noise)

    def log_prob(gates: Tensor) -> Tensor:
        return model.log_likelihood(x, gates * slab)

    gates = (log_prob, posterior.logit, argument)
    if objective.gates == "reinforce":
        return gate_gradients.reinforce(*gates)
    if objective.gates == "muprop":
        return gate_gradients.muprop(*gates)
    if objective.gates == "nvil":
        assert model.gate_baseline is not None
        filled = x.nan_to_num(nan=0.0)
        return gate_gradients.nvil(*gates, baseline=model.gate_baseline, x=filled)
    second = torch.rand(
        argument.shape, generator=generator, dtype=argument.dtype, device=generator.device
    ).to(argument.device)
    temperature = posterior.family.temperature
    return gate_gradients.rebar(*gates, conditional=second, temperature=temperature)


def _doubly_reparameterised_iwae(
    model: _Trainable, x: Tensor, posterior: LatentPosterior, draws: Draws, kl_weight: float
) -> TrainingStep:
    """Importance-weighted bound with the gradient of Tucker et al. (2018), equation 8.

    No gradient reaches the parameters in the log density of the posterior; instead the path from
    a draw to them is weighted by the draw's normalised weight once more. Where the log ratio has a
    weight, so has the term that this replaces, and 1 - kl_weight of the path stays as it was.
    """
    weights: list[Tensor] = []
    if draws.code.requires_grad:
        draws.code.register_hook(
            lambda gradient: gradient * (1 - kl_weight + kl_weight * weights[0])
        )
    log_ratio = posterior.detached().log_ratio(draws).sum(-1)
    log_likelihood = model.log_likelihood(x, draws.code)
    log_weights = log_likelihood + kl_weight * log_ratio
    parts = _parts_of_draws(model, "iwae", posterior, draws, log_likelihood, log_weights, log_ratio)
    weights.append(log_weights.detach().softmax(0).unsqueeze(-1))
    return TrainingStep(iwae(log_weights), parts)
