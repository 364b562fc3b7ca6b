"""ThresholdedVSC: variational sparse coding with thresholded samples."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from torch import nn

from ._compat import Interval, StrOptions
from ._neural import NeuralSparseCoder
from .latents import Thresholded
from .model import LatentVariableModel


class ThresholdedVSC(NeuralSparseCoder):
    """TODO."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NeuralSparseCoder._parameter_constraints,
        "prior": [StrOptions({"laplace", "gaussian"})],
        "prior_scale": [Interval(Real, 0, None, closed="neither")],
        "threshold": [Interval(Real, 0, None, closed="left"), None],
        "density": [Interval(Real, 0, 1, closed="neither")],
        "threshold_prior": [StrOptions({"gamma"}), None],
        "threshold_shape": [Interval(Real, 0, None, closed="neither")],
        "threshold_kl_weight": [Interval(Real, 0, None, closed="left")],
        "gradient": [StrOptions({"straight_through", "subgradient", "exact"})],
        "kl": [StrOptions({"thresholded", "base"})],
        "noise_warmup": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        prior: str = "laplace",
        prior_scale: float = 1.0,
        threshold: float | None = None,
        density: float = 0.1,
        threshold_prior: str | None = None,
        threshold_shape: float = 3.0,
        threshold_kl_weight: float = 1.0,
        gradient: str = "straight_through",
        n_draws: int = 1,
        objective: str = "elbo",
        kl: str = "thresholded",
        kl_weight: float = 1.0,
        likelihood: str = "gaussian",
        noise_variance: float | str = "learned",
        encoder: str | nn.Module = "mlp",
        decoder: str | nn.Module = "linear",
        hidden_layer_sizes: int | Sequence[int] = (512,),
        decoder_penalty: float = 0.0,
        transform_method: str = "map",
        score_method: str = "elbo",
        score_draws: int = 64,
        noise_warmup: float = 0.0,
        kl_warmup: float = 0.0,
        max_iter: int = 100,
        batch_size: int | str = "auto",
        learning_rate_init: float = 1e-3,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool | int = False,
        callbacks: Sequence[Any] | None = None,
        device: str = "auto",
    ) -> None:
        self.n_components = n_components
        self.prior = prior
        self.prior_scale = prior_scale
        self.threshold = threshold
        self.density = density
        self.threshold_prior = threshold_prior
        self.threshold_shape = threshold_shape
        self.threshold_kl_weight = threshold_kl_weight
        self.gradient = gradient
        self.n_draws = n_draws
        self.objective = objective
        self.kl = kl
        self.kl_weight = kl_weight
        self.likelihood = likelihood
        self.noise_variance = noise_variance
        self.encoder = encoder
        self.decoder = decoder
        self.hidden_layer_sizes = hidden_layer_sizes
        self.decoder_penalty = decoder_penalty
        self.transform_method = transform_method
        self.score_method = score_method
        self.score_draws = score_draws
        self.noise_warmup = noise_warmup
        self.kl_warmup = kl_warmup
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks
        self.device = device

    def _make_family(self) -> Thresholded:
        return Thresholded(
            self.prior,
            prior_scale=self.prior_scale,
            threshold=self.threshold,
            density=self.density,
            gamma_shape=self.threshold_shape if self.threshold_prior == "gamma" else None,
            gradient=self.gradient,
            training_kl=self.kl,
            threshold_kl_weight=self.threshold_kl_weight,
        )

    def _training_objective(self, model: LatentVariableModel) -> str:
        if self.gradient == "exact":
            return "exact"
        return self.objective
