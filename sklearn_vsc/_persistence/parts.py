"""Parameters that are objects: modules, latent families and likelihoods.

Objects of the package are written as the name of their class and its arguments. Objects of the
user's own classes are not written: they are given to ``load`` again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .. import latents, likelihoods
from ..latents import LatentFamily
from ..likelihoods import Likelihood
from .plain_data import Decoder, Encoder

_KNOWN: dict[str, Any] = {
    name: found
    for module in (latents, likelihoods)
    for name, found in vars(module).items()
    if isinstance(found, type) and issubclass(found, (LatentFamily, Likelihood))
}


class Parts:
    """How parameters that are objects are written and read."""

    @staticmethod
    def is_part(value: Any) -> bool:
        """Whether a parameter is an object rather than plain data."""
        return isinstance(value, (nn.Module, LatentFamily))

    @classmethod
    def encoded(cls, value: Any, name: str, encoder: Encoder) -> Any:
        """Return a parameter as JSON."""
        if not cls.is_part(value):
            return encoder.encode(value, name)
        known = type(value).__name__
        if _KNOWN.get(known) is not type(value):
            return {"module": name}
        arguments = {
            key: encoder.encode(argument, f"{name}.{key}")
            for key, argument in value.arguments().items()
        }
        return {"object": {"class": known, "arguments": arguments}}

    @classmethod
    def decoded(
        cls, data: dict[str, Any], decoder: Decoder, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the parameters, with the objects that the caller gives in their places."""
        wanted = [name for name, value in data.items() if value == {"module": name}]
        if missing := [name for name in wanted if not cls.is_part(given.get(name))]:
            calls = ", ".join(f"{name}=..." for name in missing)
            raise TypeError(
                "The model was fitted with objects of your own classes, which the file does not "
                f"hold: call load(path, {calls}) with a torch.nn.Module of the same architecture, "
                "or the same prior or likelihood."
            )
        if extra := given.keys() - set(wanted):
            raise TypeError(
                f"load was given {', '.join(sorted(extra))}, for which the saved model has no "
                "object of a class of your own."
            )
        return {
            name: given[name] if name in wanted else cls._read(value, name, decoder)
            for name, value in data.items()
        }

    @staticmethod
    def _read(value: Any, name: str, decoder: Decoder) -> Any:
        if not isinstance(value, dict) or set(value) != {"object"}:
            return decoder.decode(value)
        written = value["object"]
        if not isinstance(written, dict) or set(written) != {"class", "arguments"}:
            raise ValueError(f"'{name}' is not an object that save writes.")
        known = _KNOWN.get(written["class"])
        if known is None:
            raise ValueError(f"'{name}' names {written['class']!r}, which load does not know.")
        arguments = {
            key: decoder.decode(argument) for key, argument in written["arguments"].items()
        }
        return known(**arguments)
