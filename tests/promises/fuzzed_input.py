"""Strategies for bad and good input: parameters, data and method calls of the estimators."""

import math
import warnings
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import scipy.sparse as sp
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.utils._param_validation import (
    InvalidParameterError,
    StrOptions,
    validate_parameter_constraints,
)
from skorch.callbacks import EpochTimer

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC

# Small settings: a case takes a few hundredths of a second.
_NETWORK = {
    "n_components": 3,
    "hidden_layer_sizes": (4,),
    "max_iter": 2,
    "n_unrolled": 2,
    "score_draws": 2,
    "random_state": 0,
    "device": "cpu",
}
SMALL = {
    FISTADictionaryLearner: {
        "n_components": 3,
        "alpha": 0.1,
        "max_iter": 3,
        "transform_max_iter": 100,
        "random_state": 0,
        "device": "cpu",
    },
    ThresholdedVSC: _NETWORK,
    SparseVAE: _NETWORK,
    SCVAE: _NETWORK,
}
# Large values of these are valid, but take much time or memory.
_COSTLY = {
    "n_components",
    "max_iter",
    "n_unrolled",
    "n_draws",
    "n_refine",
    "score_draws",
    "hidden_layer_sizes",
    "latent_size",
    "n_jobs",
    "transform_max_iter",
}
_LARGEST = 8
# Candidate values for any parameter.
_FLOATS = [math.nan, math.inf, -math.inf, 1e300, 1e-300, 5e-324, 1e30, 1e-30, 1e5, 1e-5, 0.5, -0.5]
_INTEGERS = [-1, 0, 1, 2, 3, 2**31, 2**32, 2**63, 10**30]
_OTHERS = [
    None,
    True,
    False,
    "",
    "x",
    "auto",
    b"auto",
    (),
    [],
    {},
    {1},
    (1,),
    (1, 2),
    (2.0, 0.5),
    (0.0, 1.0),
    (1, 2, 3),
    [[1]],
    ("a", "b"),
    [None],
    range(3),
    slice(None),
    int,
    len,
    1j,
    object(),
    Decimal(1),
    np.float32(0.5),
    np.float64(math.nan),
    np.int8(2),
    np.uint64(3),
    np.bool_(True),
    np.str_("auto"),
    np.array(1),
    np.array(0.5),
    np.array([2, 3]),
    np.array([math.nan, 1]),
    np.array([[0.5, 1.0, 2.0]] * 3),
    np.ones((3, 3, 3)),
    np.array("auto"),
    pd.Series([2, 3]),
    torch.tensor(1.0),
    torch.tensor([1, 2]),
    np.random.RandomState(0),
    np.random.default_rng(0),
]
_DEVICES = ["cpu", "auto", "CPU", "cpu:0", "cpu:1", "cuda", "cuda:99", "cuda:-1", "gpu", "meta"]
_DEVICES += ["mps", "xpu", "cpu ", ":0", "0"]


class _TwoOutputs(torch.nn.Module):
    def forward(self, x):
        return x, x


class _Fails(torch.nn.Module):
    def forward(self, x):
        raise KeyError("no such layer")


def _modules(n_features, n_components):
    """A user's own networks, most of them with the wrong shape."""
    sizes = st.sampled_from([1, 2, 3, 4, n_features, n_components])
    linear = st.builds(torch.nn.Linear, sizes, sizes)

    def with_norm(layer):
        return torch.nn.Sequential(layer, torch.nn.BatchNorm1d(layer.out_features))

    return st.one_of(
        linear,
        linear.map(with_norm),
        st.builds(torch.nn.Identity),
        st.builds(torch.nn.Dropout),
        st.builds(torch.nn.Flatten, st.just(0)),
        st.builds(_TwoOutputs),
        st.builds(_Fails),
        st.just(torch.nn.Linear),
    )


def constraints_of(estimator_class):
    return estimator_class._parameter_constraints


def is_allowed(estimator_class, name, value):
    """Whether this parameter's own constraint holds; other parameters may still conflict."""
    try:
        constraints = {name: constraints_of(estimator_class)[name]}
        validate_parameter_constraints(constraints, {name: value}, estimator_class.__name__)
    except InvalidParameterError:
        return False
    return True


def _is_cheap(name, value):
    if name not in _COSTLY or isinstance(value, (str, bytes)):
        return True
    try:
        numbers = np.ravel(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        return True
    return not (np.abs(numbers) > _LARGEST).any()


def _values(estimator_class, name, n_features):
    """Values of one parameter: valid ones, near misses, and entirely wrong ones."""
    pools = [st.sampled_from(_FLOATS), st.sampled_from(_INTEGERS), st.sampled_from(_OTHERS)]
    for constraint in constraints_of(estimator_class)[name]:
        if isinstance(constraint, StrOptions):
            options = sorted(constraint.options)
            near = [f(option) for option in options for f in (str.upper, "{} ".format, np.str_)]
            pools += [st.sampled_from(options)] * 4 + [st.sampled_from(near)]
        elif constraint == "boolean":
            pools += [st.booleans()] * 2
        elif hasattr(constraint, "left"):
            ends = [end for end in (constraint.left, constraint.right) if end is not None]
            near = [value for end in ends for value in (end, np.nextafter(end, 9), end - 1)]
            least, most = constraint.left or 0, constraint.right or 1e300
            pools += [st.floats(0, 2), st.floats(least, most), st.integers(0, 4)]
            pools += [st.sampled_from([f(value) for value in near for f in (float, np.float64)])]
    if name == "device":
        pools += [st.sampled_from(_DEVICES)] * 3
    elif name == "image_shape":
        side = st.sampled_from([1, 2, n_features, 0, -1, 2.0, 2**40])
        pools += [st.permutations([1, 1, n_features]).map(tuple)] * 3 + [
            st.tuples(side, side, side)
        ]
    elif name in ("encoder", "decoder"):
        pools += [_modules(n_features, 3)] * 2
    elif name in ("code_init", "dict_init"):
        shape = st.tuples(*[st.sampled_from([3, n_features, 5])] * 2)
        pools += [shape.map(np.ones), shape.map(np.zeros)]
        pools += [hnp.arrays(np.float64, shape, elements=st.floats(width=64))]
    elif name == "callbacks":
        pools += [st.sampled_from([[], [object()], ["x"], [int], [("name", object())]])]
        timed = [EpochTimer], (EpochTimer(),), [("timed", EpochTimer())]
        pools += [st.sampled_from(timed)]
    return st.one_of(pools).filter(lambda value: _is_cheap(name, value))


# --- data

_SOUND_VALUES = ["uniform", "uniform", "normal", "binary", "constant column", "repeated", "shifted"]
_ODD_VALUES = [
    "zero",
    "one value",
    "missing entries",
    "row all missing",
    "column all missing",
    "all missing",
    "infinite",
    "minus infinite",
    *(1e300, 1e160, 1e40, 1e-40, 1e-160, 1e-300, 5e-324),
    "one huge",
    "one tiny",
    "columns far apart",
    "signed zeros",
    "anything",
]
_SOUND_DTYPES = [np.float64, np.float64, np.float32]
_ODD_DTYPES = [
    *(np.float16, np.longdouble, np.int64, np.int8, np.uint8, np.bool_, object),
    *(np.complex128, np.str_, np.bytes_, "datetime64[s]", "object strings", "object mixed"),
]
_SOUND_CONTAINERS = [
    *("array", "array", "array", "fortran", "reversed", "read-only", "strided", "pandas"),
    *("polars", "list"),
]
_ODD_CONTAINERS = [
    *("sparse", "sparse array", "masked", "tensor", "matrix", "ragged", "1-D", "3-D", "4-D"),
    *("scalar", "None", "string", "dict", "no rows", "no columns", "series", "iterator", "record"),
    *("other width", "byte order", "tuple of rows"),
]


@dataclass
class Data:
    """Rows of a case, and whether they are valid."""

    X: Any
    sound: bool
    values: Any
    dtype: Any
    container: str
    shape: tuple[int, int]

    def __repr__(self):
        words = f"{self.values}, {np.dtype(self.dtype) if self.sound else self.dtype}"
        return f"<{self.container} of {words}, {self.shape}: {self.X!r}>"


def _of_values(draw, values, n, d, rng):
    X = rng.uniform(size=(n, d))
    if isinstance(values, float):
        return X * values
    if values == "anything":
        return draw(hnp.arrays(np.float64, (n, d), elements=st.floats(width=64)))
    row, column = rng.integers(n), rng.integers(d)
    match values:
        case "normal":
            X = rng.standard_normal((n, d))
        case "binary":
            X = X.round()
        case "constant column":
            X[:, column] = 0.5
        case "repeated":
            X[:] = X[0]
        case "shifted":
            X = 100 + X
        case "zero":
            X[:] = 0
        case "one value":
            X[:] = X[0, 0]
        case "missing entries":
            X[rng.uniform(size=X.shape) < 0.3] = np.nan
        case "row all missing":
            X[row] = np.nan
        case "column all missing":
            X[:, column] = np.nan
        case "all missing":
            X[:] = np.nan
        case "infinite":
            X[row, column] = np.inf
        case "minus infinite":
            X[row, column] = -np.inf
        case "one huge":
            X[row, column] = draw(st.sampled_from([1e300, 1e160, 1e30, 1e10]))
        case "one tiny":
            X[:] = 0
            X[row, column] = draw(st.sampled_from([1e-10, 1e-30, 1e-160, 1e-300, 5e-324]))
        case "columns far apart":
            X *= np.logspace(-150, 150, d)
        case "signed zeros":
            X = np.copysign(0.0, X - 0.5)
    return X


def _as_dtype(X, dtype):
    with np.errstate(all="ignore"):
        if dtype == "object strings":
            return np.array([["a"] * X.shape[1]] * len(X), dtype=object)
        if dtype == "object mixed":
            X = X.astype(object)
            X[0, 0] = [1, 2]
            return X
        if dtype in (np.str_, np.bytes_):
            return X.astype(dtype)
        if np.dtype(dtype).kind in "iubM":
            X = np.nan_to_num(10 * X, nan=0, posinf=0, neginf=0).clip(-100, 100)
            return np.abs(X).astype(np.int64).astype(dtype)
        return X.astype(dtype)


def _contained(X, container):
    n, d = X.shape
    match container:
        case "fortran":
            return np.asfortranarray(X)
        case "reversed":
            return X[::-1, ::-1]
        case "read-only":
            X.flags.writeable = False
        case "strided":
            return np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3]
        case "pandas":
            return pd.DataFrame(X, columns=[f"c{i}" for i in range(d)])
        case "polars" if X.dtype.kind in "fiub" and X.dtype.itemsize in (1, 4, 8):
            return pl.DataFrame({f"c{i}": X[:, i].tolist() for i in range(d)}, strict=False)
        case "list":
            return X.tolist()
        case "tuple of rows":
            return tuple(map(tuple, X))
        case "sparse":
            return sp.csr_matrix(np.ones((n, d)))
        case "sparse array":
            return sp.coo_array(np.ones((n, d)))
        case "masked":
            return np.ma.masked_greater(X, 0.5) if X.dtype.kind in "fiu" else np.ma.array(X)
        case "tensor":
            return torch.ones(n, d)
        case "matrix":
            return np.asmatrix(X)
        case "ragged":
            return [[1.0] * (i + 1) for i in range(n + 1)]
        case "1-D":
            return X[0]
        case "3-D":
            return X[None]
        case "4-D":
            return X[:, None, None]
        case "scalar":
            return 1.0
        case "None":
            return None
        case "string":
            return "X"
        case "dict":
            return {"a": [1, 2]}
        case "no rows":
            return X[:0]
        case "no columns":
            return X[:, :0]
        case "series":
            return pd.Series(X[:, 0])
        case "iterator":
            return iter(X)
        case "record":
            return np.zeros(n, dtype=[("a", float), ("b", float)])
        case "other width":
            return np.hstack([X, X[:, :1]])
        case "byte order":
            return X.astype(X.dtype.newbyteorder()) if X.dtype.kind in "fiuc" else X
    return X


@st.composite
def data(draw, n_features=None, sound=None):
    """Rows as an array, a frame, or anything else; two in three are valid."""
    if sound is None:
        sound = draw(st.integers(0, 2)) > 0
    n = draw(st.integers(1, 12))
    d = draw(st.integers(1, 8)) if n_features is None else n_features
    values = draw(st.sampled_from(_SOUND_VALUES))
    dtype = draw(st.sampled_from(_SOUND_DTYPES))
    container = draw(st.sampled_from(_SOUND_CONTAINERS))
    if not sound:
        odd = draw(st.sampled_from(["values", "values", "dtype", "container", "all"]))
        if odd in ("values", "all"):
            values = draw(st.sampled_from(_ODD_VALUES))
        if odd in ("dtype", "all"):
            dtype = draw(st.sampled_from(_ODD_DTYPES))
        if odd in ("container", "all"):
            container = draw(st.sampled_from(_ODD_CONTAINERS))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    with warnings.catch_warnings(action="ignore"):
        # Some odd containers are deprecated; here only our handling of them matters.
        X = _contained(_as_dtype(_of_values(draw, values, n, d, rng), dtype), container)
    return Data(X, sound, values, dtype, container, (n, d))


# --- calls

FITTING = ("fit", "fit_transform", "partial_fit")
_OF_ROWS = ["transform", "score", "score_samples", "posterior", *FITTING]
_COUNTS = st.sampled_from([1, 2, 3, 0, -1, 1.0, 1.5, math.nan, "1", None, True, [2], np.int64(2)])


@dataclass
class Call:
    """A method with its arguments, and the arguments' names as they appear in error messages."""

    method: str
    arguments: tuple[Any, ...]
    names: tuple[str, ...] = ()
    data: Data | None = None


@st.composite
def _calls(draw, estimator_class, n_features):
    kinds = ["rows"] * 5 + ["draws", "draws", "sample", "codes", "codes", "save", "set"]
    match draw(st.sampled_from(kinds)):
        case "rows":
            rows = draw(data(draw(st.sampled_from([n_features, n_features, None]))))
            return Call(draw(st.sampled_from(_OF_ROWS)), (rows.X,), ("X",), rows)
        case "draws":
            rows, n_draws = draw(data(n_features)), draw(_COUNTS)
            return Call("sample_posterior", (rows.X, n_draws), ("X", "n_draws"), rows)
        case "sample":
            return Call("sample", (draw(_COUNTS),), ("n_samples",))
        case "codes":
            width = draw(st.sampled_from([3, 3, 3, 6, 1]))
            codes = draw(data(width))
            return Call("inverse_transform", (codes.X,), ("Z",), codes)
        case "save":
            path = draw(st.sampled_from(["model", "", "no/such/parent", "a\0b", None, 3, ["x"]]))
            return Call("save", (path,), ("path",))
        case _:
            name = draw(st.sampled_from(sorted(constraints_of(estimator_class))))
            value = draw(_values(estimator_class, name, n_features))
            return Call("set_params", (name, value))


@dataclass
class Case:
    """An estimator's parameters, the call that fits it, and the calls that follow."""

    estimator_class: type
    changed: dict[str, Any]
    fit: Call
    calls: list[Call] = field(default_factory=list)

    def make(self):
        return self.estimator_class(**SMALL[self.estimator_class] | self.changed)


@st.composite
def cases(draw, estimator_class):
    """Mostly one or two parameters that differ from their defaults, or an odd X; sometimes many."""
    rows = draw(data())
    n_features = rows.shape[1]
    names = sorted(constraints_of(estimator_class))
    n_changed = draw(st.sampled_from([0, 1, 1, 1, 1, 2, 2, 3, 6, 12]))
    picked = draw(st.lists(st.sampled_from(names), min_size=n_changed, max_size=n_changed))
    changed = {name: draw(_values(estimator_class, name, n_features)) for name in picked}
    if n_changed > 3 or draw(st.booleans()):
        # A value of the wrong type would hide the effect of the others.
        changed = {k: v for k, v in changed.items() if is_allowed(estimator_class, k, v)}
    if "conv" in [v for v in changed.values() if isinstance(v, str)] and draw(st.booleans()):
        changed["image_shape"] = (1, 1, n_features)
    method = draw(st.sampled_from(["fit"] * 6 + ["partial_fit"] * 2 + ["transform"]))
    calls = draw(st.lists(_calls(estimator_class, n_features), max_size=3))
    return Case(estimator_class, changed, Call(method, (rows.X,), ("X",), rows), calls)
