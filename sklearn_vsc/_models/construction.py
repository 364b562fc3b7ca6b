"""From a description to a variational model: encoder, heads, decoder, likelihood and family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from .._rows.user_warnings import warn_user
from ..latents import LatentFamily
from ..likelihoods import GaussianLikelihood, Likelihood
from ..networks import (
    AtomHeads,
    BoundedDecoder,
    ConvDecoder,
    ConvEncoder,
    DrawsDecoder,
    EncoderInput,
    LinearDecoder,
    TiedEncoder,
    UnrolledCoder,
    atoms_from_rows,
    before_activation,
    mlp,
    mlp_decoder,
)
from ..solvers.posterior.free_form import MOST_SWEEPS
from .description import ModelDescription, Start
from .gate_gradients import NVILBaseline
from .latent_variable import Heads, LatentVariableModel
from .objectives import Objective

# Share of the data's variance that decoded draws of the prior start with.
_INITIAL_POWER = 0.1
# First and last thresholds of an unrolled encoder, in standard deviations of the noise: measured,
# falling ones learn better than equal ones.
_THRESHOLDS = (6.0, 0.3)


@dataclass(frozen=True)
class VariationalDescription(ModelDescription):
    """A model whose posterior comes from an inference network.

    Attributes
    ----------
    make_family : callable
        Returns the latent family. Its argument says whether training takes the ELBO in closed
        form, so that no draws need gradients.
    check_choices : callable
        Raises the errors of parameters that do not go together.
    check_family : callable
        Raises the errors of a latent family that cannot be trained.
    prior_name, family_name : str
        The prior alone, and all parameters that name the family, for messages.
    gradient : str
        'auto', 'exact', or an estimator of the gradient.
    sampled : Objective
        The objective where draws are needed.
    """

    make_family: Callable[[bool], LatentFamily] = field(kw_only=True)
    check_choices: Callable[[], None] = field(default=lambda: None, kw_only=True)
    check_family: Callable[[LatentFamily], None] = field(default=lambda _: None, kw_only=True)
    prior_name: str = field(kw_only=True)
    family_name: str = field(kw_only=True)
    gradient: str = field(kw_only=True)
    sampled: Objective = field(kw_only=True)

    @cached_property
    def family(self) -> LatentFamily:
        """Prior and posterior of a code."""
        return self._closed_family if self.trains_exactly else self.make_family(False)

    @cached_property
    def _closed_family(self) -> LatentFamily:
        return self.make_family(True)

    @property
    def objective(self) -> Objective:
        """The bound that training maximises."""
        return Objective("exact", kl_weight=self.kl_weight) if self.trains_exactly else self.sampled

    @cached_property
    def trains_exactly(self) -> bool:
        """Whether training takes the ELBO in closed form, as ``gradient`` says.

        Raises
        ------
        ValueError
            Where 'exact' was asked for and there is no closed form.
        """
        if self.gradient not in ("auto", "exact"):
            return False
        obstacle = self._obstacle_to_exact
        if self.gradient == "auto":
            one_draw = self.sampled.n_draws == 1 and self.sampled.bound == "elbo"
            return one_draw and obstacle is None
        if obstacle:
            raise ValueError(
                f"gradient='exact' needs an ELBO in closed form, which {obstacle} does not have; "
                "use gradient='auto'."
            )
        return True

    @property
    def _obstacle_to_exact(self) -> str | None:
        """Name the parameter that leaves the ELBO without a closed form, if there is one."""
        family = self._closed_family
        if not family.has_closed_kl or family.has_infinite_variance:
            return self.family_name
        return self._obstacle_to_linear

    @property
    def _obstacle_to_linear(self) -> str | None:
        """Name the parameter that makes this no linear model with Gaussian noise, if any."""
        decoder = self.networks.decoder
        if not isinstance(decoder, str) or decoder != "linear":
            return f"decoder={decoder!r}"
        if not isinstance(self.likelihood, GaussianLikelihood):
            return f"likelihood={self.likelihood_name}"
        if self.activation != "identity":
            return f"output_activation={self.networks.output_activation!r}"
        return None

    @property
    def obstacle_to_collapsing(self) -> str | None:
        """Name the parameter that keeps slabs from being integrated out, if there is one."""
        gated = self._closed_family.as_gated()
        if gated is None:
            return self.prior_name
        return (
            f"slab={gated.slab_name!r}"
            if gated.slab_name != "gaussian"
            else (self._obstacle_to_linear)
        )

    @property
    def _is_tied(self) -> bool:
        """Whether the encoder codes with the atoms of the decoder."""
        encoder = self.networks.encoder
        if isinstance(encoder, nn.Module):
            return False
        if encoder == "auto":
            return self.trains_exactly and self.family.as_gated() is not None
        return encoder == "lista"

    def check(self) -> None:
        """Check what the constraints of single parameters cannot say."""
        super().check()
        n_draws, bound = self.sampled.n_draws, self.sampled.bound
        if self.gradient == "exact" and (n_draws > 1 or bound != "elbo"):
            warn_user(
                f"gradient='exact' trains the closed-form ELBO without draws: n_draws={n_draws} "
                f"and objective={bound!r} do not apply to training."
            )
        self.check_choices()
        self._check_moments()

    def _check_moments(self) -> None:
        """Refuse posteriors of infinite variance where outputs of the decoder are not bounded."""
        unbounded = self.likelihood.link is not None or self.activation == "identity"
        if not unbounded or isinstance(self.networks.decoder, nn.Module):
            return
        if self._closed_family.has_infinite_variance:
            raise ValueError(
                f"{self.family_name}: codes whose posterior has no variance need a decoder with "
                "bounded output; a Cauchy posterior with an unbounded decoder has an ELBO of minus "
                "infinity. Use output_activation='sigmoid' or 'tanh' with likelihood='gaussian', a "
                "decoder of your own with bounded output, or a posterior with a variance "
                "(posterior_family='gaussian' where the prior is a name)."
            )

    def build(self, start: Start, generator: torch.Generator) -> LatentVariableModel:
        """Return the model, with its first weights.

        Parameters
        ----------
        start : Start
            A sample of the training rows, and the units of the model.
        generator : torch.Generator
            Decides the first weights.
        """
        family, n_components = self.family, self.n_codes(start.n_features)
        self.check_family(family)
        likelihood = self.started_likelihood(start)
        encoder: nn.Module
        heads: nn.Module
        if self._is_tied:
            encoder, heads = self._tied_encoder(family, n_components)
            decoder = self._decoder(start, likelihood, family, n_components, generator)
        else:
            encoder, n_hidden = make_encoder(self, start, likelihood, generator)
            decoder = self._decoder(start, likelihood, family, n_components, generator)
            heads = Heads(n_hidden, family.n_heads, n_components, generator)
        baseline = None
        if self.objective.gates == "nvil":
            baseline = NVILBaseline(start.n_features, generator)
        model = LatentVariableModel(encoder, heads, decoder, likelihood, family, baseline)
        model.n_components = n_components
        model.numbers_per_row = max(n_components, start.n_features)
        if model.can_refine and self.trains_exactly:
            model.default_sweeps = MOST_SWEEPS
        model.refine_tol = self.refine_tol
        return model

    def _tied_encoder(
        self, family: LatentFamily, n_components: int
    ) -> tuple[TiedEncoder, AtomHeads]:
        """Return the encoder and heads that start from the posterior of each code by itself."""
        if obstacle := self._obstacle_to_linear:
            raise ValueError(
                "encoder='lista' codes with the atoms of a linear decoder under Gaussian noise, "
                f"which {obstacle} does not have; use decoder='linear', likelihood='gaussian' and "
                "output_activation='identity', or encoder='mlp'."
            )
        variance = family.prior_variance / family.prior_inclusion
        if not np.isfinite(variance):
            variance = family.prior_scale**2
        coder = UnrolledCoder(n_components, self.networks.n_unrolled, thresholds=_THRESHOLDS)
        encoder = TiedEncoder(coder, family.prior_scale, variance)
        return encoder, AtomHeads(n_components, family.gate_heads)

    def _decoder(
        self,
        start: Start,
        likelihood: Likelihood,
        family: LatentFamily,
        n_components: int,
        generator: torch.Generator,
    ) -> nn.Module:
        """Return the decoder, with the output activation in it where there is one."""
        own, n_features = self.networks.decoder, start.n_features
        if isinstance(own, nn.Module):
            network = copy.deepcopy(own).cpu().float()
            probe(network, "decoder", start.rows.new_zeros(1, n_components), n_features)
            return bounded(self, start, DrawsDecoder(network))
        decoder: nn.Sequential | LinearDecoder | ConvDecoder
        if own == "mlp":
            sizes = self.networks.hidden_sizes
            decoder = mlp_decoder(n_components, sizes, n_features, generator)
            bias = cast(nn.Linear, decoder[-1]).bias
        elif own == "conv":
            decoder = ConvDecoder(n_components, self.networks.image(n_features), generator)
            bias = decoder.bias
        else:
            # Draws of the prior then decode to rows with a share of the variance of the data:
            # measured, a start at full variance learns more slowly.
            variance = family.prior_variance
            power = n_features / n_components / (variance if np.isfinite(variance) else 1.0)
            norm = (_INITIAL_POWER * power) ** 0.5
            rows = likelihood.encoder_input(start.filled_rows)
            atoms = atoms_from_rows(rows, n_components, norm, generator)
            decoder = LinearDecoder(atoms)
            bias = decoder.bias
        start_at_mean(self, start, likelihood, bias)
        return bounded(self, start, decoder)


# --- parts that variational models and sparse autoencoders share


def make_encoder(
    description: ModelDescription,
    start: Start,
    likelihood: Likelihood,
    generator: torch.Generator,
) -> tuple[nn.Module, int]:
    """Return the encoder, and the number of features that it gives to the heads."""
    networks, n_features = description.networks, start.n_features
    n_inputs = n_features * planes(start)
    network: nn.Module
    if isinstance(networks.encoder, nn.Module):
        network = copy.deepcopy(networks.encoder).cpu().float()
        n_out = probe(network, "encoder", start.filled_rows[:1], None)
    elif networks.encoder == "conv":
        network = ConvEncoder(encoded_shape(description, start), generator)
        n_out = network.n_out
    else:
        sizes = networks.hidden_sizes
        network, n_out = mlp(n_inputs, sizes, generator), sizes[-1] if sizes else n_inputs
    return nn.Sequential(encoder_input(description, start, likelihood), network), n_out


def planes(start: Start) -> int:
    """Inputs that a network of ours reads for each feature: its value, and whether missing."""
    return 2 if start.units.reads_mask else 1


def encoded_shape(description: ModelDescription, start: Start) -> tuple[int, int, int]:
    """Return the shape of an image as an encoder reads it."""
    channels, height, width = description.networks.image(start.n_features)
    return channels * planes(start), height, width


def encoder_input(
    description: ModelDescription, start: Start, likelihood: Likelihood
) -> EncoderInput:
    """Return the first layer of an encoder; a module of the user's reads filled rows alone."""
    own = isinstance(description.networks.encoder, nn.Module)
    fill = torch.from_numpy(start.units.fill).float()
    fill = likelihood.encoder_input(fill)
    return EncoderInput(fill, reads_mask=start.units.reads_mask and not own)


def start_at_mean(
    description: ModelDescription, start: Start, likelihood: Likelihood, bias: Tensor
) -> None:
    """Let zero codes decode to the mean row; without an activation it is zero already."""
    activation = description.activation
    if activation == "identity":
        return
    units = start.units
    mean = start.filled_rows.mean(0) * units.scale + torch.from_numpy(units.offset).float()
    with torch.no_grad():
        if likelihood.link is None:
            bias.copy_(before_activation(mean, activation))
        else:
            bias.copy_(likelihood.output_of(mean))


def bounded(description: ModelDescription, start: Start, decoder: nn.Module) -> nn.Module:
    """Return a decoder followed by the output activation, where there is one."""
    if description.activation == "identity" or description.likelihood.link is not None:
        return decoder
    offset = torch.from_numpy(start.units.offset).float()
    return BoundedDecoder(decoder, description.activation, offset, start.units.scale)


def probe(module: nn.Module, name: str, batch: Tensor, n_out: int | None) -> int:
    """Run a user's module on one row and return its number of outputs, or say what is wrong."""
    wanted = "(n, n_hidden)" if n_out is None else f"(n, {n_out})"
    teach = f"The module given as '{name}' must map (n, {batch.shape[1]}) to {wanted}"
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output = module(batch)
    except Exception as error:
        raise ValueError(f"{teach}, but it fails on such a batch: {error}") from error
    finally:
        module.train(was_training)
    if not isinstance(output, Tensor):
        raise ValueError(f"{teach}; it gave a {type(output).__name__}.")
    if output.ndim != 2 or len(output) != 1 or n_out not in (None, output.shape[1]):
        raise ValueError(f"{teach}; from (1, {batch.shape[1]}) it made {tuple(output.shape)}.")
    return int(output.shape[1])
