"""Constraints that parameters of several estimators share."""

from __future__ import annotations

from numbers import Real

from .._rows.compat import Interval

# Networks are trained in float32, in units of the model: beyond these limits the square of a
# number, or of its inverse, would soon underflow.
SCALE = Interval(Real, 1e-6, 1e6, closed="both")
WEIGHT = Interval(Real, 0, 1e6, closed="both")
DENSITY = Interval(Real, 1e-6, 1 - 1e-6, closed="both")
