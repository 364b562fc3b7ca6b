"""Observation models p(x given z): log densities in nats, normalising constants included.

NaN marks a missing entry of a row. Features are independent given the code, so a missing entry is
integrated out by leaving its term out of the sum.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..solvers.missing import observed


def squared_error(x: Tensor, output: Tensor) -> Tensor:
    """Squared distance (..., n) of rows (n, D) and outputs (..., n, D), where observed."""
    mask = observed(x)
    error = x - output
    return (error if mask is None else torch.where(mask, error, 0)).square().sum(-1)


class Likelihood(nn.Module, ABC):
    """Distribution of rows given the decoder's output.

    A subclass answers `log_prob`, `mean` and `sample`; the other methods have defaults. An
    estimator copies the likelihood that it is given, and trains the parameters of the copy.

    Attributes
    ----------
    has_units : bool
        Whether rows may be shifted and divided by a unit before they are modelled. The density
        of a row is then that of the scaled row, divided by the unit once per observed entry.
    link : str or None
        Activation that the likelihood itself applies to the decoder's output, such as 'sigmoid';
        None: the output is in the units of the rows.
    """

    has_units = False
    link: str | None = None

    # --- what the likelihood is for

    def check_range(self, least: float, most: float) -> None:
        """Refuse rows with values that the likelihood does not allow.

        Parameters
        ----------
        least, most : float
            Range of the observed entries.

        Raises
        ------
        ValueError
            Where the range is not allowed.
        """

    def check_rows(self, X: NDArray, first_row: int = 0) -> None:
        """Refuse single entries that the likelihood does not allow.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Rows, NaN where an entry is missing.
        first_row : int
            Index of the first of these rows among all rows, for the message.

        Raises
        ------
        ValueError
            Where an entry is not allowed; the message names the first one.
        """

    # --- before and after training

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data, which ``save`` writes.

        Only likelihoods of this package need it: other classes are given to ``load`` again.
        """
        return {}

    def in_units(self, unit: float) -> Self:
        """Return a copy for rows that are divided by ``unit``."""
        return copy.deepcopy(self)

    def start(self, rows: Tensor) -> None:
        """Set the parameters from a sample of the training rows (n, n_features).

        Called once on the copy that is trained, before training; NaN marks a missing entry.
        """

    def restore_fixed(self) -> None:
        """Set parameters that are not learned again, after a change of precision rounded them."""

    @property
    def learned_noise_variance(self) -> float | None:
        """A learned noise variance whose best value is the mean squared error; None: there is none.

        After training, the estimator sets it to that value by `set_noise_variance`.
        """
        return None

    def set_noise_variance(self, value: float) -> None:
        """Set the noise variance, in squared units of the model."""
        raise NotImplementedError(f"{type(self).__name__} has no noise variance.")

    def noise_variance_in(self, unit: float) -> float | NDArray:
        """Return the noise variance of rows in units of X; NaN where there is none.

        Raises
        ------
        ValueError
            Where training has made it infinite or NaN.
        """
        return math.nan

    # --- what networks read and write

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return rows as an encoder reads them, such as their logarithm; NaN stays NaN."""
        return x

    def output_of(self, mean: Tensor) -> Tensor:
        """Return the decoder's output at which rows have this mean, away from infinity."""
        return mean

    # --- the distribution

    @abstractmethod
    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log density of rows (n, D) given outputs (..., n, D), summed over observed entries."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Mean of the rows given the decoder's output."""

    @abstractmethod
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw rows given the decoder's output."""

    @property
    def has_closed_expectation(self) -> bool:
        """Whether `expected_log_prob` is known."""
        return False

    def expected_log_prob(self, x: Tensor, output: Tensor, output_variance: Tensor) -> Tensor:
        """Expected log density of rows (n, D) under independent codes and a linear decoder.

        Parameters
        ----------
        x : Tensor of shape (n, D)
            Rows.
        output : Tensor of shape (n, D)
            Mean of the decoder's output.
        output_variance : Tensor of shape (n,)
            Variance of the decoder's output, summed over the observed entries of each row.

        Returns
        -------
        log_prob : Tensor of shape (n,)
            Nats.
        """
        raise NotImplementedError(f"{type(self).__name__} has no expectation in closed form.")
