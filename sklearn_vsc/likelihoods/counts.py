"""Counts: Poisson and negative binomial features, whose log rates the decoder gives."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..latents.gamma import sample_gamma
from ..solvers.missing import observed
from ._base import Likelihood

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Above this log mean (a count of 5e8) the mean grows linearly with the output, so that neither it
# nor its gradient overflows.
_LINEAR_ABOVE = 20.0
# Below this spread of log(1 + x) all rows are equal.
_LEAST_SPREAD = 1e-6
# Least mean of a column: a column of zeros has a log rate of minus infinity.
_LEAST_MEAN = 1e-4
# What the sum of a row without a single count is taken for.
_LEAST_ROW_SUM = 0.5
# The inverse dispersion stays between 1 / this and this, and starts between the other two.
_MOST_INVERSE_DISPERSION = 1e6
_FIRST_INVERSE_DISPERSIONS = (1e-2, 1e3)
# torch draws Poisson variates as 64-bit integers.
_LARGEST_DRAWN_MEAN = 1e15
_LARGEST_EXPONENT = 60.0
# From here on four terms of Stirling's series have the digits of float64.
_STIRLING_FROM = 12.0


class _CountLikelihood(Likelihood):
    """Counts whose log rate is the decoder's output, and what their rates are multiplied by."""

    link = "exp"
    name: ClassVar[str]
    column_means: Tensor
    exponent: nn.Parameter
    input_offset: Tensor
    input_scale: Tensor

    def __init__(self, exposure: float | str | None = None) -> None:
        super().__init__()
        if isinstance(exposure, str):
            valid = exposure in ("row_sums", "learned")
        else:
            valid = exposure is None or 0 < exposure < math.inf
        if not valid:
            raise ValueError(
                "exposure must be None, a positive number, 'row_sums' or 'learned'; got "
                f"{exposure!r}."
            )
        self.exposure = exposure
        # Set by `start`.
        self.register_buffer("input_offset", torch.zeros(()))
        self.register_buffer("input_scale", torch.ones(()))
        if exposure == "learned":
            self.exponent = nn.Parameter(torch.tensor(1.0))

    def extra_repr(self) -> str:
        """Return the arguments, for ``repr``."""
        return "" if self.exposure is None else f"exposure={self.exposure!r}"

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"exposure": self.exposure}

    def check_rows(self, X: NDArray, first_row: int = 0) -> None:
        """Refuse entries that are negative or fractional."""
        refused = (X < 0) | (np.floor(X) != X)
        refused &= ~np.isnan(X)
        if not refused.any():
            return
        row, column = np.argwhere(refused)[0]
        raise ValueError(
            f"likelihood={self.name!r} needs counts, whole numbers of at least 0; "
            f"X[{first_row + row}, {column}] is {X[row, column]}. Give the counts themselves, not "
            "their logarithms or shares, mark a missing entry by NaN, or use "
            "likelihood='gaussian'."
        )

    def start(self, rows: Tensor) -> None:
        """Keep what encoders and size factors are relative to in the training rows."""
        if isinstance(self.exposure, str):
            means = rows.clamp_min(0).nanmean(0).nan_to_num(nan=0.0)
            self.register_buffer("column_means", means.clamp_min(_LEAST_MEAN))
        logs = self._log_counts(rows)
        self.input_offset = logs.nanmean(0).nan_to_num(nan=0.0)
        spread = (logs - self.input_offset).square().nanmean().sqrt()
        # All rows may be equal.
        self.input_scale = torch.where(spread > _LEAST_SPREAD, spread, 1.0)

    # --- exposure

    def size_factors(self, x: Tensor) -> Tensor:
        """Return what the rates of each row are multiplied by, (n, 1), or (1, 1) for all rows."""
        return self._log_exposure(x).exp()

    def _log_exposure(self, x: Tensor) -> Tensor:
        if not isinstance(self.exposure, str):
            return x.new_full((1, 1), self._log_common_exposure)
        relative = self._relative_sums(x).log()
        return self.exponent * relative if self.exposure == "learned" else relative

    def _relative_sums(self, x: Tensor) -> Tensor:
        """Return sums of rows, (n, 1), over those of the column means of the same entries."""
        mask, expected = observed(x), self.column_means
        if mask is not None:
            x, expected = torch.where(mask, x, 0), torch.where(mask, expected, 0)
        sums = x.sum(-1, keepdim=True).clamp_min(_LEAST_ROW_SUM)
        return sums / expected.sum(-1, keepdim=True)

    @property
    def _log_common_exposure(self) -> float:
        """Log of the exposure that means and samples have."""
        given = self.exposure
        return 0.0 if given is None or isinstance(given, str) else math.log(given)

    # --- what networks read and write

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return log(1 + x) less its column means, over one spread; NaN stays NaN.

        Where there are size factors, x is divided by the relative sum of its row before. Measured
        on held-out counts, this is better than counts, than log(1 + x), and than columns of equal
        spread.
        """
        return (self._log_counts(x) - self.input_offset) / self.input_scale

    def _log_counts(self, x: Tensor) -> Tensor:
        counts = x.clamp_min(0)
        if isinstance(self.exposure, str):
            counts = counts / self._relative_sums(counts)
        return counts.log1p()

    def output_of(self, mean: Tensor) -> Tensor:
        """Return the log rate of a mean, which is kept away from zero."""
        return mean.clamp_min(_LEAST_MEAN).log() - self._log_common_exposure

    # --- the distribution

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log probability of rows (n, D) given log rates (..., n, D), over observed entries."""
        mask = observed(x)
        log_mean = _bounded(output + self._log_exposure(x))
        if mask is None:
            return self._log_probs(x, log_mean).sum(-1)
        # Missing entries are filled before: NaN would enter the gradient.
        log_probs = self._log_probs(torch.where(mask, x, 0), log_mean)
        return torch.where(mask, log_probs, 0).sum(-1)

    def _log_probs(self, x: Tensor, log_mean: Tensor) -> Tensor:
        """Log probability of each entry."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """Mean counts at the exposure that was given, or at 1."""
        return _bounded(output + self._log_common_exposure).exp()


class PoissonLikelihood(_CountLikelihood):
    r"""Counts with a variance equal to their mean.

    Given a code, entry :math:`x_d` of a row is Poisson with mean :math:`e \exp(\eta_d)`, where
    :math:`\eta` is the decoder's output and e the exposure of the row.

    Parameters
    ----------
    exposure : float, {'row_sums', 'learned'} or None, default=None
        What the rates of a row are multiplied by. None: 1. A positive number: the same for all
        rows; rates are then per unit of exposure. 'row_sums': the *size factor* of the row, which
        is its sum over observed entries, divided by the sum of the training rows' column means
        over the same entries; the sum of a row of zeros is taken for 0.5. 'learned': the size
        factor to the power of a number that is trained and starts at 1.

    Attributes
    ----------
    column_means : Tensor of shape (n_features,)
        Column means of the training rows (of a sample of them, where there are many), at least
        0.0001. With 'row_sums' and 'learned' only.
    exponent : Parameter
        Power of the size factor, with 'learned' only.

    Notes
    -----
    Log probabilities have all their constants, :math:`-\log x!` included: the score of counts is
    a bound on the log of their probability. With 'row_sums' and 'learned' the size factor is
    computed from the row that is scored, and the score is that of a row *given* its size factor.
    It is not a bound on the log probability of the row, and cannot be compared with the score of
    a model without size factors, nor can that of 'row_sums' with that of 'learned'.
    Reconstructions and samples have the exposure that was given, and a size factor of 1.

    The mean grows linearly with the output, and no more exponentially, above :math:`e^{20}`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_vsc import SparseVAE
    >>> from sklearn_vsc.likelihoods import PoissonLikelihood
    >>> X = np.random.default_rng(0).poisson(3.0, (200, 6))
    >>> likelihood = PoissonLikelihood(exposure='row_sums')
    >>> model = SparseVAE(2, likelihood=likelihood, max_iter=5, random_state=0).fit(X)
    >>> model.inverse_transform(model.transform(X)).shape
    (200, 6)
    """

    name = "poisson"

    def _log_probs(self, x: Tensor, log_mean: Tensor) -> Tensor:
        # The distance from the best mean, x itself, so that large terms do not cancel.
        positive = x > 0
        count = torch.where(positive, x, 1)
        log_count = count.log()
        ratio = log_mean - log_count
        constant = _HALF_LOG_2PI + 0.5 * log_count + _stirling(count)
        log_prob = -count * (ratio.expm1() - ratio) - constant
        return torch.where(positive, log_prob, -log_mean.exp())

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw counts at the exposure that was given, or at 1."""
        return _poisson(self.mean(output), generator)


class NegativeBinomialLikelihood(_CountLikelihood):
    r"""Counts with a variance above their mean.

    Given a code, entry :math:`x_d` of a row is negative binomial with mean
    :math:`\mu_d = e \exp(\eta_d)`, where :math:`\eta` is the decoder's output and e the exposure
    of the row, and with variance :math:`\mu_d + \mu_d^2 / r_d`. The inverse dispersion
    :math:`r_d` of each feature is trained. Where it goes to infinity, counts become Poisson.

    Parameters
    ----------
    exposure : float, {'row_sums', 'learned'} or None, default=None
        What the rates of a row are multiplied by, as for :class:`PoissonLikelihood`.

    Attributes
    ----------
    inverse_dispersion : Tensor of shape (n_features,)
        Between 1e-6 and 1e6; it starts from the variance of each column of the training rows.
    column_means, exponent
        As for :class:`PoissonLikelihood`.

    Notes
    -----
    Constants, and scores with size factors, are as for :class:`PoissonLikelihood`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_vsc import SparseVAE
    >>> X = np.random.default_rng(0).negative_binomial(2, 0.4, (200, 6))
    >>> model = SparseVAE(2, likelihood='negative_binomial', max_iter=5, random_state=0).fit(X)
    >>> model.module_.likelihood.inverse_dispersion.shape
    torch.Size([6])
    """

    name = "negative_binomial"
    raw_inverse_dispersion: nn.Parameter

    def start(self, rows: Tensor) -> None:
        """Start the dispersions from the variances of the columns."""
        super().start(rows)
        counts = rows.clamp_min(0)
        with torch.no_grad():
            sizes = self.size_factors(counts)
            rates = counts / sizes
            means = rates.nanmean(0)
            variances = (rates - means).square().nanmean(0)
            # Poisson noise explains this part of the variance.
            poisson = means * torch.where(counts.isnan(), math.nan, 1 / sizes).nanmean(0)
            excess = (variances - poisson).clamp_min(torch.finfo(rows.dtype).tiny)
            least, most = _FIRST_INVERSE_DISPERSIONS
            found = (means.square() / excess).nan_to_num(nan=most).clamp(least, most)
            reach = math.log(_MOST_INVERSE_DISPERSION)
            raw = reach * (found.log() / reach).atanh()
        self.raw_inverse_dispersion = nn.Parameter(raw)

    @property
    def _log_inverse_dispersion(self) -> Tensor:
        reach = math.log(_MOST_INVERSE_DISPERSION)
        return reach * (self.raw_inverse_dispersion / reach).tanh()

    @property
    def inverse_dispersion(self) -> Tensor:
        """Inverse dispersion of each feature."""
        return self._log_inverse_dispersion.exp()

    def _log_probs(self, x: Tensor, log_mean: Tensor) -> Tensor:
        log_r = self._log_inverse_dispersion
        r = log_r.exp()
        # As in Loader (2000), distances from the best mean, so that large terms do not cancel.
        positive = x > 0
        count = torch.where(positive, x, 1)
        log_count, total = count.log(), count + r
        distance = count * _log_odds_ratio(count, r, log_mean, log_r)
        distance = distance - r * _log_ratio(count, r, log_mean, log_r)
        constant = _HALF_LOG_2PI + 0.5 * (log_count + (count / r).log1p())
        remainder = _stirling(total) - _stirling(r) - _stirling(count)
        of_zero = -r * softplus(log_mean - log_r)
        return torch.where(positive, remainder - distance - constant, of_zero)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw counts at the exposure that was given, or at 1."""
        r = self.inverse_dispersion.to(output).expand_as(output)
        return _poisson(self.mean(output) * sample_gamma(r, r, generator), generator)


def _bounded(log_mean: Tensor) -> Tensor:
    """Let the mean grow linearly with the output where it is very large."""
    beyond = (log_mean - _LINEAR_ABOVE).clamp_min(0)
    return log_mean.clamp_max(_LINEAR_ABOVE) + beyond.log1p()


def _poisson(mean: Tensor, generator: torch.Generator) -> Tensor:
    rate = mean.clamp_max(_LARGEST_DRAWN_MEAN).to(generator.device)
    return torch.poisson(rate, generator=generator).to(mean.device)


def _log_ratio(count: Tensor, r: Tensor, log_mean: Tensor, log_r: Tensor) -> Tensor:
    """Log of (count + r) / (mean + r), accurate near one and for any r."""
    mean = log_mean.exp()
    far = (count + r).log() - torch.logaddexp(log_mean, log_r)
    return _log1p((count - mean) / (mean + r), far)


def _log_odds_ratio(count: Tensor, r: Tensor, log_mean: Tensor, log_r: Tensor) -> Tensor:
    """Log of (1 + r / mean) / (1 + r / count), accurate near one and for any r."""
    # The limit keeps gradients finite; beyond it the other form is used.
    surplus = (count.log() - log_mean).clamp_max(_LARGEST_EXPONENT).expm1()
    far = softplus(log_r - log_mean) - (r / count).log1p()
    return _log1p(r / (count + r) * surplus, far)


def _log1p(value: Tensor, far: Tensor) -> Tensor:
    """Return log(1 + value), which ``far`` is too, more accurately where value is not small."""
    near = value.clamp(-0.5, 0.5).log1p()
    return torch.where(value.abs() < 0.5, near, far)


def _stirling(y: Tensor) -> Tensor:
    """Return the remainder of Stirling's formula for log Gamma(y), for y > 0."""
    small, inverse = y.clamp_max(_STIRLING_FROM), 1 / y.clamp_min(_STIRLING_FROM)
    square = inverse.square()
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - _HALF_LOG_2PI
    return torch.where(y < _STIRLING_FROM, direct, series)
