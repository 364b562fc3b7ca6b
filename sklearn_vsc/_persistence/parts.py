"""Parameters that are objects: modules, latent families and likelihoods.

Objects of the package are written as the name of their class and its arguments. Objects of the
user's own classes are not written: they are given to ``load`` again.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from .. import latents, likelihoods
from ..latents import LatentFamily
from ..likelihoods import Likelihood
from .plain_data import Decoder, Encoder

# What a file may name: nothing else is ever made from one.
_KNOWN: dict[str, Any] = {
    name: found
    for module in (latents, likelihoods)
    for name, found in vars(module).items()
    if isinstance(found, type)
    and issubclass(found, (LatentFamily, Likelihood))
    and not inspect.isabstract(found)
}


class Parts:
    """How parameters that are objects are written and read."""

    @staticmethod
    def is_part(value: Any) -> bool:
        """Whether a parameter is an object rather than plain data."""
        return isinstance(value, (nn.Module, LatentFamily))

    @staticmethod
    def is_same(value: Any, other: Any) -> bool:
        """Whether two parameters make the same model: families by their arguments."""
        if isinstance(value, LatentFamily):
            return type(value) is type(other) and repr(value) == repr(other)
        return value is other

    @classmethod
    def encoded(cls, value: Any, name: str, encoder: Encoder) -> Any:
        """Return a parameter as JSON."""
        if not cls.is_part(value):
            return encoder.encode(value, name)
        known = type(value).__name__
        if _KNOWN.get(known) is type(value):
            arguments = {
                key: encoder.encode(argument, f"{name}.{key}")
                for key, argument in value.arguments().items()
            }
            return {"object": {"class": known, "arguments": arguments}}
        # The weights of a module tell whether the right one is given to `load`; a family has none.
        return {"module": name} | ({"is": repr(value)} if isinstance(value, LatentFamily) else {})

    @classmethod
    def decoded(
        cls, data: dict[str, Any], decoder: Decoder, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the parameters, with the objects that the caller gives in their places."""
        wanted = {name: value for name, value in data.items() if cls._is_left_out(value, name)}
        if missing := [name for name in wanted if not cls.is_part(given.get(name))]:
            calls = ", ".join(f"{name}=..." for name in missing)
            raise TypeError(
                "The model was fitted with objects of your own classes, which the file does not "
                f"hold: call load(path, {calls}) with a torch.nn.Module of the same architecture, "
                "or the same prior or likelihood."
            )
        if extra := sorted(given.keys() - wanted.keys()):
            raise TypeError(
                f"load was given {', '.join(extra)}, for which the saved model has no object of a "
                "class of your own."
            )
        for name, value in wanted.items():
            if value.get("is") not in (None, repr(given[name])):
                raise ValueError(
                    f"The model was fitted with {name}={value['is']}, and load was given "
                    f"{name}={given[name]!r}: give it the same object."
                )
        return {
            name: given[name] if name in wanted else cls._read(value, name, decoder)
            for name, value in data.items()
        }

    @staticmethod
    def _is_left_out(value: Any, name: str) -> bool:
        """Whether a file has this in the place of an object of a user's class."""
        return (
            isinstance(value, dict)
            and value.get("module") == name
            and value.keys() <= {"module", "is"}
        )

    @staticmethod
    def _read(value: Any, name: str, decoder: Decoder) -> Any:
        if not isinstance(value, dict) or set(value) != {"object"}:
            return decoder.decode(value)
        written = value["object"]
        if not isinstance(written, dict) or set(written) != {"class", "arguments"}:
            raise ValueError(f"'{name}' is not an object that save writes.")
        class_name = written["class"]
        known = _KNOWN.get(class_name) if isinstance(class_name, str) else None
        if known is None:
            raise ValueError(f"'{name}' names {class_name!r}, which load does not know.")
        try:
            return known(**{k: decoder.decode(v) for k, v in written["arguments"].items()})
        # A file that was made up may have any arguments.
        except Exception as error:
            message = f"'{name}' cannot be a {class_name} of these arguments: {error}"
            raise ValueError(message) from error
