"""What training maximises: the bound of each row, by the gradient estimator that is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..latents import ContinuousPosterior, Draws, LatentPosterior, SpikeSlabPosterior
from ..likelihoods import GaussianLikelihood
from ..solvers.missing import n_observed
from . import gate_gradients
from .bounds import OBJECTIVES, iwae
from .latent_variable import LatentVariableModel
from .sparse_autoencoder import SparseAutoencoder

# The noise variance is pulled up over the last twentieth of the way to the prior's density, and at
# most to where it is twice what the rows ask for: there the likelihood's slope balances the pull.
_PULL_WIDTH = 0.05
_FULL_PULL = 0.25
SCORE_GRADIENTS = ("reinforce", "nvil", "muprop", "rebar")


@dataclass(frozen=True)
class Objective:
    """Which bound is trained, and how its gradient is estimated.

    Attributes
    ----------
    bound : {'elbo', 'max_elbo', 'iwae', 'exact', 'code'}
        'exact' is the ELBO in closed form, without draws; 'code' the penalised likelihood of
        the code of a `SparseAutoencoder`.
    n_draws : int
        Draws per row.
    kl_weight : float
        Weight of the KL, or of the log ratio of prior and posterior.
    gates : str or None
        Score-function estimator of the gates of a spike and slab, one of `SCORE_GRADIENTS`.
    doubly_reparameterised : bool
        Whether the importance-weighted bound of a continuous family takes the gradient of
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


def training_bound(
    model: LatentVariableModel,
    x: Tensor,
    objective: Objective,
    generator: torch.Generator,
    *,
    kl_weight: float,
    noise_scale: float = 1.0,
    batch_mean: Callable[[Tensor], Tensor] = torch.mean,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Objective of each row (n,), nats, to be maximised.

    ``batch_mean`` takes the mean over a batch of which x may be a part. Into ``parts`` goes what
    the objective is made of, of each row (n,) and outside any graph: ``log_likelihood`` and
    ``kl`` without its weight, whose difference 'elbo' and 'exact' are; of 'max_elbo' those of the
    chosen draw; of 'iwae' the same as of the ELBO, which it exceeds; of 'code' ``log_likelihood``
    and ``penalty``. ``density`` is the share of codes that are not zero, under the posterior or
    in its draws, where codes can be zero.
    """
    if objective.bound == "code":
        assert isinstance(model, SparseAutoencoder)
        return model.training_bound(x, generator, kl_weight, parts)
    if objective.bound == "exact" and objective.n_refine:
        # At the best posterior the ELBO has no slope in it: the decoder's gradient is that of
        # the refined bound, the encoder's that of the bound it reaches by itself.
        with _frozen(model.decoder, model.likelihood):
            posterior = model.posterior(x)
            reached = _exact_bound(model, x, posterior, kl_weight)
        refined = model.refine(x, posterior, objective.n_refine, kl_weight)
        bound = _exact_bound(model, x, refined, kl_weight, parts) + (reached - reached.detach())
        share = batch_mean(model.share_of_active(refined))
        return bound + _density_pull(model, share, n_observed(x))
    posterior = model.posterior(x)
    if objective.bound == "exact":
        return _exact_bound(model, x, posterior, kl_weight, parts)
    if objective.gates is not None:
        assert isinstance(posterior, SpikeSlabPosterior)
        surrogate = _gated_log_likelihood(model, x, posterior, objective, generator, noise_scale)
        log_likelihood, kl = surrogate.mean(0), posterior.training_kl().sum(-1)
        _note(parts, posterior, log_likelihood, kl)
        return log_likelihood - kl_weight * kl
    if objective.doubly_reparameterised:
        assert isinstance(posterior, ContinuousPosterior)
        draws = posterior.rsample(posterior.noise(objective.n_draws, generator), noise_scale)
        return _doubly_reparameterised_iwae(model, x, posterior, draws, kl_weight, parts)
    draws = posterior.rsample(posterior.noise(objective.n_draws, generator), noise_scale)
    if objective.bound == "iwae":
        log_ratio = posterior.log_ratio(draws).sum(-1)
    else:
        log_ratio = -posterior.training_kl(draws).sum(-1)
    log_likelihood = model.log_likelihood(x, draws.code)
    log_weights = log_likelihood + kl_weight * log_ratio
    _note_draws(parts, objective.bound, posterior, draws, log_likelihood, log_weights, log_ratio)
    return OBJECTIVES[objective.bound](log_weights)


def _exact_bound(
    model: LatentVariableModel,
    x: Tensor,
    posterior: LatentPosterior,
    kl_weight: float,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    kl = posterior.training_kl().sum(-1)
    log_likelihood = model.expected_log_likelihood(x, posterior)
    _note(parts, posterior, log_likelihood, kl)
    return log_likelihood - kl_weight * kl


@torch.no_grad()
def _note(
    parts: dict[str, Tensor] | None,
    posterior: LatentPosterior,
    log_likelihood: Tensor,
    kl: Tensor,
    draws: Draws | None = None,
) -> None:
    """Put into ``parts`` those of a bound, and the density of the draws or of the posterior.

    To be called once the bound is built: what a posterior caches must keep its graph.
    """
    if parts is None:
        return
    parts["log_likelihood"] = log_likelihood.detach()
    # Of each draw where it has no closed form.
    parts["kl"] = (kl if kl.ndim == 1 else kl.mean(0)).detach()
    if isinstance(posterior, ContinuousPosterior):
        return
    if draws is None:
        parts["density"] = posterior.inclusion.detach().mean(-1)
    else:
        parts["density"] = draws.active.to(kl.dtype).mean((0, 2))


@torch.no_grad()
def _note_draws(
    parts: dict[str, Tensor] | None,
    bound: str,
    posterior: LatentPosterior,
    draws: Draws,
    log_likelihood: Tensor,
    log_weights: Tensor,
    log_ratio: Tensor,
) -> None:
    """Put the parts of a bound that draws estimate into ``parts``."""
    if parts is None:
        return
    if bound == "max_elbo":
        best = log_weights.argmax(0, keepdim=True)
        log_ratio = log_ratio.expand_as(log_weights).gather(0, best)
        log_likelihood = log_likelihood.gather(0, best)
    # The log ratio of relaxed gates has another mean than the KL.
    kl = posterior.kl(draws).sum(-1) if bound == "iwae" else -log_ratio
    _note(parts, posterior, log_likelihood.mean(0), kl, draws)


def _density_pull(
    model: LatentVariableModel, share_of_active: Tensor, n_features: Tensor | int
) -> Tensor:
    """Zero, with a slope that keeps the noise variance where codes are as dense as the prior.

    A learned noise variance alone decides how many codes a row takes: the prior's log-odds are
    nothing beside what a small one makes of each code. So the prior's density bounds it.
    """
    assert isinstance(model.likelihood, GaussianLikelihood)
    room = 1 - share_of_active / model.family.prior_inclusion
    strength = _FULL_PULL * n_features * (1 - room / _PULL_WIDTH).clamp(0, 1)
    pull = strength * model.likelihood.noise_variance.log()
    return pull - pull.detach()


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Leave the parameters of some modules out of the graph that is built meanwhile."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _gated_log_likelihood(
    model: LatentVariableModel,
    x: Tensor,
    posterior: SpikeSlabPosterior,
    objective: Objective,
    generator: torch.Generator,
    noise_scale: float,
) -> Tensor:
    """Surrogate of E log p(x given g v): slab by its path, gates by a score-function estimator."""
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
    model: LatentVariableModel,
    x: Tensor,
    posterior: ContinuousPosterior,
    draws: Draws,
    kl_weight: float,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Importance-weighted bound with the gradient of Tucker et al. (2018), equation 8.

    The log density of the posterior holds parameters that no gradient reaches; a draw's path
    to them is weighted by its normalised weight once more. Where the log ratio has a weight, so
    has the term that this replaces, and 1 - kl_weight of the path stays as it was.
    """
    weights: list[Tensor] = []
    if draws.code.requires_grad:
        draws.code.register_hook(
            lambda gradient: gradient * (1 - kl_weight + kl_weight * weights[0])
        )
    log_ratio = posterior.detached().log_ratio(draws).sum(-1)
    log_likelihood = model.log_likelihood(x, draws.code)
    log_weights = log_likelihood + kl_weight * log_ratio
    _note_draws(parts, "iwae", posterior, draws, log_likelihood, log_weights, log_ratio)
    weights.append(log_weights.detach().softmax(0).unsqueeze(-1))
    return iwae(log_weights)
