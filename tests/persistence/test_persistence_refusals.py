"""Loading files that differ from what `save` wrote raises one of three kinds of errors."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from sklearn.base import clone
from sklearn.datasets import load_digits

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC, load

DEAD = "ignore:.*atoms are used by no training row:UserWarning"
UNSOLVED = "ignore::sklearn.exceptions.ConvergenceWarning"
pytestmark = [pytest.mark.filterwarnings(DEAD), pytest.mark.filterwarnings(UNSOLVED)]

X = load_digits().data[:60] / 16
NET = {"max_iter": 2, "hidden_layer_sizes": (8,), "random_state": 0}
ESTIMATORS = {
    "fista": FISTADictionaryLearner(6, alpha=0.3, max_iter=2, random_state=0),
    "vsc": ThresholdedVSC(6, **NET),
    "vae": SparseVAE(6, **NET),
    "vae-lista": SparseVAE(6, **NET, encoder="lista", decoder="linear", n_unrolled=3),
    "scvae": SCVAE(6, **NET),
}
# The only kinds of errors that loading a bad file may raise.
REFUSED = (ValueError, TypeError, OSError)

_FITS: dict = {}


def fitted(name):
    """Return a fit that is made only once and must not be changed."""
    if name not in _FITS:
        _FITS[name] = clone(ESTIMATORS[name]).fit(X)
    return _FITS[name]


@pytest.fixture(params=["fista", "vsc", "vae", "scvae"])
def folder(request, tmp_path):
    fitted(request.param).save(tmp_path / "model")
    return tmp_path / "model"


def refuse(folder):
    """Check that loading raises one of these errors; return its message."""
    with pytest.raises(REFUSED) as caught:
        load(folder)
    return str(caught.value)


def rewrite(folder, change):
    """Change configuration and tensors, and correct the checksum."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    content = tensors_to_bytes(tensors)
    for name, value in {"tensors_size": len(content), "checksum": None}.items():
        # These entries belong at the end.
        config.pop(name)
        config[name] = value
    text = (json.dumps(config, indent=1) + "\n").encode()
    config["checksum"] = hashlib.sha256(text + content).hexdigest()
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "model.safetensors").write_bytes(content)


def test_the_checksum_can_be_corrected(folder):
    """Without this, tests that rewrite a file would pass for any change."""
    rewrite(folder, lambda config, tensors: config["parameters"].update(max_iter=77))
    assert load(folder).max_iter == 77


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_any_changed_byte_is_detected(folder, name):
    content = (folder / name).read_bytes()
    places = np.random.default_rng(0).integers(0, len(content), 60)
    for i, place in enumerate([*range(12), *places, len(content) - 1]):
        changed = bytearray(content)
        changed[place] ^= (1, 0x20, 0x80)[i % 3]
        (folder / name).write_bytes(changed)
        refuse(folder)
    (folder / name).write_bytes(content)
    load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_any_change_of_length_is_detected(folder, name):
    content = (folder / name).read_bytes()
    lengths = np.random.default_rng(1).integers(0, len(content), 60)
    for length in [*range(10), *lengths, len(content) - 1]:
        (folder / name).write_bytes(content[:length])
        refuse(folder)
    for more in (b"\0", b" ", b"\n", content):
        (folder / name).write_bytes(content + more)
        refuse(folder)


def test_a_change_in_the_layout_of_the_text_is_detected(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    assert "checksum" in refuse(folder)


def mixed_up(config, tensors):
    tensors["components_"] = tensors["components_"][:, :-1].clone()


def set_in(*keys, value):
    def change(config, tensors):
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


def drop_from(*keys):
    def change(config, tensors):
        for key in keys[:-1]:
            config = config[key]
        del config[keys[-1]]

    return change


def nested(config, tensors):
    value = []
    for _ in range(500):
        value = [value]
    config["parameters"]["verbose"] = value


CHANGES = {
    "class": (set_in("estimator", value="Pipeline"), "'Pipeline' as its estimator"),
    "class-path": (set_in("estimator", value="os.system"), "known: FISTADictionaryLearner"),
    "class-list": (set_in("estimator", value=["SparseVAE"]), ""),
    "key": (set_in("extra", value=1), "has extra"),
    "no-key": (drop_from("fitted"), "lacks fitted"),
    "parameter": (set_in("parameters", "sparsity", value=1), "has sparsity"),
    "no-parameter": (drop_from("parameters", "n_components"), "lacks n_components"),
    "other-type": (set_in("parameters", "max_iter", value="x"), "'max_iter' parameter"),
    "bad-parameter": (set_in("parameters", "max_iter", value=-1), "'max_iter' parameter"),
    "parameters": (set_in("parameters", value=[]), "lacks"),
    "attribute": (set_in("fitted", "fit", value=1), "has fit"),
    "dunder": (set_in("fitted", "__class__", value="x"), "has __class__"),
    "temperature": (set_in("fitted", "_temperature", value=0.5), "_temperature"),
    "no-attribute": (drop_from("fitted", "n_dead_"), "lacks n_dead_"),
    "type": (set_in("fitted", "n_dead_", value="many"), "'n_dead_' must be"),
    "size": (set_in("fitted", "n_features_in_", value=10**12), "'n_features_in_' must be 64"),
    "bool": (set_in("fitted", "n_features_in_", value=True), "'n_features_in_' must be 64"),
    "list": (set_in("fitted", "components_", value=[[1.0]]), ""),
    "names": (set_in("fitted", "feature_names_in_", value={"strings": [1] * 64}), "strings"),
    "few-names": (set_in("fitted", "feature_names_in_", value={"strings": ["a"]}), "(64,)"),
    "records": (set_in("fitted", "history_", value=[1]), ""),
    "tag": (set_in("parameters", "verbose", value={"pickle": "gASV"}), "pickle"),
    "tags": (set_in("parameters", "verbose", value={"tuple": [], "dict": {}}), ""),
    "dtype": (set_in("parameters", "verbose", value={"numpy": ["object", 1]}), "'object'"),
    "no-tensor": (set_in("fitted", "component_usage_", value={"array": ["x", "C"]}), ""),
    "path": (set_in("fitted", "component_usage_", value={"array": ["../../x", "C"]}), ""),
    "module": (
        set_in("parameters", "verbose", value={"module": "verbose"}),
        "objects of your own classes",
    ),
    "depth": (nested, ""),
    "shape": (mixed_up, ""),
    "tensor": (lambda config, tensors: tensors.update(x=torch.ones(2)), "has: x"),
    "output": (set_in("fitted", "_sklearn_output_config", value={"dict": {"fit": "x"}}), ""),
}


@pytest.mark.parametrize("folder", ["fista", "vae"], indirect=True)
@pytest.mark.parametrize("change", CHANGES)
def test_contents_are_checked_even_if_the_checksum_matches(folder, change):
    edit, message = CHANGES[change]
    rewrite(folder, edit)
    assert message in refuse(folder)


def test_every_value_is_checked(folder):
    """Each fitted attribute in turn gets an invalid value; each tensor is missing or too large."""
    files = {path: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(files[folder / "config.json"])
    changes = [set_in("fitted", name, value="x") for name in config["fitted"]]
    for i, (name, tensor) in enumerate(load_file(folder / "model.safetensors").items()):
        # An array among the parameters may have any shape.
        if name.split(".")[0] not in config["parameters"]:
            too_large = tensor.new_ones((*tensor.shape, 2))
            changes.append(put_in_place_of(name, too_large if i % 2 else None))
    for change in changes:
        rewrite(folder, change)
        refuse(folder)
        for path, content in files.items():
            path.write_bytes(content)
    load(folder)


def put_in_place_of(name, tensor):
    def change(config, tensors):
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor

    return change


@pytest.mark.parametrize(
    "setting, name, value",
    [
        ("vae", "hidden_layer_sizes", 10**9),
        ("vae", "hidden_layer_sizes", [10**5] * 100),
        ("vae", "hidden_layer_sizes", [1] * 300),
        ("vae", "hidden_layer_sizes", "many"),
        ("vae", "prior", "spike_slab"),
        ("vae", "encoder", "conv"),
        ("vae", "decoder", "linear"),
        ("vae-lista", "n_unrolled", 10**10),
        ("scvae", "latent_size", 10**10),
        ("scvae", "latent_weight", "x"),
    ],
)
def test_a_model_that_does_not_fit_the_weights_is_an_error(setting, name, value, tmp_path):
    """The error is immediate, even if the model would not fit into any machine's memory."""
    fitted(setting).save(tmp_path / "model")
    rewrite(tmp_path / "model", set_in("fitted", "_built_with", "dict", name, value=value))
    refuse(tmp_path / "model")


@pytest.mark.parametrize("version, message", [(3, "upgrade"), (0, "valid"), ("1", "valid")])
def test_unknown_format_versions_are_an_error(folder, version, message):
    rewrite(folder, set_in("format_version", value=version))
    assert message in refuse(folder)
