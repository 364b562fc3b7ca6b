"""Ctrl-C that comes where it does no harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class HeldInterrupts:
    """Keeps Ctrl-C back while it would cut something in two, but for work that may be cut.

    At first it comes as always. From the first ``attempt`` on it comes inside attempts alone,
    and between them is noted in ``came``. That holds in the main thread, which alone hears
    Ctrl-C, and where the program has no handler of its own, which would be kept.

    Attributes
    ----------
    came : bool
        Whether Ctrl-C came, or work raised KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.came = False
        self._open = True
        self._replaced = False

    def __enter__(self) -> Self:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._replaced = True
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._replaced:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _on_signal(self, *_: Any) -> None:
        self.came = True
        if self._open:
            # A second one must not hit what cleans up after the first.
            self._open = False
            raise KeyboardInterrupt

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Do work that Ctrl-C may cut short, and return its result, or None then."""
        try:
            # Ctrl-C may hit the very moment at which such a mode is left.
            with torch.set_grad_enabled(torch.is_grad_enabled()), np.errstate():
                self._open = True
                if not self.came:
                    result = work()
                    self._open = False
                    return result
        except KeyboardInterrupt:
            self.came = True
        finally:
            self._open = False
        return None


@contextmanager
def unchanged_on_error(estimator: object) -> Iterator[None]:
    """Give an estimator back the attributes that it had, should something fail."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        # In one step, that no second interruption can cut in two.
        estimator.__dict__ = before
        raise
