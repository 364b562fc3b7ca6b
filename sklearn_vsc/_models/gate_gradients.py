"""Estimators of the gradient of E f(g) with respect to the log-odds of binary gates g.

Each function returns a surrogate of shape (n_draws, n_rows): its value is f at the drawn gates,
and its gradient the estimator. ``log_prob`` maps gates (n_draws, n_rows, n_components) to f of
shape (n_draws, n_rows); gradients through everything else that f holds (decoder, slab) pass by
the drawn gates as usual. All four are unbiased.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..networks._init import linear_layer

# How much of its running statistics a baseline keeps with each batch.
_NVIL_DECAY = 0.9

LogProb = Callable[[Tensor], Tensor]


def reinforce(log_prob: LogProb, logit: Tensor, argument: Tensor) -> Tensor:
    """Score-function estimator (Williams 1992), leave-one-out baseline for several draws."""
    gates = _hard(argument)
    value = log_prob(gates)
    signal = value.detach()
    n_draws = len(signal)
    if n_draws > 1:
        signal = (signal - signal.mean(0)) * (n_draws / (n_draws - 1))
    return value + _score(signal, gates, logit)


def nvil(
    log_prob: LogProb, logit: Tensor, argument: Tensor, baseline: NVILBaseline, x: Tensor
) -> Tensor:
    """Score-function estimator with a learned baseline of the row (Mnih and Gregor 2014)."""
    gates = _hard(argument)
    value = log_prob(gates)
    signal, regression = baseline(value.detach(), x)
    # The regression has value zero here: it only hands the baseline its own gradient.
    return value + _score(signal, gates, logit) - (regression - regression.detach())


def muprop(log_prob: LogProb, logit: Tensor, argument: Tensor) -> Tensor:
    """Score function less a Taylor baseline at the mean gates (Gu et al. 2016)."""
    gates = _hard(argument)
    value = log_prob(gates)
    mean = torch.sigmoid(logit)
    # One copy for each draw: f may depend on the other draws.
    at_mean, slope = _value_and_slope(log_prob, mean.expand_as(gates))
    taylor = at_mean + (slope * (gates - mean.detach())).sum(-1)
    # The baseline's own mean has a gradient, which is added back.
    through = (slope * mean).sum(-1)
    return value + _score(value.detach() - taylor, gates, logit) + (through - through.detach())


def rebar(
    log_prob: LogProb,
    logit: Tensor,
    argument: Tensor,
    conditional: Tensor,
    temperature: float,
    weight: float = 1.0,
) -> Tensor:
    """Score function with a relaxed, conditionally redrawn control variate (Tucker et al. 2017).

    ``conditional`` holds a second uniform for each gate; unbiased for any temperature and
    ``weight`` of the control variate.
    """
    gates = _hard(argument)
    value = log_prob(gates)
    off = torch.sigmoid(-logit)
    # The uniform behind the argument, given the gate it led to.
    uniform = torch.where(gates > 0, off + conditional * (1 - off), conditional * off)
    tiny = torch.finfo(uniform.dtype).eps
    redrawn = logit + torch.logit(uniform.clamp(tiny, 1 - tiny))
    relaxed, relaxed_again = (torch.sigmoid(a / temperature) for a in (argument, redrawn))
    _, slope = _value_and_slope(log_prob, relaxed)
    control, slope_again = _value_and_slope(log_prob, relaxed_again)
    through = weight * (slope * relaxed - slope_again * relaxed_again).sum(-1)
    return (
        value
        + _score(value.detach() - weight * control, gates, logit)
        + (through - through.detach())
    )


class NVILBaseline(nn.Module):
    """Prediction of a row's signal, around a running centre and in units of a running size.

    The signal is not divided by its size, as Mnih and Gregor (2014) also propose: the KL, in
    closed form here, would then outweigh it.
    """

    centre: Tensor
    size: Tensor
    n_seen: Tensor

    def __init__(self, n_features: int, generator: torch.Generator, n_hidden: int = 100) -> None:
        super().__init__()
        self.hidden = linear_layer(n_features, n_hidden, generator, gain=0.5**0.5)
        # Weights of zero: it starts by predicting nothing.
        self.output = linear_layer(n_hidden, 1, generator, gain=0.0)
        for name in ("centre", "size", "n_seen"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, signal: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the baseline leaves of the signal, and the squared error to regress."""
        predicted = self.output(torch.tanh(self.hidden(x))).squeeze(-1)
        # The statistics come from earlier batches: the signal must not explain itself.
        centre, size = self.centre.clone(), self.size.sqrt().clamp_min(1)
        # Relative to its size, the error has a gradient similar to the gradients of the model.
        left = signal - centre - size * predicted.detach()
        regression = 0.5 * ((signal - centre) / size - predicted).square()
        if self.training:
            # Those of the signal, not of what is left of it: a prediction is in units of the
            # size, and the two would drive each other off.
            self._note(signal.mean(), (signal - centre).square().mean())
        return left, regression

    @torch.no_grad()
    def _note(self, mean: Tensor, square: Tensor) -> None:
        """Move the running statistics towards the statistics of a batch."""
        self.n_seen += 1
        # A plain mean over the first batches, then one that forgets.
        share = torch.clamp(1 / self.n_seen, min=1 - _NVIL_DECAY)
        self.centre.lerp_(mean.to(self.centre), share)
        self.size.lerp_(square.to(self.size), share)


def _hard(argument: Tensor) -> Tensor:
    return (argument.detach() > 0).to(argument)


def _score(signal: Tensor, gates: Tensor, logit: Tensor) -> Tensor:
    """Zero in value; its gradient is the signal times that of log q(gates)."""
    log_q = torch.where(gates > 0, logsigmoid(logit), logsigmoid(-logit)).sum(-1)
    return signal * (log_q - log_q.detach())


def _value_and_slope(log_prob: LogProb, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Value of f and its derivative in the gates, both without gradients of their own."""
    with torch.enable_grad():
        leaf = gates.detach().requires_grad_()
        value = log_prob(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope
