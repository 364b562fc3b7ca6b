"""Checks of what the loaders are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any


def check_number(
    name: str,
    value: Any,
    kind: type,
    *,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
) -> None:
    """Refuse what is not a number of this kind within bounds."""
    above = is_number(value, kind) and (value > low if open_low else value >= low)
    if not (above and value <= high and value < math.inf):
        what = "a whole number" if kind is Integral else "a finite number"
        bound = f"above {low}" if open_low else f"from {low}"
        up_to = f" to {high}" if high < math.inf else ""
        raise ValueError(f"{name} must be {what} {bound}{up_to}, got {value!r}.")


def is_number(value: Any, kind: type) -> bool:
    """Whether a value is of this kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_option(name: str, value: Any, options: tuple[str | None, ...]) -> None:
    """Refuse what is not one of the options."""
    if not (value is None or isinstance(value, str)) or value not in options:
        shown = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {shown}, got {value!r}.")


def check_sides(name: str, value: Any) -> tuple[int, int]:
    """Return height and width of a picture, given as one side of a square or as both."""
    pair = value if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(is_number(side, Integral) and side >= 1 for side in pair):
        raise ValueError(
            f"{name} must be a whole number from 1, or (height, width), got {value!r}."
        )
    return int(pair[0]), int(pair[1])
