"""Posteriors of a linear model with Gaussian noise, found by sweeps without a network."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._rows.arrays import to_numpy
from ..latents.free_form import FreeFormPosterior, SlabLaws
from ..solvers.linear_model.noise_metric import NoiseMetric
from ..solvers.linear_model.parameters import SparseLinear
from ..solvers.linear_model.row_posteriors import RowPosteriors, Stops, infer, same_observed

# Sweeps of a row end once they raise its bound by less than this, in nats, where the user does not
# say otherwise.
REFINE_TOL = 0.05
_DOUBLE = np.dtype(np.float64)


@dataclass(frozen=True)
class InferredPosterior(FreeFormPosterior):
    """A posterior found by sweeps, with what it was found with.

    Attributes
    ----------
    bound : Tensor of shape (n_rows,)
        The bound on log p(x) that it gives, in nats, in units of the model.
    weight : Tensor of shape (n_rows, 1)
        Precision of the row's noise, relative to that of the model.
    """

    bound: Tensor
    weight: Tensor

    def row(self, index: int) -> InferredPosterior:
        """Return the posterior of one row, as a batch of one."""
        cut = slice(index, index + 1)
        values = {
            each.name: getattr(self, each.name)[cut] for each in fields(self) if each.name != "laws"
        }
        return InferredPosterior(self.laws, **values)


def inferred(model: SparseLinear, x: Tensor, stops: Stops) -> InferredPosterior:
    """Find the posterior of each row (n, n_features) by sweeps; no gradient passes."""
    rows = to_numpy(x, _DOUBLE if x.dtype == torch.float64 else np.dtype(np.float32))
    # What is not finite is found in the result.
    with np.errstate(over="ignore", invalid="ignore"):
        found = infer(model, rows, stops)
    return as_posterior(model, rows, found, x)


def as_posterior(
    model: SparseLinear, rows: NDArray, found: RowPosteriors, like: Tensor
) -> InferredPosterior:
    """Return posteriors as tensors of the dtype and on the device of ``like``."""

    def tensor(values: NDArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(like)

    priors, weight = model.priors, found.factors.weight
    curvature = np.empty(found.factors.mean.shape)
    for numbers, seen in same_observed(rows):
        squares = NoiseMetric(model, _DOUBLE, seen).squares
        curvature[numbers] = weight[numbers, None] * squares
    laws = SlabLaws(
        tensor(priors.logit),
        tensor(priors.log_constant),
        tensor(priors.rate),
        tensor(priors.precision),
        priors.positive,
    )
    return InferredPosterior(
        laws,
        tensor(found.factors.field),
        tensor(curvature),
        tensor(found.contrast[:, None]),
        tensor(found.bound),
        tensor(weight[:, None]),
    )
