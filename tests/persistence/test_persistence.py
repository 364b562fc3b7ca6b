"""Estimators that were saved and loaded, or pickled, are unchanged to the last bit."""

import copy
import io
import json
import os
import pickle
import struct
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors import safe_open
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback
from torch import nn

import sklearn_vsc
from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC, load

DEAD = "ignore:.*atoms are used by no training row:UserWarning"
UNSOLVED = "ignore::sklearn.exceptions.ConvergenceWarning"
pytestmark = [pytest.mark.filterwarnings(DEAD), pytest.mark.filterwarnings(UNSOLVED)]

X = load_digits().data[:60] / 16
NEW = load_digits().data[60:75] / 16
K = 6
NET = {"max_iter": 2, "hidden_layer_sizes": (8,), "random_state": 0}
IMAGE = {"encoder": "conv", "image_shape": (1, 8, 8)}


def fista(**params):
    usual = {"n_components": K, "alpha": 0.3, "max_iter": 4, "random_state": 0}
    return FISTADictionaryLearner(**usual | params)


SETTINGS = {
    "fista": fista(),
    "fista-online": fista(batch_size=16, n_components=None, random_state=np.random.RandomState(3)),
    "fista-start": fista(
        dict_init=np.asfortranarray(X[:K]), code_init=np.zeros((60, K), np.float32), split_sign=True
    ),
    "fista-numpy": fista(alpha=np.float32(0.3), max_iter=np.int64(3), positive_code=np.True_),
    "fista-lars": fista(fit_algorithm="lars", transform_algorithm="omp", max_no_improvement=None),
    "vsc": ThresholdedVSC(K, **NET),
    "vsc-mlp": ThresholdedVSC(K, **NET, encoder="mlp", decoder="mlp", n_draws=2),
    "vsc-published": ThresholdedVSC(
        K,
        **NET,
        threshold=0.25,
        threshold_prior=None,
        gradient="straight_through",
        kl="base",
        objective="max_elbo",
        noise_variance=0.1,
    ),
    "vsc-gaussian": ThresholdedVSC(
        K, **NET, prior="gaussian", threshold_prior="gamma", gradient="subgradient"
    ),
    "vae": SparseVAE(K, **NET),
    "vae-none": SparseVAE(**NET | {"hidden_layer_sizes": [], "random_state": None}),
    "vae-exact": SparseVAE(K, **NET, prior="spike_slab", decoder="linear", score_method="iwae"),
    "vae-nvil": SparseVAE(
        K, **NET, prior="spike_slab", slab="laplace", gradient="nvil", temperature=(1.0, 0.1)
    ),
    "vae-lista": SparseVAE(K, **NET, encoder="lista", decoder="linear", n_unrolled=3),
    "vae-cauchy": SparseVAE(
        K, **NET, prior="cauchy", output_activation="sigmoid", transform_method="sample"
    ),
    "vae-bernoulli": SparseVAE(
        K,
        **NET | {"random_state": np.random.RandomState(1)},
        likelihood="bernoulli",
        transform_method="mean",
    ),
    "vae-conv": SparseVAE(K, **NET, **IMAGE, decoder="conv", early_stopping=True),
    "vae-sizes": SparseVAE(K, **NET | {"hidden_layer_sizes": np.array([8, 5])}, density=0.25),
    "scvae": SCVAE(K, **NET),
    "scvae-weight": SCVAE(K, **NET, latent_size=4, latent_weight=0.5, noise_variance=0.2),
}
FOUR = ("fista", "vsc", "vae", "scvae")

each_setting = pytest.mark.parametrize("setting", SETTINGS)
each_class = pytest.mark.parametrize("setting", FOUR)

_FITS: dict = {}


def fitted(setting, dtype=np.float64):
    """A fit that is made once and returned as a copy."""
    key = setting, dtype
    if key not in _FITS:
        _FITS[key] = copy.deepcopy(SETTINGS[setting]).fit(X.astype(dtype))
    return copy.deepcopy(_FITS[key])


def saved(model, folder, **modules):
    model.save(folder)
    return load(folder, **modules)


def assert_same(one, other, where="estimator"):
    """Check that types, values to the last bit, and all attributes are equal."""
    assert type(one) is type(other), where
    if isinstance(one, np.random.RandomState):
        one, other = one.get_state(legacy=False), other.get_state(legacy=False)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.device == other.device, where
        assert one.requires_grad == other.requires_grad and one.stride() == other.stride(), where
        one, other = one.detach().numpy(), other.detach().numpy()
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
        assert one.flags.f_contiguous == other.flags.f_contiguous, where
        assert other.flags.writeable, where
        assert_array_equal(one, other, err_msg=where, strict=True)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            # torch numbers its hooks: ids, not values.
            if not str(key).endswith("_hooks"):
                assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    elif isinstance(one, float):
        assert struct.pack("d", one) == struct.pack("d", other), where
    elif (hasattr(one, "__dict__") and not callable(one)) or isinstance(one, nn.Module):
        parts = [{k: v for k, v in vars(part).items() if k not in CACHED} for part in (one, other)]
        assert_same(*parts, where)
    else:
        assert one == other, where


# Properties that families compute on first use.
CACHED = ("prior_inclusion", "prior_variance", "slab_scale")


def assert_same_answers(one, other, rows):
    codes = one.transform(rows)
    posteriors = [vars(model.posterior(rows)) for model in (one, other)]
    for moment, values in posteriors[0].items():
        assert_array_equal(posteriors[1][moment], values, strict=True)
    assert_array_equal(other.transform(rows), codes, strict=True)
    assert_array_equal(other.inverse_transform(codes), one.inverse_transform(codes), strict=True)
    assert_array_equal(other.score_samples(rows), one.score_samples(rows), strict=True)
    draws = one.sample_posterior(rows, 3)
    assert_array_equal(other.sample_posterior(rows, 3), draws, strict=True)
    assert other.score(rows) == one.score(rows)
    if one.random_state is not None:
        # Each call draws from a RandomState, and both must stay in the same state.
        for _ in range(2):
            assert_array_equal(other.sample(4), one.sample(4), strict=True)


# ------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    "setting, dtype",
    [*((setting, np.float32) for setting in SETTINGS), *((name, np.float64) for name in FOUR)],
)
def test_a_loaded_estimator_equals_the_saved_one(setting, dtype, tmp_path):
    model = fitted(setting, dtype)
    before = copy.deepcopy(model)
    again = saved(model, tmp_path / "model")
    # Saving leaves the estimator unchanged, and loading uses no generator except its own.
    assert_same(model, before)
    assert_same(again, model)
    assert_same_answers(model, again, NEW.astype(dtype))


@each_setting
def test_training_continues_identically(setting, tmp_path):
    model = fitted(setting)
    again = saved(model, tmp_path / "model")
    for step in range(2):
        for estimator in (model, again):
            estimator.partial_fit(X[30 * step : 30 * step + 30])
        forget_durations(model, again)
        assert_same(again, model)
    if "warm_start" in model.get_params():
        for estimator in (model, again):
            estimator.set_params(warm_start=True).fit(X)
        forget_durations(model, again)
        assert_same(again, model)
    assert_same_answers(model, again, NEW)


def forget_durations(*models):
    for model in models:
        for record in model.history_:
            record["duration"] = 0.0


@each_class
def test_a_fit_on_incomplete_rows_treats_them_as_before(setting, tmp_path):
    incomplete, new = X.copy(), NEW.copy()
    incomplete[::2, 5] = new[:, 20] = np.nan
    estimator = clone(SETTINGS[setting]).fit(incomplete)
    again = saved(estimator, tmp_path / "model")
    for rows in (NEW, new):
        assert_same(estimator.transform(rows), again.transform(rows))
        assert_same(estimator.score(rows), again.score(rows))
    assert_same(
        estimator.partial_fit(incomplete).components_, again.partial_fit(incomplete).components_
    )


def test_a_grid_of_codes(tmp_path):
    model = SCVAE(K, **NET | {"max_iter": 1}, image_shape=[1, 8, 8])
    model.fit(X[:10].astype(np.float32))
    again = saved(model, tmp_path / "model")
    assert_same(again, model)
    assert_same_answers(model, again, NEW[:2].astype(np.float32))
    forget_durations(model.partial_fit(X[:5]), again.partial_fit(X[:5]))
    assert_same(again, model)


@each_class
def test_saving_after_partial_fit_alone(setting, tmp_path):
    model = clone(SETTINGS[setting]).partial_fit(X[:20]).partial_fit(X[20:40])
    again = saved(model, tmp_path / "model")
    forget_durations(model.partial_fit(X[40:]), again.partial_fit(X[40:]))
    assert_same(again, model)


@each_class
def test_refitting_gives_the_same_result(setting, tmp_path):
    model = fitted(setting)
    again = saved(model, tmp_path / "model")
    forget_durations(model.fit(NEW), again.fit(NEW))
    assert_same(again, model)


@each_class
def test_a_shared_random_state_stays_shared(setting, tmp_path):
    model = clone(SETTINGS[setting]).set_params(random_state=np.random.RandomState(5)).fit(X)
    again = saved(model, tmp_path / "model")
    shared = [name for name, value in vars(model).items() if value is model.random_state]
    assert shared == [name for name, value in vars(again).items() if value is again.random_state]
    assert (setting == "fista") == (shared == ["random_state"])
    assert_same_answers(model, again, NEW)
    # The two estimators do not share it.
    assert again.random_state is not model.random_state


@each_class
def test_feature_names_and_output_of_frames(setting, tmp_path):
    table = pd.DataFrame(X).add_prefix("pixel")
    model = clone(SETTINGS[setting]).set_output(transform="pandas").fit(table)
    again = saved(model, tmp_path / "model")
    assert_same(again, model)
    pd.testing.assert_frame_equal(again.transform(table), model.transform(table))
    with pytest.raises(ValueError, match="feature names"):
        again.transform(table.rename(columns={"pixel0": "other"}))


@each_class
def test_unfitted_estimators_are_not_saved(setting, tmp_path):
    with pytest.raises(NotFittedError):
        clone(SETTINGS[setting]).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@each_class
def test_loading_leaves_global_generators_alone(setting, tmp_path):
    fitted(setting).save(tmp_path / "model")
    before = np.random.get_state(), torch.get_rng_state()
    load(tmp_path / "model")
    assert_array_equal(np.random.get_state()[1], before[0][1])
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("setting", ["vsc", "vae-exact", "vae-nvil", "scvae"])
def test_parameters_set_after_fit_are_kept_and_the_model_is_unchanged(setting, tmp_path):
    model = fitted(setting)
    changes = {"n_components": 3, "noise_variance": 0.3, "hidden_layer_sizes": (4, 4)}
    changes |= {"latent_size": 2} if setting == "scvae" else {"prior_scale": 2.0, "density": 0.3}
    model.set_params(**changes, n_unrolled=2)
    again = saved(model, tmp_path / "model")
    assert_same(again, model)
    assert_same_answers(model, again, NEW)
    forget_durations(model.partial_fit(X), again.partial_fit(X))
    assert_same(again, model)
    assert_same(saved(again, tmp_path / "model"), model)


# ------------------------------------------------------------------------ user-defined modules


class Squeezing(nn.Module):
    """Two layers that share weights, and a buffer that training moves."""

    def __init__(self, width=16):
        super().__init__()
        self.first = nn.Linear(64, width)
        self.norm = nn.BatchNorm1d(width)
        self.tied = nn.Linear(64, width)
        self.tied.weight = self.first.weight

    def forward(self, x):
        return self.norm(torch.relu(self.first(x))) + self.tied(x)


def test_modules_are_passed_to_load(tmp_path):
    torch.manual_seed(0)
    encoder, decoder = Squeezing(), nn.Sequential(nn.Linear(K, 64), nn.Sigmoid())
    model = SparseVAE(K, **NET, encoder=encoder, decoder=decoder, warm_start=True).fit(X)
    model.save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"load\(path, decoder=..., encoder=...\)"):
        load(tmp_path / "model")
    with pytest.raises(TypeError, match=r"load\(path, decoder=...\)"):
        load(tmp_path / "model", encoder=Squeezing(), decoder="mlp")
    with pytest.raises(TypeError, match="given likelihood"):
        load(tmp_path / "model", encoder=encoder, decoder=decoder, likelihood=encoder)
    new = {"encoder": Squeezing(), "decoder": nn.Sequential(nn.Linear(K, 64), nn.Sigmoid())}
    before = copy.deepcopy(new)
    again = load(tmp_path / "model", **new)
    assert again.encoder is new["encoder"] and again.decoder is new["decoder"]
    for name, module in new.items():
        assert_same(module.state_dict(), before[name].state_dict())
    assert_same(again.module_, model.module_)
    assert_same_answers(model, again, NEW)
    for estimator in (model, again):
        estimator.partial_fit(X[:30]).fit(X)
    assert_same(again.module_, model.module_)
    assert_same_answers(model, again, NEW)


@pytest.mark.parametrize(
    "other, problem",
    [
        (Squeezing(8), r"encoder\.1\.first\.weight"),
        (nn.Linear(64, 16), "encoder"),
        (nn.Linear(63, 16), r"must map \(n, 64\)"),
    ],
)
def test_another_architecture_is_refused(other, problem, tmp_path):
    torch.manual_seed(0)
    SparseVAE(K, **NET, encoder=Squeezing()).fit(X).save(tmp_path / "model")
    with pytest.raises(ValueError, match=problem):
        load(tmp_path / "model", encoder=other)


def test_a_module_that_was_replaced_is_not_saved(tmp_path):
    model = SparseVAE(K, **NET, encoder=nn.Linear(64, 5)).fit(X)
    for other in (nn.Linear(64, 5), "mlp"):
        with pytest.raises(ValueError, match="'encoder' has been replaced since fit"):
            model.set_params(encoder=other).save(tmp_path / "model")
    with pytest.raises(ValueError, match="'decoder' has been replaced since fit"):
        fitted("vae").set_params(decoder=nn.Linear(K, 64)).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- what is not saved


class Counting(Callback):
    pass


def test_callbacks_are_left_out_with_a_warning(tmp_path):
    model = fitted("vae").set_params(callbacks=[Counting()])
    with pytest.warns(UserWarning, match="callbacks hold code and are not saved"):
        model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.callbacks is None
    assert_same(again, model.set_params(callbacks=None))
    model = fitted("fista").set_params(callback=print)
    model._skl_callbacks = [Counting()]
    with pytest.warns(UserWarning, match="callback and _skl_callbacks hold code"):
        model.save(tmp_path / "model")
    assert model._skl_callbacks and model.callback is print
    assert load(tmp_path / "model").callback is None
    # None, and an empty list, are plain data.
    model = fitted("vae").set_params(callbacks=[])
    assert saved(model, tmp_path / "model").callbacks == []


class Mine(SparseVAE):
    pass


def test_what_is_not_plain_data_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Mine is a class of your own"):
        Mine(K, **NET).fit(X).save(tmp_path / "model")
    namesake = type("SparseVAE", (SparseVAE,), {})
    with pytest.raises(TypeError, match="a class of your own"):
        namesake(K, **NET).fit(X).save(tmp_path / "model")
    model = fitted("vae")
    model.note = "mine"
    with pytest.raises(ValueError, match="note, which save and load do not know"):
        model.save(tmp_path / "model")
    generator = np.random.RandomState(np.random.PCG64(0))
    with pytest.raises(TypeError, match=r"'random_state' is a RandomState with PCG64"):
        fitted("fista").set_params(random_state=generator).save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"'dict_init' is an array of complex128"):
        fitted("fista").set_params(dict_init=np.zeros((K, 64), complex)).save(tmp_path / "model")
    with pytest.raises(ValueError, match="'max_iter' parameter"):
        fitted("vae").set_params(max_iter=-1).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_files_have_the_documented_content(tmp_path):
    model = fitted("vsc")
    model.save(str(tmp_path / "model"))
    assert sorted(os.listdir(tmp_path / "model")) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["format"] == "sklearn-vsc" and config["format_version"] == 2
    assert config["estimator"] == "ThresholdedVSC"
    assert config["parameters"]["n_components"] == K
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        weights = file.get_tensor("module_.decoder.weight")
        assert_array_equal(file.get_tensor("components_"), model.components_)
    assert torch.equal(weights, model.module_.decoder.weight)


# ----------------------------------------------------------------------------- pickle and others


@pytest.mark.parametrize("setting", [*FOUR, "fista-online", "vae-nvil", "vae-conv"])
def test_pickle_and_joblib(setting, tmp_path):
    model = fitted(setting)
    joblib.dump(model, tmp_path / "model.joblib")
    for again in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
        assert_same(again, model)
        one, other = copy.deepcopy(model).partial_fit(X[:30]), again.partial_fit(X[:30])
        forget_durations(one, other)
        assert_same(one, other)
        assert_same_answers(one, other, NEW)


class Collecting(pickle.Pickler):
    """Records each tensor and generator that a pickle holds."""

    def __init__(self):
        super().__init__(io.BytesIO())
        self.found = []

    def persistent_id(self, obj):
        if isinstance(obj, (torch.Tensor, torch.UntypedStorage, torch.Generator, torch.device)):
            self.found.append(obj)


@each_class
def test_pickled_state_is_on_the_cpu(setting):
    """The test with the gpu marker below does the same for a fit on a GPU."""
    pickler = Collecting()
    pickler.dump(fitted(setting))
    assert (setting == "fista") == (not pickler.found)
    assert all(type(obj) is not torch.device for obj in pickler.found)
    assert {str(obj.device) for obj in pickler.found} <= {"cpu"}


OPEN_WITHOUT_GPU = """
import pickle, sys
import numpy as np
import torch
from sklearn_vsc import load
assert not torch.cuda.is_available()
rows = np.load(sys.argv[1] + "/rows.npy")
for model in (load(sys.argv[1] + "/model"), pickle.load(open(sys.argv[1] + "/pickle", "rb"))):
    codes = model.set_params(device="auto").transform(rows)
    np.testing.assert_allclose(codes, np.load(sys.argv[1] + "/codes.npy"), rtol=1e-3, atol=1e-4)
    model.partial_fit(rows)
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_class
def test_a_fit_on_a_gpu_loads_without_one(setting, tmp_path):
    model = clone(SETTINGS[setting]).set_params(device="cuda").fit(X)
    pickler = Collecting()
    pickler.dump(model)
    assert {str(obj.device) for obj in pickler.found} <= {"cpu"}
    model.save(tmp_path / "model")
    (tmp_path / "pickle").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "rows.npy", NEW)
    np.save(tmp_path / "codes.npy", model.transform(NEW))
    done = subprocess.run(
        [sys.executable, "-c", OPEN_WITHOUT_GPU, str(tmp_path)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_skops_preserves_a_dictionary_learner():
    """skops cannot handle torch modules, so the neural estimators are left out."""
    skops_io = pytest.importorskip("skops.io")
    model = fitted("fista-online")
    data = skops_io.dumps(model)
    trusted = skops_io.get_untrusted_types(data=data)
    assert all(name.startswith("sklearn_vsc.") for name in trusted)
    again = skops_io.loads(data, trusted=trusted)
    assert_same_answers(model, again, NEW)
    one, other = model.partial_fit(X[:30]), again.partial_fit(X[:30])
    assert_array_equal(one.components_, other.components_)


def test_load_is_public():
    assert "load" in sklearn_vsc.__all__ and sklearn_vsc.load is load
