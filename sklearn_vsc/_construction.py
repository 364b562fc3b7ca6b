"""From the parameters of a neural estimator to its model."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ._amortised import AmortisedCoder
from ._models.gate_gradients import NVILBaseline
from ._models.latent_variable import Heads, LatentVariableModel
from ._models.objectives import Objective
from ._rows.images import check_image_shape
from .latents import LatentFamily
from .likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from .networks import (
    RANGES,
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

# Share of the data's power that decoded draws of the prior start with.
_INITIAL_POWER = 0.1
# A fixed noise variance, over that of X, is no less than this, and no more than its inverse.
_LEAST_NOISE = 1e-10
# Sweeps of n_refine='auto', and at most those of a training step: measured, more there cost more
# time than they bring.
_SWEEPS = 20
TRAINING_SWEEPS = 5
# First and last thresholds of an unrolled encoder, in standard deviations of the noise: measured,
# falling ones learn better than equal ones.
_THRESHOLDS = (6.0, 0.3)


class ModelBuilder(AmortisedCoder):
    """Base that turns parameters into a latent-variable model and a training objective."""

    prior: str
    objective: str
    gradient: str
    kl_weight: float
    noise_variance: float | str
    encoder: str | nn.Module
    decoder: str | nn.Module
    image_shape: Sequence[int] | None
    hidden_layer_sizes: int | Sequence[int]
    n_unrolled: int
    output_activation: str
    _fill: NDArray
    _reads_mask: bool
    _built_with: dict[str, Any]

    @abstractmethod
    def _make_family(self) -> LatentFamily:
        """Return the latent family that the parameters name."""

    @abstractmethod
    def _make_objective(self) -> Objective:
        """Return the bound that training maximises, and how."""

    def _temperatures(self) -> tuple[float, float]:
        """First and last temperature of relaxed gates, where there are any."""
        return 1.0, 1.0

    # --- the exact gradient

    def _trains_exactly(self) -> bool:
        """Whether training takes the ELBO in closed form, as ``gradient`` says."""
        obstacle = self._obstacle_to_exact()
        if self.gradient == "auto":
            return obstacle is None and self.n_draws == 1 and self.objective == "elbo"
        if self.gradient == "exact" and obstacle:
            raise ValueError(
                f"gradient='exact' needs an ELBO in closed form, which {obstacle} does not have; "
                "use gradient='auto'."
            )
        return self.gradient == "exact"

    def _obstacle_to_exact(self) -> str | None:
        """Name the parameter that leaves the ELBO without a closed form, if any."""
        return self._obstacle_to_atoms()

    def _obstacle_to_atoms(self) -> str | None:
        """Name the parameter that makes this no linear model with Gaussian noise, if any."""
        if not isinstance(self.decoder, str) or self.decoder != "linear":
            return f"decoder={self.decoder!r}"
        if self.likelihood != "gaussian":
            return f"likelihood={self.likelihood!r}"
        if self._activation() != "identity":
            return f"output_activation={self.output_activation!r}"
        return None

    def _check_parameters(self) -> None:
        """Check what the constraints of single parameters cannot say."""
        if self.likelihood == "bernoulli" and self.output_activation not in ("auto", "sigmoid"):
            raise ValueError(
                f"output_activation={self.output_activation!r} does not go with "
                "likelihood='bernoulli', whose mean is a sigmoid of the decoder's output; use "
                "'auto' or 'sigmoid'."
            )
        self._hidden_sizes()
        if any(isinstance(part, str) and part == "conv" for part in (self.encoder, self.decoder)):
            self._image_shape()
        if self.gradient == "exact" and (self.n_draws > 1 or self.objective != "elbo"):
            warnings.warn(
                f"gradient='exact' trains the closed-form ELBO without draws: n_draws="
                f"{self.n_draws} and objective={self.objective!r} do not apply to training.",
                UserWarning,
                stacklevel=3,
            )

    # --- refinement

    def _n_sweeps(self, model: LatentVariableModel) -> int:
        """Sweeps of coordinate ascent, or an error where this model has none."""
        if self.n_refine == "auto":
            return _SWEEPS if model.can_refine and self._was_built_exactly() else 0
        if self.n_refine and not model.can_refine:
            raise ValueError(
                f"n_refine={self.n_refine} needs a linear decoder, a Gaussian likelihood and codes "
                "that are zero with a probability of their own (a spike and slab, or a Laplace "
                "base with threshold_prior='gamma' and kl='auto'); use n_refine='auto' or 0."
            )
        return int(self.n_refine)

    def _was_built_exactly(self) -> bool:
        """Whether the model is one that trains exactly; `n_draws` may be set anew for codes."""
        return type(self)(**self._built_with)._trains_exactly()

    # --- the model

    def _build(self, rows: Tensor, generator: torch.Generator) -> LatentVariableModel:
        family = self._make_family()
        encoder: nn.Module
        heads: nn.Module
        if self._is_tied():
            encoder, heads = self._make_tied_encoder(family)
            decoder = self._make_decoder(rows, family, generator)
        else:
            encoder, n_hidden = self._make_encoder(rows, generator)
            decoder = self._make_decoder(rows, family, generator)
            heads = Heads(n_hidden, family.n_heads, self._n_components, generator)
        baseline = None
        if self._make_objective().gates == "nvil":
            baseline = NVILBaseline(rows.shape[1], generator)
        likelihood = self._make_likelihood()
        return LatentVariableModel(encoder, heads, decoder, likelihood, family, baseline)

    def _hidden_sizes(self) -> tuple[int, ...]:
        sizes = np.atleast_1d(self.hidden_layer_sizes)
        if sizes.ndim > 1 or (sizes.size and (sizes.dtype.kind not in "iu" or sizes.min() < 1)):
            raise ValueError(
                "The 'hidden_layer_sizes' parameter must hold whole numbers of at least 1; "
                f"got {self.hidden_layer_sizes!r}."
            )
        return tuple(int(size) for size in sizes)

    def _image_shape(self, n_features: int | None = None) -> tuple[int, int, int]:
        """Return the checked shape of a row, which has ``n_features`` where they are known."""
        return check_image_shape(self.image_shape, n_features, "a 'conv' encoder or decoder")

    def _make_encoder(self, rows: Tensor, generator: torch.Generator) -> tuple[nn.Module, int]:
        """Return the encoder and the number of features it gives to the heads."""
        n_inputs = rows.shape[1] * self._planes
        network: nn.Module
        if isinstance(self.encoder, nn.Module):
            network = copy.deepcopy(self.encoder).cpu().float()
            n_out = _probe(network, "encoder", self._filled(rows[:1]), None)
        elif self.encoder == "conv":
            network = ConvEncoder(self._encoded_shape(rows.shape[1]), generator)
            n_out = network.n_out
        else:
            sizes = self._hidden_sizes()
            network, n_out = mlp(n_inputs, sizes, generator), sizes[-1] if sizes else n_inputs
        return nn.Sequential(self._encoder_input(), network), n_out

    @property
    def _planes(self) -> int:
        """Inputs that a network of ours reads for each feature: its value, and whether missing."""
        return 2 if self._reads_mask else 1

    def _encoded_shape(self, n_features: int) -> tuple[int, int, int]:
        """Return the shape of an image as an encoder reads it."""
        channels, height, width = self._image_shape(n_features)
        return channels * self._planes, height, width

    def _encoder_input(self) -> EncoderInput:
        """Return the door of an encoder; a network of the user's reads filled rows alone."""
        reads_mask = self._reads_mask and not isinstance(self.encoder, nn.Module)
        return EncoderInput(torch.from_numpy(self._fill).float(), reads_mask=reads_mask)

    def _filled(self, rows: Tensor) -> Tensor:
        """Rows with what stands for a missing entry, to start a network from."""
        return torch.where(rows.isnan(), torch.from_numpy(self._fill).to(rows), rows)

    def _is_tied(self) -> bool:
        """Whether the encoder codes with the atoms of the decoder."""
        if isinstance(self.encoder, nn.Module):
            return False
        if self.encoder == "auto":
            return self._trains_exactly() and self._make_family().as_spike_slab() is not None
        return self.encoder == "lista"

    def _make_tied_encoder(self, family: LatentFamily) -> tuple[TiedEncoder, AtomHeads]:
        """Return the encoder and heads that start from the posterior of each code by itself."""
        if obstacle := self._obstacle_to_atoms():
            raise ValueError(
                "encoder='lista' codes with the atoms of a linear decoder under Gaussian noise, "
                f"which {obstacle} does not have; use decoder='linear', likelihood='gaussian' and "
                "output_activation='identity', or encoder='mlp'."
            )
        variance = family.prior_variance / family.prior_inclusion
        if not np.isfinite(variance):
            variance = family.prior_scale**2
        coder = UnrolledCoder(self._n_components, self.n_unrolled, thresholds=_THRESHOLDS)
        encoder = TiedEncoder(coder, family.prior_scale, variance)
        return encoder, AtomHeads(self._n_components, family.gate_heads)

    def _make_decoder(
        self, rows: Tensor, family: LatentFamily, generator: torch.Generator
    ) -> nn.Module:
        """Return the decoder, with the output activation in it where there is one."""
        n_features, n_components = rows.shape[1], self._n_components
        if isinstance(self.decoder, nn.Module):
            network = copy.deepcopy(self.decoder).cpu().float()
            _probe(network, "decoder", rows.new_zeros(1, n_components), n_features)
            decoder: nn.Module = DrawsDecoder(network)
        else:
            decoder = self._named_decoder(rows, family, generator)
        return self._bounded(decoder)

    def _named_decoder(
        self, rows: Tensor, family: LatentFamily, generator: torch.Generator
    ) -> nn.Module:
        n_features, n_components = rows.shape[1], self._n_components
        decoder: nn.Sequential | LinearDecoder | ConvDecoder
        if self.decoder == "mlp":
            decoder = mlp_decoder(n_components, self._hidden_sizes(), n_features, generator)
            bias = cast(nn.Linear, decoder[-1]).bias
        elif self.decoder == "conv":
            decoder = ConvDecoder(n_components, self._image_shape(n_features), generator)
            bias = decoder.bias
        else:
            # Draws of the prior then decode to rows with a share of the power that the data
            # have: measured, a start at full power learns slower.
            variance = family.prior_variance
            power = n_features / n_components / (variance if np.isfinite(variance) else 1.0)
            norm = (_INITIAL_POWER * power) ** 0.5
            decoder = LinearDecoder(
                atoms_from_rows(self._filled(rows), n_components, norm, generator)
            )
            bias = decoder.bias
        self._start_at_mean(bias, rows)
        return decoder

    def _start_at_mean(self, bias: Tensor, rows: Tensor) -> None:
        """Let zero codes decode to the mean row; without an activation rows are centred already."""
        if self._activation() != "identity":
            mean = self._filled(rows).mean(0) * self._unit + torch.from_numpy(self._offset).float()
            with torch.no_grad():
                bias.copy_(before_activation(mean, self._activation()))

    def _bounded(self, decoder: nn.Module) -> nn.Module:
        """Return a decoder with the output activation behind it, where there is one."""
        activation = self._activation()
        if activation == "identity" or self.likelihood == "bernoulli":
            return decoder
        return BoundedDecoder(
            decoder, activation, torch.from_numpy(self._offset).float(), self._unit
        )

    def _activation(self) -> str:
        """What ``output_activation`` stands for."""
        if self.likelihood == "bernoulli":
            return "sigmoid"
        return "identity" if self.output_activation == "auto" else self.output_activation

    def _check_range(self, least: float, most: float) -> None:
        """Refuse a range of X that the likelihood cannot hold; warn of what is out of reach."""
        self._check_bounds(least, most)
        activation = self._activation()
        if activation == "identity" or self.likelihood == "bernoulli":
            return
        low, high = RANGES[activation]
        if least < low or most > high:
            warnings.warn(
                f"output_activation={activation!r} decodes to values in [{low:g}, {high:g}], but "
                f"X goes from {least:.3g} to {most:.3g}. Rescale X, or use 'identity'.",
                UserWarning,
                stacklevel=3,
            )

    def _make_likelihood(self) -> Likelihood:
        if self.likelihood == "bernoulli":
            return BernoulliLikelihood()
        if isinstance(self.noise_variance, str):
            return GaussianLikelihood(1.0)
        self._fixed_noise_variance = self.noise_variance / self._unit**2
        if not _LEAST_NOISE <= self._fixed_noise_variance <= 1 / _LEAST_NOISE:
            raise ValueError(
                f"noise_variance={self.noise_variance!r} is out of proportion to X, whose variance "
                f"is {self._unit**2:.3g}: use {_LEAST_NOISE:g} to {1 / _LEAST_NOISE:g} times as "
                "much, or noise_variance='learned'."
            )
        return GaussianLikelihood(self._fixed_noise_variance, learned=False)


def _probe(module: nn.Module, name: str, batch: Tensor, n_out: int | None) -> int:
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
