"""Every private or version-dependent name of scikit-learn that the package leans on."""

from sklearn.base import _fit_context as fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import validate_data

__all__ = ["Interval", "StrOptions", "fit_context", "validate_data"]
