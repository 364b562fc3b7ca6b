"""Saving fitted estimators without pickle: safetensors and JSON, and nothing that runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._base.coder import BaseSparseCoder
from .._construction import ModelBuilder
from .._neural import NOT_BUILT_WITH
from .._rows.array_api import on_host
from .._rows.arrays import seeded_generator
from .._training.dictionary_progress import SeenRows
from .folder import read_folder, write_folder
from .plain_data import Decoder, Encoder

# What fits set: of what type, or with dimensions that have one size each, or itself such a size.
# With a question mark: only some fits set it.
_SHARED: dict[str, Any] = {
    "n_features_in_": "D",
    "feature_names_in_?": ("D",),
    "components_": ("K", "D"),
    "component_usage_": ("K",),
    "n_dead_": Integral,
    "noise_variance_": Real,
    "history_": list,
    "n_iter_": "n_iter",
    "_sklearn_output_config?": dict,
}
_NEURAL = _SHARED | {
    "_n_components": "K",
    "_offset": ("D",),
    "_unit": Real,
    "_fill": ("D",),
    "_reads_mask": bool,
    "_built_with": dict,
    "_fixed_noise_variance?": Real,
    "_random_state": np.random.RandomState,
    "_evaluation_seed": Integral,
    "_n_uses": ("K",),
    "_n_rows_seen": Integral,
    "intercept_?": ("D",),
}
# Of relaxed gates: the model holds it, but not among its weights.
_TEMPERATURE = "_temperature"
_FITTED: dict[str, dict[str, Any]] = {
    "FISTADictionaryLearner": _SHARED
    | {
        "error_": ("n_iter",),
        "n_steps_": Integral,
        "_seed": Integral,
        "_draw_seed": Integral,
        "_seen": dict,
    },
    "ThresholdedVSC": _NEURAL | {"threshold_": Real, _TEMPERATURE + "?": Real},
    "SparseVAE": _NEURAL | {_TEMPERATURE + "?": Real},
    "SCVAE": _NEURAL | {"grid_shape_": tuple},
}
# Of the dict that stands for `SeenRows`.
_SEEN: dict[str, Any] = {
    "code_gram": ("K", "K"),
    "code_data": ("K", "D"),
    "idle": ("K",),
    "n_uses": ("K",),
    "n_rows": Integral,
    "noise_rows": Real,
}
# Code of the user's, left out; the last is where scikit-learn keeps its own callbacks.
_CALLBACKS = ("callback", "callbacks", "_skl_callbacks")
# What Adam keeps of a parameter: tensors of its shape, and a count of steps.
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
# Numbers that making a model of so many weights may take, at the least and for each weight.
_LEAST_WORK, _WORK_FACTOR = 2**26, 64


def save(estimator: BaseSparseCoder, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator into a folder; `BaseSparseCoder.save` documents it."""
    fitted = _FITTED.get(type(estimator).__name__)
    if fitted is None or type(estimator) is not _class_named(type(estimator).__name__):
        raise TypeError(
            f"save keeps {', '.join(_FITTED)}; {type(estimator).__name__} is a class of your own. "
            "Use pickle or joblib for it."
        )
    check_is_fitted(estimator)
    estimator._validate_params()
    estimator = on_host(estimator)
    parameters = estimator.get_params(deep=False)
    state = {name: value for name, value in vars(estimator).items() if name not in parameters}
    if left_out := [name for name in _CALLBACKS if parameters.get(name) or state.pop(name, None)]:
        warnings.warn(
            f"{' and '.join(left_out)} hold code and are not saved: set them again after load.",
            UserWarning,
            stacklevel=3,
        )
    parameters |= {name: None for name in left_out if name in parameters}
    if "_built_with" in state:
        state["_built_with"] = _plain_part(state["_built_with"], parameters)
    if "_seen" in state:
        state["_seen"] = vars(state["_seen"])
    family = getattr(state.get("module_"), "family", None)
    if family is not None and family.has_relaxed_gates:
        state[_TEMPERATURE] = family.temperature
    tensors = _tensors_of(state.pop("module_", None), state.pop("_optimizer_state", None))
    _check_names(state, fitted, f"The fitted {type(estimator).__name__}")
    encoder = Encoder(tensors)
    config = {
        "estimator": type(estimator).__name__,
        "written_by": _versions(),
        "parameters": {
            name: {"module": name} if isinstance(value, nn.Module) else encoder.encode(value, name)
            for name, value in parameters.items()
        },
        "fitted": {name: encoder.encode(value, name) for name, value in state.items()},
    }
    write_folder(path, config, encoder.tensors)


def load(path: str | os.PathLike[str], **modules: nn.Module) -> BaseSparseCoder:
    """Read a fitted estimator that its ``save`` has written.

    Nothing in the files is executed. Their checksum finds damage and careless changes; it is no
    signature, and does not say who wrote them.

    Parameters
    ----------
    path : str or path-like
        The folder.
    **modules : torch.nn.Module
        ``encoder`` and ``decoder``, where the estimator was fitted with a module in the place
        of a name: a module of the same architecture. It is left as it is; the weights that
        were trained come from the file.

    Returns
    -------
    estimator : FISTADictionaryLearner, ThresholdedVSC, SparseVAE or SCVAE
        It answers, and goes on learning, as the estimator that was saved.

    Raises
    ------
    ValueError
        Where the folder holds no model, one that is damaged or of a newer format, or another
        architecture than the modules given.
    TypeError
        Where a module is missing, or is given for a parameter that was none.
    OSError
        Where a file is missing or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import sklearn_vsc
    >>> from sklearn_vsc.datasets import make_sparse_coded
    >>> X = make_sparse_coded(n_samples=100, random_state=0)[0]
    >>> model = sklearn_vsc.SparseVAE(n_components=5, max_iter=2, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(Path(folder) / "vae")
    ...     again = sklearn_vsc.load(Path(folder) / "vae")
    >>> again.score(X) == model.score(X)
    True
    """
    try:
        config, tensors = read_folder(path)
        return _estimator_from(config, tensors, modules)
    except (ValueError, TypeError, OSError, MemoryError):
        raise
    # Files that were made up may fail anywhere.
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)} holds no model that can be read: {type(error).__name__}: {error}"
        ) from error


def _class_named(name: str) -> type[BaseSparseCoder]:
    """Return one of the four classes; no other name stands for anything."""
    # Here, as this package must be there first.
    from .. import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC

    classes = (FISTADictionaryLearner, ThresholdedVSC, SparseVAE, SCVAE)
    return {known.__name__: known for known in classes}[name]


def _versions() -> dict[str, str]:
    """Versions in use, for whoever looks into the file; nothing depends on them."""
    from .. import __version__

    return {"sklearn-vsc": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


# --- what is written


def _plain_part(built_with: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that the model was built with, without the user's modules."""
    plain = {}
    for name, value in built_with.items():
        now = parameters[name]
        if not isinstance(value, nn.Module) and not isinstance(now, nn.Module):
            plain[name] = value
        elif value is not now:
            raise ValueError(
                f"'{name}' has been replaced since fit, and is not that of the model: fit again, "
                "or set it back, before you save."
            )
    return plain


def _tensors_of(
    module: nn.Module | None, moments: Mapping[str, Mapping[str, Tensor]] | None
) -> dict[str, Tensor]:
    """Return the weights of a model, and what the optimiser keeps of each."""
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
    config: dict[str, Any], tensors: dict[str, Tensor], modules: dict[str, nn.Module]
) -> BaseSparseCoder:
    _check_names(config, ("estimator", "written_by", "parameters", "fitted"), "The configuration")
    name = config["estimator"]
    if name not in _FITTED:
        raise ValueError(f"The file names {name!r} as its estimator; known: {', '.join(_FITTED)}.")
    known, fitted = _class_named(name), _FITTED[name]
    n_weights = sum(tensor.numel() for tensor in tensors.values())
    decoder = Decoder(tensors)
    _check_names(config["parameters"], known().get_params(), f"The file of a {name}")
    parameters = _parameters_from(config["parameters"], decoder, modules)
    estimator = known(**parameters)
    estimator._validate_params()
    state = _state_from(config["fitted"], fitted, decoder, f"The file of a fitted {name}")
    estimator.set_output(**state.pop("_sklearn_output_config", {}))
    if issubclass(known, ModelBuilder):
        with _BoundedWork(_LEAST_WORK + _WORK_FACTOR * n_weights):
            _add_model(state, known, modules, tensors)
    if tensors:
        raise ValueError(f"The file holds tensors that no {name} has: {', '.join(tensors)}.")
    estimator.__dict__.update(state)
    return estimator


def _parameters_from(
    data: dict[str, Any], decoder: Decoder, modules: dict[str, nn.Module]
) -> dict[str, Any]:
    """Return the parameters, with the modules that the caller gives in their places."""
    wanted = [name for name, value in data.items() if value == {"module": name}]
    if missing := [name for name in wanted if not isinstance(modules.get(name), nn.Module)]:
        given = ", ".join(f"{name}=..." for name in missing)
        raise TypeError(
            f"The model was fitted with modules of your own, which the file does not hold: call "
            f"load(path, {given}) with a torch.nn.Module of the same architecture."
        )
    if extra := modules.keys() - set(wanted):
        raise TypeError(
            f"load was given {', '.join(sorted(extra))}, for which the saved model has no module "
            "of your own."
        )
    return {
        name: modules[name] if name in wanted else decoder.decode(value)
        for name, value in data.items()
    }


def _state_from(
    data: dict[str, Any], fitted: dict[str, Any], decoder: Decoder, what: str
) -> dict[str, Any]:
    """Return the fitted attributes, but for what the weights of a model are needed for."""
    _check_names(data, fitted, what)
    state = {name: decoder.decode(value) for name, value in data.items()}
    n_components, n_features = state["components_"].shape
    sizes = {"K": n_components, "D": n_features, "n_iter": len(state["history_"])}
    _check_values(state, fitted, sizes)
    for record in state["history_"]:
        if not isinstance(record, dict) or not all(isinstance(v, Real) for v in record.values()):
            raise ValueError("'history_' must hold dicts of numbers.")
    if "_seen" in state:
        _check_names(state["_seen"], _SEEN, "_seen")
        _check_values(state["_seen"], _SEEN, sizes)
        state["_seen"] = SeenRows(**state["_seen"])
    return state


def _check_names(found: Any, wanted: Iterable[str], what: str) -> None:
    """Refuse names that are too many or too few."""
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
        if isinstance(spec, tuple):
            shape = tuple(sizes[size] for size in spec)
            kinds = "O" if name == "feature_names_in_" else "fiub"
            right = isinstance(value, np.ndarray) and value.dtype.kind in kinds
            if not right or value.shape != shape:
                raise ValueError(f"'{name}' must be an array of shape {shape}.")
        elif isinstance(spec, str):
            if type(value) is not int or value != sizes[spec]:
                raise ValueError(f"'{name}' must be {sizes[spec]}; got {value!r}.")
        elif not isinstance(value, spec) or isinstance(value, bool) != (spec is bool):
            raise ValueError(f"'{name}' must be a {spec.__name__}; got {value!r}.")


# --- the model of a neural estimator


def _add_model(
    state: dict[str, Any],
    known: type[ModelBuilder],
    modules: dict[str, nn.Module],
    tensors: dict[str, Tensor],
) -> None:
    """Build the model that the parameters of the fit describe, with the weights of the file."""
    state["_built_with"] |= modules
    names = [name for name in known().get_params() if name not in NOT_BUILT_WITH]
    _check_names(state["_built_with"], names, "_built_with")
    builder = known(**state["_built_with"])
    builder._validate_params()
    builder.__dict__.update(state)
    generator = seeded_generator(0)
    # Rows decide what weights start from, and these will be overwritten: any will do.
    rows = torch.randn(2, state["n_features_in_"], generator=generator)
    model = builder._build(rows, generator)
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
    """Take the tensors whose names begin so out of the others."""
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
    """Stops parameters that describe a far larger model than the file has weights for."""

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
