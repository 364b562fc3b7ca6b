"""What a fit of a latent-variable model is asked for, and what it leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._inference.fitted_model import FittedModel, InferenceOptions
from .._models.latent_variable import LatentVariableModel
from .._models.units import Units
from ..likelihoods import GaussianLikelihood
from ..networks import LinearDecoder
from .options import TrainingResult


@dataclass(frozen=True)
class RunParameters:
    """Parameters of an estimator that say how to train, by the names that users know."""

    max_iter: int
    batch_size: int | str
    learning_rate_init: float
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    random_state: int | np.random.RandomState | None
    verbose: bool | int
    callbacks: Sequence[Any] | None
    precision: str


@dataclass
class FitState:
    """What a fit leaves behind: the estimator shows it, and the next call goes on from it.

    Attributes
    ----------
    module : LatentVariableModel
        The model, on the CPU.
    units : Units
        Units of its rows.
    evaluation_seed : int
        Seed of the draws that answers are based on.
    random_state : RandomState
        Decides whatever is drawn next.
    optimizer_state : dict or None
        Adam's moments of each parameter.
    history : list of dict
        A record of each epoch.
    n_uses : ndarray of shape (n_components,)
        Rows seen that use each atom.
    n_rows_seen : int
        Rows seen.
    noise_variance : float or ndarray of shape (n_features,)
        In squared units of X; NaN where there is none.
    components : ndarray of shape (n_components, n_features)
        The dictionary; empty before training.
    intercept : ndarray of shape (n_features,) or None
        What a linear decoder adds.
    """

    module: LatentVariableModel
    units: Units
    evaluation_seed: int
    random_state: np.random.RandomState
    optimizer_state: dict[str, dict[str, Tensor]] | None
    history: list[dict[str, Any]]
    n_uses: NDArray
    n_rows_seen: int
    noise_variance: float | NDArray = np.nan
    components: NDArray = field(default_factory=lambda: np.empty((0, 0)))
    intercept: NDArray | None = None

    @property
    def usage(self) -> NDArray:
        """Share of the rows seen that use each atom."""
        return self.n_uses / self.n_rows_seen

    def fitted(self, device: torch.device, options: InferenceOptions) -> FittedModel:
        """Return the model as it stands, to be asked."""
        return FittedModel(self.module, self.units, self.evaluation_seed, device, options)

    @torch.no_grad()
    def move_units(self, units: Units, *, keeps_intercept: bool) -> None:
        """Change the units of the model.

        Its weights stay, and so grow or shrink with the rows. A noise variance that is not learned
        is still the same in units of X, and with ``keeps_intercept`` what a linear decoder adds.
        """
        module, before = copy.deepcopy(self.module), self.units
        if keeps_intercept and isinstance(module.decoder, LinearDecoder):
            shift = torch.from_numpy(before.offset - units.offset) / units.scale
            bias = module.decoder.bias
            bias.mul_(before.scale / units.scale).add_(shift.to(bias))
        likelihood = module.likelihood
        if isinstance(likelihood, GaussianLikelihood) and not likelihood.learned:
            module.likelihood = likelihood.in_units(units.scale / before.scale)
        self.module, self.units = module, units

    def take(self, module: LatentVariableModel, result: TrainingResult, dtype: np.dtype) -> None:
        """Go on with a trained model, in the precision of X."""
        n_before = len(self.history)
        self.history = self.history + [
            record | {"epoch": n_before + record["epoch"]} for record in result.history
        ]
        self.optimizer_state = result.optimizer_state
        self.module = module
        module.to(torch.float32 if dtype == np.float32 else torch.float64).eval()
        module.likelihood.restore_fixed()
