"""Every private or version-dependent name of scikit-learn that the package leans on."""

from typing import Any

from sklearn.base import _fit_context as fit_context
from sklearn.utils._array_api import _convert_to_numpy, get_namespace_and_device
from sklearn.utils._array_api import _max_precision_float_dtype as max_precision_float_dtype
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import validate_data

try:
    from sklearn.utils._array_api import check_same_namespace
except ImportError:  # scikit-learn < 1.9

    def check_same_namespace(X: Any, estimator: Any, *, attribute: str, method: str) -> None:
        """Let other namespaces than that of ``fit`` pass."""


try:
    from sklearn.utils._sparse import _align_api_if_sparse as align_api_if_sparse
except ImportError:  # scikit-learn < 1.9

    def align_api_if_sparse(X: Any) -> Any:
        """Leave SciPy's matrices as they are: there is no setting yet."""
        return X


def foreign_to_numpy(array: Any) -> Any:
    """Bring an array of the namespace it names to NumPy, from whatever device."""
    return _convert_to_numpy(array, array.__array_namespace__())


__all__ = [
    "Interval",
    "StrOptions",
    "align_api_if_sparse",
    "check_same_namespace",
    "fit_context",
    "foreign_to_numpy",
    "get_namespace_and_device",
    "max_precision_float_dtype",
    "validate_data",
]
