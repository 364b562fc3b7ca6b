"""Two processes train a model together, with accelerate on the CPU."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_parallel_fits import AGREEING, TINY, X, outcome, weights

import sklearn_vsc
from sklearn_vsc import FISTADictionaryLearner, SparseVAE
from sklearn_vsc._training.process_group import ProcessGroup

FOLDER = Path(__file__).parent
EXAMPLE = FOLDER.parents[1] / "examples" / "train_data_parallel.py"
# All options are given, so that the launcher does not ask for any.
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"),
    *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
]


def launch(*command):
    """Run a script in two processes on the CPU; return what it prints."""
    root = str(Path(sklearn_vsc.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = f"--main_process_port={unused.getsockname()[1]}"
    done = subprocess.run(
        [*LAUNCH, port, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Outcomes of each of the two processes."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("processes")
    launch(FOLDER / "data_parallel_fits.py", folder)
    files = sorted(folder.glob("*.pickle"))
    assert [path.stem for path in files] == ["0", "1"]
    return [pickle.loads(path.read_bytes()) for path in files]


def test_two_processes_communicate_through_gloo(processes):
    assert [found["n_processes"] for found in processes] == [2, 2]
    assert [found["backend"] for found in processes] == ["gloo", "gloo"]


@pytest.mark.filterwarnings("ignore:.*atoms are used by no training row")
@pytest.mark.parametrize("name", AGREEING)
def test_gradients_agree_with_one_process(processes, name):
    alone, (shared, _) = outcome(name, "cpu"), [found[name] for found in processes]
    assert len(alone["gradients"]) == len(shared["gradients"]) == 6
    # The first step starts from the same weights; afterwards rounding errors grow.
    rounding = 2e-3 if name == "bf16" else 1e-5
    for step, tolerance in [(0, rounding), (1, 100 * rounding), (2, 100 * rounding)]:
        expected, found = alone["gradients"][step], shared["gradients"][step]
        assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)
    np.testing.assert_allclose(shared["losses"], alone["losses"], rtol=1e-3)
    assert shared["parts"].shape == alone["parts"].shape == (2, len(alone["parts"][0]))
    assert len(alone["parts"][0]) >= 2
    np.testing.assert_allclose(shared["parts"], alone["parts"], rtol=5e-3, atol=1e-4)
    np.testing.assert_allclose(shared["scores"], alone["scores"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", AGREEING)
def test_processes_end_with_the_same_model(processes, name):
    first, second = (found[name] for found in processes)
    for key in ("losses", "parts", "weights", "scores"):
        np.testing.assert_array_equal(first[key], second[key])


def test_processes_agree_on_draws_running_means_and_early_stopping(processes):
    first, second = (found["drawn"] for found in processes)
    assert first["before"][1] == second["before"][1]
    np.testing.assert_array_equal(first["before"][0], second["before"][0])
    np.testing.assert_array_equal(first["after"], second["after"])
    np.testing.assert_array_equal(first["codes"], second["codes"])
    assert not np.array_equal(first["before"][0], first["after"])


def test_processes_have_different_seeds(processes):
    (first,), (second,) = (found["seeds"] for found in processes)
    assert first != second
    group = ProcessGroup(SimpleNamespace(num_processes=3, process_index=0))
    others = [ProcessGroup(SimpleNamespace(num_processes=3, process_index=i)) for i in (1, 2)]
    assert group.seed(7) == 7
    assert len({7, *(other.seed(7) for other in others)}) == 3


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("other rows", "in X."),
        ("fewer rows", "in X."),
        ("other batches", "in batch_size."),
        ("other state", "in n_iter_."),
    ],
)
def test_all_processes_raise_an_error_if_they_differ(processes, what, named):
    for found in processes:
        assert found[what].startswith("device='accelerate' needs the same rows and parameters")
        assert found[what].endswith(named)


def test_interrupted_processes_do_not_have_a_model(processes):
    assert [found["interrupted"] for found in processes] == [False, False]


def test_only_one_process_shows_a_progress_bar(processes):
    first, second = (found["shown"] for found in processes)
    assert "Epoch 2 of 2" in first
    assert second == ""


def test_global_generator_is_untouched(processes):
    assert all(found["generator untouched"] for found in processes)


@pytest.mark.slow
def test_example_can_be_launched(tmp_path):
    pytest.importorskip("accelerate")
    done = launch(EXAMPLE, "--n-samples=300", "--max-iter=1", f"--output={tmp_path / 'model'}")
    assert done.stdout.count("2 processes on cpu") == 1
    model = sklearn_vsc.load(tmp_path / "model")
    assert model.n_iter_ == 1


@pytest.fixture
def alone(monkeypatch):
    """accelerate in a process without a launcher; its state is reset afterwards."""
    accelerate = pytest.importorskip("accelerate")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield accelerate
    accelerate.PartialState._reset_state()


def test_a_single_process_trains_as_usual(alone):
    plain = SparseVAE(12, **TINY, device="cpu").fit(X)
    model = SparseVAE(12, **TINY, device="accelerate").fit(X)
    np.testing.assert_array_equal(weights(model), weights(plain))
    assert model.score(X) == plain.score(X)


def test_state_set_up_without_the_other_processes_is_an_error(alone, monkeypatch):
    alone.PartialState(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"'accelerate' found .* 1 process, but 2 .*cpu=True"):
        SparseVAE(12, **TINY, device="accelerate").fit(X)


def test_error_without_accelerate_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    model = SparseVAE(12, **TINY, device="accelerate")
    with pytest.raises(ImportError, match=r"device='accelerate' needs .*sklearn-vsc\[accelerate\]"):
        model.fit(X)
    assert not hasattr(model, "module_")
    model.set_params(device="cpu").fit(X).set_params(device="accelerate")
    with pytest.raises(ImportError, match="set_params"):
        model.transform(X)


def test_dictionary_learning_is_not_data_parallel():
    with pytest.raises(ValueError, match="device"):
        FISTADictionaryLearner(3, device="accelerate").fit(X)
