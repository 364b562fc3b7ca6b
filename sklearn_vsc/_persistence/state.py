"""Saving fitted estimators without pickle: safetensors and JSON, and nothing that runs.

Each class declares the attributes that it keeps, in ``_kept``. An estimator is described here by
that declaration alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._rows.array_api import on_host
from .._rows.user_warnings import warn_user
from .._version import __version__
from .folder import read_folder, write_folder
from .parts import Parts
from .plain_data import Decoder, Encoder

# Attributes that hold the user's code and are left out; the last is where scikit-learn keeps its
# own callbacks.
_CALLBACKS = ("callback", "callbacks", "_skl_callbacks")
# Temperature of relaxed gates: the model holds it, but not among its weights.
_TEMPERATURE = "_temperature"
# What Adam keeps for a parameter: tensors of its shape, and a count of steps.
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
# Numbers that building a model may compute, at least and for each weight in the file.
_LEAST_WORK, _WORK_FACTOR = 2**26, 64


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator into a folder; `BaseSparseCoder.save` documents it."""
    name, kept = type(estimator).__name__, type(estimator)._kept
    if type(estimator).__module__.partition(".")[0] != __name__.partition(".")[0]:
        raise TypeError(
            f"save keeps the estimators of sklearn_vsc; {name} is a class of your own. Use pickle "
            "or joblib for it."
        )
    check_is_fitted(estimator)
    estimator._validate_params()
    estimator = on_host(estimator)
    parameters = estimator.get_params(deep=False)
    state = {key: value for key, value in vars(estimator).items() if key not in parameters}
    if left_out := [key for key in _CALLBACKS if parameters.get(key) or state.pop(key, None)]:
        warn_user(
            f"{' and '.join(left_out)} hold code and are not saved: set them again after load."
        )
    parameters |= {key: None for key in left_out if key in parameters}
    if "_built_with" in state:
        state["_built_with"] = _plain_part(state["_built_with"], parameters)
    for key, (_, fields) in _records_in(kept).items():
        if key in state:
            record = {part: getattr(state[key], part) for part in fields}
            state[key] = record
    family = getattr(state.get("module_"), "family", None)
    if family is not None and family.has_relaxed_gates:
        state[_TEMPERATURE] = family.temperature
    tensors = _tensors_of(state.pop("module_", None), state.pop("_optimizer_state", None))
    _check_names(state, _with_temperature(kept), f"The fitted {name}")
    encoder = Encoder(tensors)
    config = {
        "estimator": name,
        "written_by": _versions(),
        "parameters": {
            key: Parts.encoded(value, key, encoder) for key, value in parameters.items()
        },
        "fitted": {key: encoder.encode(value, key) for key, value in state.items()},
    }
    write_folder(path, config, encoder.tensors)


def load(path: str | os.PathLike[str], classes: Mapping[str, type], parts: dict[str, Any]) -> Any:
    """Read a fitted estimator of one of these classes; `sklearn_vsc.load` documents it."""
    try:
        config, tensors = read_folder(path)
        return _estimator_from(config, tensors, classes, parts)
    except (ValueError, TypeError, OSError, MemoryError):
        raise
    # Files that were made up may fail anywhere.
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)} holds no model that can be read: {type(error).__name__}: {error}"
        ) from error


def _versions() -> dict[str, str]:
    """Versions in use, for people who read the file; nothing depends on them."""
    return {"sklearn-vsc": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


# --- what is written


def _plain_part(built_with: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that the model was built with, without modules and other objects."""
    plain = {}
    for name, value in built_with.items():
        now = parameters[name]
        if not Parts.is_part(value) and not Parts.is_part(now):
            plain[name] = value
        elif not Parts.is_same(value, now):
            raise ValueError(
                f"'{name}' has been replaced since fit, or changed, and is not the one that the "
                "model was built with: fit again, or set it back, before you save."
            )
    return plain


def _records_in(kept: Mapping[str, Any]) -> dict[str, tuple[type, dict[str, Any]]]:
    """Return the attributes that are records, with the class and the fields of each."""
    return {
        name.removesuffix("?"): spec
        for name, spec in kept.items()
        if isinstance(spec, tuple) and isinstance(spec[0], type)
    }


def _with_temperature(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a declaration with the temperature of relaxed gates, for classes with a model."""
    return {**kept, _TEMPERATURE + "?": Real} if "_built_with" in kept else dict(kept)


def _tensors_of(
    module: nn.Module | None, moments: Mapping[str, Mapping[str, Tensor]] | None
) -> dict[str, Tensor]:
    """Return the weights of a model, and the moments that the optimiser keeps for each."""
    found = {} if module is None else {f"module_.{k}": v for k, v in module.state_dict().items()}
    for parameter, kept in (moments or {}).items():
        found |= {f"optimizer.{parameter}.{key}": value for key, value in kept.items()}
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; save keeps tensors alone.")
    # Weights that share memory are written apart, as the format demands.
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


# --- what is read


def _estimator_from(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    classes: Mapping[str, type],
    parts: dict[str, Any],
) -> Any:
    _check_names(config, ("estimator", "written_by", "parameters", "fitted"), "The configuration")
    name = config["estimator"]
    if name not in classes:
        raise ValueError(f"The file names {name!r} as its estimator; known: {', '.join(classes)}.")
    known: Any = classes[name]
    n_weights = sum(tensor.numel() for tensor in tensors.values())
    decoder = Decoder(tensors)
    _upgrade_parameters(config, known._get_param_names())
    _check_names(config["parameters"], known._get_param_names(), f"The file of a {name}")
    parameters = Parts.decoded(config["parameters"], decoder, parts)
    estimator = known(**parameters)
    estimator._validate_params()
    kept = _with_temperature(known._kept)
    # A dictionary that is given is a parameter.
    given = {} if "components_" in kept else {"components_": estimator.components_}
    names = known._get_param_names()
    what = f"The file of a fitted {name}"
    state = _state_from(config["fitted"], kept, given, decoder, what, names)
    estimator.set_output(**state.pop("_sklearn_output_config", {}))
    if "_built_with" in kept:
        objects = {key: value for key, value in parameters.items() if Parts.is_part(value)}
        with _BoundedWork(_LEAST_WORK + _WORK_FACTOR * n_weights):
            _add_model(state, estimator, objects, tensors)
    if tensors:
        raise ValueError(f"The file holds tensors that no {name} has: {', '.join(tensors)}.")
    estimator.__dict__.update(state)
    return estimator


def _state_from(
    data: dict[str, Any],
    kept: dict[str, Any],
    given: dict[str, NDArray],
    decoder: Decoder,
    what: str,
    names: Iterable[str],
) -> dict[str, Any]:
    """Return the fitted attributes, except the model and what needs its weights."""
    state = {name: decoder.decode(value) for name, value in data.items()}
    _upgrade(state, kept, names)
    _check_names(state, kept, what)
    n_components, n_features = (state | given)["components_"].shape
    history = state.get("history_", [])
    sizes = {"K": n_components, "D": n_features, "n_iter": len(history)}
    records = _records_in(kept)
    plain = {name: spec for name, spec in kept.items() if name.removesuffix("?") not in records}
    _check_values(state, plain, sizes)
    for record in history:
        if not isinstance(record, dict) or not all(isinstance(v, Real) for v in record.values()):
            raise ValueError("'history_' must hold dicts of numbers.")
    for name, (record_class, fields) in records.items():
        if name in state:
            _check_names(state[name], fields, name)
            _check_values(state[name], fields, sizes)
            state[name] = record_class(**state[name])
    return state


# What version 0.1 did, in the parameters that came after it.
_LATER_PARAMETERS = {
    "solver": "gradient",
    "n_dense": 0,
    "row_scale": None,
    "positive_code": False,
    "refine_tol": 0.05,
}
# The same of estimators that code rows by the lasso.
_LATER_CODER_PARAMETERS = {"refit": False}
# The same of dictionary learners.
_LATER_LEARNER_PARAMETERS = {"forget": None, "n_init": 1, "warm_start": False, "density": None}


def _upgrade_parameters(config: dict[str, Any], names: Iterable[str]) -> None:
    """Add the parameters that version 0.1 did not have, where it wrote the file."""
    written = config["parameters"]
    if not isinstance(written, dict):
        return
    if "solver" in names and "_offset" in config["fitted"]:
        written = _LATER_PARAMETERS | written
    if "transform_alpha" in names:
        written = _LATER_CODER_PARAMETERS | written
    if "forget" in names:
        written = _LATER_LEARNER_PARAMETERS | written
    config["parameters"] = written


def _upgrade(state: dict[str, Any], kept: dict[str, Any], names: Iterable[str] = ()) -> None:
    """Convert the attributes that version 0.1 wrote to the current ones."""
    seen = state.get("_seen")
    if isinstance(seen, dict) and seen.pop("noise_rows", None) is not None:
        atoms = state["components_"]
        state["_seen"] = seen | {"n_placed": len(atoms), "recent": atoms[:0]}
    old = {"_offset": "offset", "_unit": "scale", "_fill": "fill", "_reads_mask": "reads_mask"}
    if "_units" in kept and "_offset" in state:
        if "_built_with" in state and "refine_tol" in names:
            state["_built_with"] = _LATER_PARAMETERS | state["_built_with"]
        state["_units"] = {new: state.pop(name) for name, new in old.items() if name in state}
        # These follow from the parameters or from the model.
        for name in ("_n_components", "_fixed_noise_variance", "threshold_", "grid_shape_"):
            state.pop(name, None)


def _check_names(found: Any, wanted: Iterable[str], what: str) -> None:
    """Refuse unknown and missing names."""
    known = {name.removesuffix("?"): name.endswith("?") for name in wanted}
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"{what} has {', '.join(unknown)}, which save and load do not know.")
    if missing := [name for name in known if name not in found and not known[name]]:
        raise ValueError(f"{what} lacks {', '.join(missing)}.")


def _check_values(values: dict[str, Any], wanted: dict[str, Any], sizes: dict[str, int]) -> None:
    """Refuse values of another type, shape or size."""
    for name, spec in ((name.removesuffix("?"), spec) for name, spec in wanted.items()):
        if name not in values:
            continue
        value = values[name]
        if isinstance(spec, list):
            # A number, or an array.
            spec = spec[0] if isinstance(value, Real) else spec[1]
        if isinstance(spec, tuple):
            # None: of any size.
            shape = tuple(size and sizes[size] for size in spec)
            kinds = "O" if name == "feature_names_in_" else "fiub"
            right = isinstance(value, np.ndarray) and value.dtype.kind in kinds
            if not right or not _fits(value.shape, shape):
                raise ValueError(f"'{name}' must be an array of shape {shape}.")
        elif isinstance(spec, str):
            if type(value) is not int or value != sizes[spec]:
                raise ValueError(f"'{name}' must be {sizes[spec]}; got {value!r}.")
        elif not isinstance(value, spec) or isinstance(value, bool) != (spec is bool):
            raise ValueError(f"'{name}' must be a {spec.__name__}; got {value!r}.")


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    sizes = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(size in (n, None) for n, size in sizes)


# --- the model of a neural estimator


def _add_model(
    state: dict[str, Any], estimator: Any, objects: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Build the model that the parameters of the fit describe, with the weights of the file."""
    model = estimator._rebuilt(state, objects)
    weights = _take(tensors, "module_.")
    double = any(weight.dtype == torch.float64 for weight in weights.values())
    model.to(torch.float64 if double else torch.float32).eval()
    _check_weights(weights, model.state_dict())
    model.load_state_dict(weights)
    temperature = state.pop(_TEMPERATURE, None)
    if model.family.has_relaxed_gates != (temperature is not None):
        raise ValueError(f"The file has a {_TEMPERATURE}, or lacks it, against its parameters.")
    if temperature is not None:
        model.family.temperature = temperature
    state["module_"] = model
    state["_optimizer_state"] = _moments_from(_take(tensors, "optimizer."), model)


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors whose names begin with ``prefix`` out of the others."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _check_weights(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    def outline(state: dict[str, Tensor], name: str) -> str:
        if name not in state:
            return "nothing"
        return (
            f"{str(state[name].dtype).removeprefix('torch.')} of shape {tuple(state[name].shape)}"
        )

    for name in wanted | weights:
        if (found := outline(weights, name)) != (expected := outline(wanted, name)):
            raise ValueError(
                f"The file has {found} for module_.{name}, where the parameters, or the modules "
                f"given to load, make it {expected}."
            )


def _moments_from(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, dict[str, Tensor]]:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(".")
        if parameter not in shapes or key not in _MOMENTS:
            raise ValueError(f"The file holds optimizer.{name}, which the model does not have.")
        if tensor.shape != (torch.Size() if key == "step" else shapes[parameter]):
            raise ValueError(f"optimizer.{name} has the wrong shape {tuple(tensor.shape)}.")
        moments.setdefault(parameter, {})[key] = tensor
    if any(len(kept) != len(_MOMENTS) for kept in moments.values()):
        raise ValueError(f"The file lacks some of {', '.join(_MOMENTS)} of a parameter.")
    return moments


class _BoundedWork(TorchFunctionMode):
    """Stop parameters that describe a far larger model than the file has weights for."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.left -= result.numel()
            if self.left < 0:
                raise ValueError("The parameters describe a larger model than the file holds.")
        return result
