"""Conversion of plain data to JSON and tensors and back; reading can only yield plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
# The only bit generator of the RandomState objects that scikit-learn creates.
_MERSENNE_TWISTER = "MT19937"
_N_KEYS = 624


@dataclass
class Encoder:
    """Turns values into JSON, and stores their arrays as tensors.

    A value that JSON cannot represent becomes an object with one key that names its type.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    random_states: list[np.random.RandomState] = field(default_factory=list)

    def encode(self, value: Any, name: str) -> Any:
        """Return JSON for a value; its arrays become tensors with names that start with this."""
        if isinstance(value, np.str_):
            return str(value)
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if type(value) in (list, tuple):
            items = [self.encode(item, f"{name}.{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if type(value) is dict and all(type(key) is str for key in value):
            return {"dict": {k: self.encode(item, f"{name}.{k}") for k, item in value.items()}}
        if isinstance(value, np.generic) and value.dtype.name in _DTYPES:
            return {"numpy": [value.dtype.name, self.encode(value.item(), name)]}
        if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
            return self._encode_array(np.asarray(value), name)
        if isinstance(value, np.random.RandomState):
            return self._encode_random_state(value, name)
        raise TypeError(
            f"'{name}' is a {type(value).__name__}, but 'save' only stores plain data: numbers, "
            "strings, lists, tuples, dicts, NumPy arrays and RandomState. Use pickle for anything "
            "else."
        )

    def _encode_array(self, array: NDArray, name: str) -> dict[str, Any]:
        if array.dtype == object and array.ndim == 1 and all(isinstance(v, str) for v in array):
            return {"strings": [str(v) for v in array]}
        if array.dtype.name not in _DTYPES:
            raise TypeError(f"'{name}' is an array of {array.dtype}, which 'save' cannot store.")
        # The memory order is stored too, since in another order sums may round differently.
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
        self.tensors[name] = torch.from_numpy(native)
        return {"array": [name, order]}

    def _encode_random_state(self, value: np.random.RandomState, name: str) -> dict[str, Any]:
        state = value.get_state(legacy=False)
        if state["bit_generator"] != _MERSENNE_TWISTER:
            raise TypeError(
                f"'{name}' is a RandomState with {state['bit_generator']}; 'save' only stores "
                f"those with {_MERSENNE_TWISTER}."
            )
        for index, known in enumerate(self.random_states):
            if known is value:
                return {"same_random_state": index}
        self.random_states.append(value)
        return {"random_state": self.encode(state, name)}


@dataclass
class Decoder:
    """Turns JSON back into values, removing their arrays from the tensors."""

    tensors: dict[str, Tensor]
    random_states: list[np.random.RandomState] = field(default_factory=list)

    def decode(self, data: Any) -> Any:
        """Return the value that was encoded."""
        if isinstance(data, list):
            return [self.decode(item) for item in data]
        if not isinstance(data, dict):
            return data
        ((kind, content),) = data.items()
        return _READERS[kind](self, content)

    def _tuple(self, items: Any) -> tuple[Any, ...]:
        return tuple(self.decode(item) for item in items)

    def _dict(self, content: Any) -> dict[str, Any]:
        return {key: self.decode(item) for key, item in content.items()}

    def _float(self, name: Any) -> float:
        return _NOT_FINITE[name]

    def _numpy(self, content: Any) -> np.generic:
        name, value = content
        return np.dtype(_known(name)).type(self.decode(value))

    def _array(self, content: Any) -> NDArray:
        name, order = content
        array = self.tensors.pop(name).numpy()
        _known(array.dtype.name)
        return np.array(array, order=order)

    def _strings(self, names: Any) -> NDArray:
        if not all(isinstance(name, str) for name in names):
            raise ValueError("an array of strings contains something else")
        return np.array(names, dtype=object)

    def _random_state(self, content: Any) -> np.random.RandomState:
        state = self.decode(content)
        keys, position = state["state"]["key"], state["state"]["pos"]
        if (keys.shape, keys.dtype) != ((_N_KEYS,), np.uint32) or not 0 <= position <= _N_KEYS:
            raise ValueError("a random state does not have the numbers of a Mersenne twister")
        random_state = np.random.RandomState()
        random_state.set_state(state)
        self.random_states.append(random_state)
        return random_state

    def _same_random_state(self, index: Any) -> np.random.RandomState:
        return self.random_states[index]


def _known(dtype_name: Any) -> str:
    if dtype_name not in _DTYPES:
        raise ValueError(f"{dtype_name!r} is not a data type that models contain")
    return dtype_name


_READERS = {
    "tuple": Decoder._tuple,
    "dict": Decoder._dict,
    "float": Decoder._float,
    "numpy": Decoder._numpy,
    "array": Decoder._array,
    "strings": Decoder._strings,
    "random_state": Decoder._random_state,
    "same_random_state": Decoder._same_random_state,
}
