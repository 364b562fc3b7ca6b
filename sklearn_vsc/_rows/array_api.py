"""Array API support for public methods: results have the array type of the input.

Internally, everything is NumPy, or torch on the estimator's own device. scikit-learn's array API
dispatch is handled only in this module: fitted attributes follow the rows given to ``fit``, and
the result of a method follows its argument. Without dispatch, everything is NumPy.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.base import BaseEstimator
from torch import Tensor

from .arrays import to_numpy
from .compat import (
    check_same_namespace,
    foreign_to_numpy,
    get_namespace_and_device,
    max_precision_float_dtype,
)
from .threads import fair_share_of_cores

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Home:
    """Where arrays live: a namespace and one of its devices. None means NumPy."""

    xp: Any = None
    device: Any = None

    @classmethod
    def of(cls, array: Any) -> Self:
        """Return where results that follow ``array`` should live."""
        if not get_config()["array_api_dispatch"] or not _is_foreign(array):
            return cls()
        xp, _, device = get_namespace_and_device(array)
        return cls(xp, device)

    def bring(self, result: Any) -> Any:
        """Move an array, or all arrays in a result, to this namespace and device."""
        if self.xp is None:
            return result
        if is_dataclass(result) and not isinstance(result, type):
            parts = {part.name: self.bring(getattr(result, part.name)) for part in fields(result)}
            return replace(result, **parts)
        if issparse(result):
            raise ValueError(
                "sparse_output=True returns SciPy matrices, which can only hold NumPy arrays; set "
                f"sparse_output=False to get arrays of {self.xp.__name__}."
            )
        if not isinstance(result, np.ndarray):
            return result
        lowered = max_precision_float_dtype(self.xp, self.device) == self.xp.float32
        if lowered and result.dtype == np.float64:
            result = result.astype(np.float32)
        if not result.flags.writeable:
            # torch would share the memory, and does not support read-only memory.
            result = result.copy()
        return self.xp.asarray(result, device=self.device)


def to_host(array: Any) -> Any:
    """Convert an array of another namespace to NumPy; return anything else unchanged."""
    if isinstance(array, Tensor):
        # NumPy has no bfloat16, and numbers of 16 bits become float32 anyway.
        return to_numpy(array.float() if array.dtype == torch.bfloat16 else array)
    return foreign_to_numpy(array) if _is_foreign(array) else array


def on_host(estimator: BaseEstimator) -> Any:
    """Return the estimator with NumPy fitted arrays; a shallow copy if any must be converted."""
    foreign = {name: to_host(value) for name, value in _foreign_arrays(estimator).items()}
    if not foreign:
        return estimator
    twin = object.__new__(type(estimator))
    vars(twin).update(vars(estimator) | foreign)
    return twin


def converted(estimator: BaseEstimator, converter: Callable[[Any], Any]) -> Any:
    """Return a copy of the estimator with its fitted arrays converted."""
    other = copy.deepcopy(estimator)
    vars(other).update({k: converter(v) for k, v in _fitted_arrays(estimator).items()})
    return other


def follows_input(method: Method) -> Method:
    """Decorate a method of rows or codes: its results live where its argument lives."""
    signature = inspect.signature(method)
    first = list(signature.parameters)[1]

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        given = call.arguments[first]
        home = Home.of(given)
        _check_home(self, given, home, method.__name__)
        call.arguments |= {"self": on_host(self), first: at_the_door(given)}
        with fair_share_of_cores():
            return home.bring(method(*call.args, **call.kwargs))

    return cast(Method, wrapped)


def follows_fit(method: Method) -> Method:
    """Decorate a method without array arguments: its results live where fitted arrays live."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        home = Home.of(getattr(self, "components_", None))
        with fair_share_of_cores():
            return home.bring(method(on_host(self), *args, **kwargs))

    return cast(Method, wrapped)


def learns_from_input(method: Method) -> Method:
    """Decorate a method that learns from rows: fitted arrays live where the rows live."""

    @functools.wraps(method)
    def wrapped(self: Any, X: Any, y: Any = None) -> Any:
        home = Home.of(X)
        before = _foreign_arrays(self)
        hosted = {name: to_host(value) for name, value in before.items()}
        vars(self).update(hosted)
        try:
            with fair_share_of_cores():
                method(self, at_the_door(X), y)
        except BaseException:
            kept = vars(self)
            kept.update({k: v for k, v in before.items() if kept.get(k) is hosted[k]})
            raise
        if home.xp is not None:
            vars(self).update({k: home.bring(v) for k, v in _fitted_arrays(self).items()})
        return self

    return cast(Method, wrapped)


def at_the_door(array: Any) -> Any:
    """Bring an array that a user gave to NumPy; leave all else as it is."""
    # Without dispatch a tensor on a GPU raises an error, as in `numpy.asarray`.
    if isinstance(array, Tensor) and array.device.type != "cpu" and Home.of(array).xp is None:
        raise TypeError(
            f"Got a tensor on {array.device} while array API dispatch is disabled: move it to the "
            "CPU, or call sklearn.set_config(array_api_dispatch=True)."
        )
    return to_host(array)


def _check_home(estimator: Any, array: Any, home: Home, method: str) -> None:
    """Raise scikit-learn's error for a namespace other than that of ``fit``; devices may differ."""
    # Only what a fit has set: a dictionary that was given may be of any namespace.
    fitted = vars(estimator).get("components_")
    if fitted is not None and get_config()["array_api_dispatch"] and Home.of(fitted).xp != home.xp:
        check_same_namespace(array, estimator, attribute="components_", method=method)


def _is_foreign(value: Any) -> bool:
    """Whether this is an array, but not a NumPy array."""
    if isinstance(value, Tensor):
        return True
    return hasattr(value, "__array_namespace__") and not isinstance(value, (np.ndarray, np.generic))


def _foreign_arrays(estimator: BaseEstimator) -> dict[str, Any]:
    """Return arrays set by a fit that are not NumPy arrays, by name."""
    if any(map(_is_foreign, vars(estimator).values())):
        return {k: v for k, v in _fitted_arrays(estimator).items() if _is_foreign(v)}
    return {}


def _fitted_arrays(estimator: BaseEstimator) -> dict[str, NDArray]:
    """Return numeric arrays set by a fit, by name."""
    parameters = estimator.get_params(deep=False)
    return {
        name: value
        for name, value in vars(estimator).items()
        if name not in parameters
        and (_is_foreign(value) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub"))
    }
