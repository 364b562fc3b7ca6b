"""Handling of Ctrl-C such that it does no harm."""

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
    """Defers Ctrl-C, except during work that may safely be interrupted.

    Before the first ``attempt``, Ctrl-C works as usual. From then on it only interrupts attempts,
    and between them it is recorded in ``came``. This applies only in the main thread, the only
    one that receives Ctrl-C, and only if the program has not installed its own handler, which is
    kept.

    Attributes
    ----------
    came : bool
        Whether Ctrl-C was pressed, or work raised KeyboardInterrupt.
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
            # A second Ctrl-C must not interrupt the cleanup after the first.
            self._open = False
            raise KeyboardInterrupt

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Do work that Ctrl-C may interrupt; return its result, or None if interrupted."""
        try:
            # Ctrl-C may strike just as the work leaves such a mode, so the modes are restored here.
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
    """Restore the attributes of an estimator if an error occurs."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        # A single assignment, which a second interruption cannot split.
        estimator.__dict__ = before
        raise
