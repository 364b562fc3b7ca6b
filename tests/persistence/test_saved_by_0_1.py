"""Folders saved by version 0.1 still load, and the models give the same results."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import sklearn_vsc

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

FOLDER = Path(__file__).parent / "saved_by_0_1"
# NaN, a missing entry, is not in the JSON standard, but Python reads it.
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="ascii"))


@pytest.mark.parametrize("name", EXPECTED)
def test_models_of_version_0_1_load(name, tmp_path):
    expected = EXPECTED[name]
    rows = np.array(expected["rows"], dtype=expected["dtype"])
    model = sklearn_vsc.load(FOLDER / name)
    model.save(tmp_path / "again")
    # Rounding differs between processors.
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    for found in (model, sklearn_vsc.load(tmp_path / "again")):
        assert found.n_iter_ == expected["n_iter"]
        assert_allclose(found.components_, expected["components"], rtol=1e-12)
        if name == "thresholded":
            # Sweeps now end at a better posterior than those of version 0.1.
            gain = found.score_samples(rows) - expected["score"]
            assert (gain > 0).all() and (gain < 0.1).all()
            assert_allclose(found.transform(rows), expected["codes"], atol=0.1)
            continue
        assert_allclose(found.score_samples(rows), expected["score"], **tolerance)
        assert_allclose(found.transform(rows), expected["codes"], **tolerance)


def test_every_class_is_covered():
    classes = {type(sklearn_vsc.load(FOLDER / name)).__name__ for name in EXPECTED}
    assert classes == {"FISTADictionaryLearner", "ThresholdedVSC", "SparseVAE", "SCVAE"}
