"""Fixtures for the tests of metrics."""

import warnings

import pytest


@pytest.fixture(scope="session")
def fitted():
    """Fit a model for a few epochs, ignoring warnings about atoms that are still unused."""

    def fit(model, X):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(X)

    return fit
