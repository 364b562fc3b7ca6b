"""Observation models p(x given z): log densities in nats, normalising constants included.

An estimator takes one by name or as an object: ``likelihood='poisson'`` or
``likelihood=PoissonLikelihood(exposure='row_sums')``. `Likelihood` is the base of your own.
"""

from ._base import Likelihood, squared_error
from .bernoulli import BernoulliLikelihood
from .counts import NegativeBinomialLikelihood, PoissonLikelihood
from .gaussian import GaussianLikelihood

# The names that estimators take.
LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": GaussianLikelihood,
    "bernoulli": BernoulliLikelihood,
    "poisson": PoissonLikelihood,
    "negative_binomial": NegativeBinomialLikelihood,
}

__all__ = [
    "LIKELIHOODS",
    "BernoulliLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "NegativeBinomialLikelihood",
    "PoissonLikelihood",
    "squared_error",
]
