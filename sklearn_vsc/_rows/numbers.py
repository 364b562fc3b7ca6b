"""Checks of numeric arguments of functions and methods.

The parameters of estimators are checked by scikit-learn against their constraints.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def is_number(value: Any, kind: type) -> bool:
    """Whether a value is a number of this kind; True and False do not count as numbers."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_number(
    value: Any,
    name: str,
    kind: type = Real,
    *,
    low: float = 0,
    high: float = math.inf,
    open_low: bool = False,
) -> None:
    """Raise an error unless the value is a finite number of this kind within bounds."""
    above = is_number(value, kind) and (value > low if open_low else value >= low)
    if not (above and value <= high and value < math.inf):
        what = "a whole number" if kind is Integral else "a finite number"
        if open_low:
            bounds = f"above {low}" + (f" and at most {high}" if high < math.inf else "")
        else:
            bounds = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
        raise ValueError(f"The '{name}' parameter must be {what} {bounds}; got {value!r}.")


def check_count(value: Any, name: str) -> int:
    """Return a number of draws, rows or epochs as an int; raise an error if it is not one."""
    check_number(value, name, Integral, low=1)
    return int(value)
