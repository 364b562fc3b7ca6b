"""Checks of what families are made of, with messages that name the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of some strings."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        listed = ", ".join(repr(choice) for choice in known)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, *, or_low: bool = False
) -> None:
    """Refuse a value that is not a number between two bounds; ``or_low`` allows the lower one."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    # NaN is not above the lower bound.
    if not number or not (low < value < high or (or_low and value == low)):
        bracket = "[" if or_low else "("
        raise ValueError(f"{name} must be a number in {bracket}{low:g}, {high:g}); got {value!r}.")


def check_gradient(family: Any, gradient: str, known: Iterable[str]) -> None:
    """Refuse a gradient that a family does not have."""
    choices = list(known)
    if gradient not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"gradient={gradient!r} does not apply to prior={family!r}; use 'auto', or one of "
            f"{listed}."
        )
