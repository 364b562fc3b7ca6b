"""The weight of the l1 norm at which codes have a given density."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from numpy.typing import NDArray

from ..solvers.lasso.penalty import largest_alpha
from ..solvers.sparse_rows import dense
from .dictionary_fit import DictionaryFit
from .dictionary_progress import LearningOptions
from .interruption import HeldInterrupts

# Rows whose codes are counted, and numbers in them, at most.
_ROWS, _NUMBERS = 2048, 2**24
# How near the share of non-zero codes must come, relatively, and steps that take it there at most.
_NEAR, _STEPS = 2e-3, 40
# Short fits that bring alpha and dictionary together: at most, their passes, and the change of
# log alpha at which they end.
_ROUNDS, _PASSES, _SETTLED = 10, 6, 0.02


class DensityFit:
    """Finds ``alpha`` for a density while the dictionary is learned.

    Parameters
    ----------
    options : callable
        Returns the parameters of a fit with a given alpha.
    density : float
        Share of the codes that are to differ from zero.
    """

    def __init__(self, options: Callable[[float], LearningOptions], density: float) -> None:
        self._options = options
        self._density = density

    def start(self, X: NDArray, seed: int, interrupts: HeldInterrupts) -> LearningOptions:
        """Return the parameters of a fit that begins with alpha and the dictionary that suit."""
        options = self._options(1.0)
        fit = DictionaryFit(options, X, seed)
        alpha = self.alpha(fit)
        if options.keeps_dictionary:
            return self._options(alpha)
        dictionary = options.dict_init
        for _ in range(_ROUNDS):
            short = replace(
                self._options(alpha), dict_init=dictionary, max_iter=_PASSES, batch_size=None
            )
            fit = DictionaryFit(replace(short, callback=None, verbose=False), X, seed)
            fit.run(interrupts)
            if interrupts.came:
                break
            dictionary = fit.progress.learned().components
            before, alpha = alpha, self.alpha(fit)
            if abs(math.log(alpha / before)) < _SETTLED:
                break
        return replace(self._options(alpha), dict_init=dictionary)

    def alpha(self, fit: DictionaryFit) -> float:
        """Return the alpha at which the codes of the training rows have the density."""
        n_most = max(1, min(_ROWS, _NUMBERS // fit.rows.shape[1]))
        rows = dense(fit.rows[:: math.ceil(len(fit.rows) / n_most)])
        dictionary = fit.progress.epoch.dictionary
        highest = largest_alpha(rows, dictionary, positive=fit.options.positive_code)
        if highest == 0:
            return 1.0
        low, high = math.log(highest) - 30, math.log(highest)
        codes = None
        for _ in range(_STEPS):
            middle = (low + high) / 2
            lasso = self._options(math.exp(middle)).lasso
            codes = lasso.lasso(rows, dictionary, codes).codes
            share = float((codes != 0).double().mean())
            if abs(share / self._density - 1) < _NEAR:
                break
            low, high = (middle, high) if share > self._density else (low, middle)
        return math.exp((low + high) / 2)
