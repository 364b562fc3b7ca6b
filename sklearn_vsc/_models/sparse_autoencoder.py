"""A sparse autoencoder as a latent-variable model: unrolled codes in Laplace noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.lr_scheduler import LambdaLR

from ..latents import Continuous, ContinuousPosterior
from ..likelihoods import Likelihood
from ..networks import DictionaryDecoder, UnrolledCoder, unit_atoms
from ..solvers.dictionary.renewal import idle_rows, worst_rows
from .latent_variable import LatentVariableModel, without_activation
from .objectives import Objective, TrainingStep

# Share of the prior's scale that the scales of posteriors start from.
_FIRST_SPREAD = 0.3
# Steps that settle the scales of a trained model, their learning rate, and latent vectors in each.
_SETTLING_STEPS = 100
_SETTLING_RATE = 0.1
_SETTLING_BATCH = 128
_LEAST_ROWS = 8
# An atom is dead when this many rows in succession have not used it, and a step renews at most this
# many atoms.
_PATIENCE = 2000
_MOST_RENEWED = 16


class SparseAutoencoder(LatentVariableModel):
    """Encoder, unrolled coder, dictionary and network, with the distribution that a score needs.

    The code of a row is deterministic: the amplitudes z that unrolled ISTA finds for the row's
    latent vectors. The posterior is a Laplace distribution around it, with one scale for each
    atom; the prior of an amplitude is Laplace too, and codes are amplitudes divided by its scale.

    Parameters
    ----------
    encoder : nn.Module
        Rows to latent vectors (n, n_positions * latent_size).
    coder : UnrolledCoder
        Latent vectors to amplitudes, with the atoms of the decoder.
    decoder : DictionaryDecoder
        Codes to outputs.
    likelihood : Likelihood
        Distribution of rows given outputs, for codes drawn from the posterior.
    fit_likelihood : Likelihood
        The same for codes at their centre, for training; its noise is smaller.
    alpha : float
        Weight of the l1 norm of amplitudes.
    latent_weight : float or None
        Weight of the squared distance between latent vectors and their sparse sums; None: the
        positions of a row share a weight of one by attention.
    """

    decoder: DictionaryDecoder
    heads: UnrolledCoder
    family: Continuous
    n_idle_rows: Tensor
    uncoded: Tensor
    grid_shape: tuple[int, int]
    scales = ("fit_likelihood.*", "log_spread", "decoder.log_unit")

    def __init__(
        self,
        encoder: nn.Module,
        coder: UnrolledCoder,
        decoder: DictionaryDecoder,
        likelihood: Likelihood,
        fit_likelihood: Likelihood,
        *,
        alpha: float,
        latent_weight: float | None,
    ) -> None:
        super().__init__(encoder, coder, decoder, likelihood, Continuous("laplace", "laplace"))
        self.n_components = len(decoder.weight)
        self.grid_shape = (1, decoder.n_positions)
        self.fit_likelihood = fit_likelihood
        self.alpha = alpha
        self.latent_weight = latent_weight
        spread = _FIRST_SPREAD * decoder.log_unit.detach().exp()
        self.log_spread = nn.Parameter(spread.log().repeat(len(decoder.weight)))
        # Rows since each atom was last used, and residuals of latent vectors, the largest first.
        n_components, latent_size = decoder.weight.shape
        self.register_buffer("n_idle_rows", torch.zeros(n_components))
        self.register_buffer("uncoded", torch.zeros(_MOST_RENEWED, latent_size))

    @property
    def n_codes(self) -> int:
        """Number of codes of a row: one for each atom and position."""
        return self.n_components * self.decoder.n_positions

    @property
    def networks(self) -> list[nn.Module]:
        """Networks, none inside another; output activations are left out."""
        return [self.encoder, self.heads, without_activation(self.decoder.network)]

    def by_atom(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes summed over positions, (n, K), and 1 where a row uses the atom, else 0."""
        code = code.unflatten(1, (-1, len(self.decoder.weight)))
        return code.sum(1), (code != 0).any(1).to(code)

    def latents(self, x: Tensor) -> Tensor:
        """Latent vectors of each row, (n, n_positions, latent_size)."""
        features = self.encoder(self.likelihood.encoder_input(x))
        return features.unflatten(-1, (self.decoder.n_positions, -1))

    def amplitudes(self, latents: Tensor) -> Tensor:
        """Sparse amplitudes of latent vectors, (n, n_positions, K)."""
        code, _ = self.heads(latents.flatten(0, 1), self.decoder.weight)
        return code.unflatten(0, latents.shape[:2])

    def posterior(self, x: Tensor) -> ContinuousPosterior:
        """Laplace posterior of each row, centred on its code."""
        return self._around(self.amplitudes(self.latents(x)))

    def _around(self, amplitudes: Tensor) -> ContinuousPosterior:
        log_unit = self.decoder.log_unit
        scale = (self.log_spread - log_unit).exp().expand_as(amplitudes)
        loc = amplitudes / log_unit.exp()
        return ContinuousPosterior(self.family, loc.flatten(1), scale.flatten(1))

    def training_step(
        self,
        x: Tensor,
        objective: Objective,
        generator: torch.Generator,
        *,
        kl_weight: float = 1.0,
        noise_scale: float = 1.0,
        batch_mean: Callable[[Tensor], Tensor] = torch.mean,
    ) -> TrainingStep:
        """Return the penalised likelihood of each row, nats, to be maximised, and its parts.

        Half of the likelihood is taken at the code itself, half at a draw around it: a decoder
        that was trained on the code alone does badly a step away from it, in the score and on new
        rows. A penalty that warms up has its full value, and a part of its slope, ``kl_weight``.
        The scales also learn from the KL of the draw, which adds a slope and no value.
        """
        if self.training:
            self._renew_idle_atoms()
        latents = self.latents(x)
        amplitudes = self.amplitudes(latents)
        sums = self.decoder.latents(amplitudes)
        if self.training:
            self._watch_use(amplitudes, latents - sums)
        fit = self.fit_likelihood.log_prob(x, self.decoder.network(sums.flatten(1)))
        around = self._around(amplitudes.detach())
        drawn = self.decoder.latents(self._drawn(amplitudes, around, generator))
        fit_around = self.likelihood.log_prob(x, self.decoder.network(drawn.flatten(1)))
        kl = around.kl().sum(-1)
        penalty = self.alpha * amplitudes.abs().sum((1, 2))
        distance = (latents - sums).square().sum(-1)
        penalty = penalty + 0.5 * (self._position_weights(distance) * distance).sum(1)
        parts = {
            "log_likelihood": 0.5 * (fit + fit_around).detach(),
            "penalty": penalty.detach(),
            "density": (amplitudes != 0).to(fit.dtype).mean((1, 2)),
        }
        held = (1 - kl_weight) * (penalty - penalty.detach())
        bound = 0.5 * (fit + fit_around - (kl - kl.detach())) - penalty + held
        return TrainingStep(bound, parts)

    def _position_weights(self, distance: Tensor) -> Tensor:
        """Weight of each position; attention gives most weight to those that are coded worst.

        No gradient passes: it would lower the loss by giving weight to positions coded well.
        """
        if self.latent_weight is not None:
            return torch.full_like(distance, self.latent_weight)
        distance = distance.detach()
        largest = distance.amax(1, keepdim=True).clamp_min(torch.finfo(distance.dtype).tiny)
        return (distance / largest).softmax(1)

    @torch.no_grad()
    def _watch_use(self, amplitudes: Tensor, residual: Tensor) -> None:
        """Count the rows that leave atoms unused, and keep the largest residuals of this batch."""
        idle = idle_rows(self.n_idle_rows, amplitudes.abs().amax(1))
        self.n_idle_rows.copy_(idle)
        worst = worst_rows(residual.flatten(0, 1), _MOST_RENEWED)
        self.uncoded.zero_()[: len(worst)] = worst

    @torch.no_grad()
    def _renew_idle_atoms(self) -> None:
        """Replace dead atoms by the residuals of the latent vectors that were coded worst."""
        directions = unit_atoms(self.uncoded[self.uncoded.any(1)])
        dead = (self.n_idle_rows >= _PATIENCE).nonzero()[: len(directions), 0]
        norms = self.decoder.weight[dead].norm(dim=1, keepdim=True)
        self.decoder.weight[dead] = norms * directions[: len(dead)]
        self.n_idle_rows[dead] = 0

    def settle_scales(self, rows: Tensor, generator: torch.Generator) -> None:
        """Let the scales and the noise variance maximise the bound, all else fixed.

        Training moves them too, but in a short training they lag behind.
        """
        learned = [self.log_spread, self.decoder.log_unit]
        learned += [p for p in self.likelihood.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=_SETTLING_RATE)
        schedule = LambdaLR(optimizer, lambda step: 1 - step / _SETTLING_STEPS)
        size = min(len(rows), max(_LEAST_ROWS, _SETTLING_BATCH // self.decoder.n_positions))
        for _ in range(_SETTLING_STEPS):
            picked = torch.randint(len(rows), (size,), generator=generator, device=generator.device)
            batch = rows[picked.to(rows.device)]
            with torch.no_grad():
                amplitudes = self.amplitudes(self.latents(batch))
            optimizer.zero_grad()
            self._bound_of_scales(batch, amplitudes, generator).mean().neg().backward()
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()

    def _bound_of_scales(self, x: Tensor, amplitudes: Tensor, generator: torch.Generator) -> Tensor:
        """ELBO from one draw, with a gradient in the scales and the noise variance alone."""
        posterior = self._around(amplitudes)
        drawn = self._drawn(amplitudes, posterior, generator)
        latents = drawn @ unit_atoms(self.decoder.weight.detach())
        network = self.decoder.network
        held = {name: weight.detach() for name, weight in network.named_parameters()}
        output = functional_call(network, held, (latents.flatten(1),))
        return self.likelihood.log_prob(x, output) - posterior.kl().sum(-1)

    def _drawn(
        self, amplitudes: Tensor, around: ContinuousPosterior, generator: torch.Generator
    ) -> Tensor:
        """Amplitudes of one draw of the posterior."""
        noise = around.noise(1, generator).base[0].view_as(amplitudes)
        return amplitudes + self.log_spread.exp() * noise
