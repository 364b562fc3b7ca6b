"""How a model is trained, and what training leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .._models.objectives import Objective


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained; the fields carry the names of the estimators' parameters."""

    objective: Objective = field(default_factory=Objective)
    decoder_penalty: float = 0.0
    # Temperature of relaxed gates at the first step and at the last.
    temperature: tuple[float, float] = (1.0, 1.0)
    noise_warmup: float = 0.0
    kl_warmup: float = 0.0
    max_iter: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: bool = True
    n_iter_no_change: int = 10
    tol: float = 1e-4
    verbose: int = 0
    precision: str = "float32"
    callbacks: Sequence[Any] = ()


@dataclass
class TrainingResult:
    """What a training run returns, on the CPU."""

    history: list[dict[str, Any]]
    # Adam's moments of each parameter of the model, by the parameter's name.
    optimizer_state: dict[str, dict[str, Tensor]] = field(repr=False)
    interrupted: bool = False
