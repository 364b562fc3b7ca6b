"""What the tests of metrics share."""

import warnings

import pytest


@pytest.fixture(scope="session")
def fitted():
    """Fit a model for a few epochs, after which some atoms are still unused."""

    def fit(model, X):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(X)

    return fit
