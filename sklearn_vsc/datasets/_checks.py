"""Validation of the loaders' parameters."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from .._rows.numbers import is_number


def check_option(name: str, value: Any, options: tuple[str | None, ...]) -> None:
    """Raise an error if the value is not one of the options."""
    if not (value is None or isinstance(value, str)) or value not in options:
        shown = ", ".join(repr(option) for option in options)
        raise ValueError(f"The '{name}' parameter must be one of {shown}; got {value!r}.")


def check_sides(name: str, value: Any) -> tuple[int, int]:
    """Return height and width, given either as a pair or as the side of a square."""
    pair = value if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(is_number(side, Integral) and side >= 1 for side in pair):
        raise ValueError(
            f"The '{name}' parameter must be a whole number of at least 1, or (height, width); "
            f"got {value!r}."
        )
    return int(pair[0]), int(pair[1])
