"""All private or version-dependent names of scikit-learn that the package uses."""

from typing import Any, NoReturn, Self

from sklearn.base import _fit_context as fit_context
from sklearn.utils._array_api import _convert_to_numpy, get_namespace_and_device
from sklearn.utils._array_api import _max_precision_float_dtype as max_precision_float_dtype
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from sklearn.utils.validation import validate_data

try:
    from sklearn.callback import CallbackSupportMixin, ScoringMonitor
except ImportError:  # before scikit-learn 1.9

    class _NoCallbacks:
        """A task without any callbacks."""

        def subcontext(self, **kwargs: Any) -> Self:
            return self

        def call_on_fit_task_begin(self, **kwargs: Any) -> Self:
            return self

        def call_on_fit_task_end(self, **kwargs: Any) -> bool:
            return False

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Raises an error for callbacks, which this version of scikit-learn does not have."""

        def set_callbacks(self, *callbacks: Any) -> NoReturn:
            """Raise an error that explains what is missing."""
            raise TypeError(
                "set_callbacks needs scikit-learn 1.9 or newer. The 'callbacks' parameter of the "
                "neural estimators works with every version."
            )

        def _init_callback_context(self, **kwargs: Any) -> _NoCallbacks:
            return _NoCallbacks()

    class ScoringMonitor:  # type: ignore[no-redef]
        """Placeholder for a class that this version of scikit-learn does not have."""

        def __init__(self, **kwargs: Any) -> None:
            raise TypeError(f"{type(self).__name__} needs scikit-learn 1.9 or newer.")


try:
    from sklearn.utils._array_api import check_same_namespace
except ImportError:  # scikit-learn < 1.9

    def check_same_namespace(X: Any, estimator: Any, *, attribute: str, method: str) -> None:
        """Accept any namespace, since this version of scikit-learn has no such check."""


try:
    from sklearn.utils._sparse import _align_api_if_sparse as align_api_if_sparse
except ImportError:  # scikit-learn < 1.9

    def align_api_if_sparse(X: Any) -> Any:
        """Return SciPy matrices unchanged, since this version has no setting for them."""
        return X


def foreign_to_numpy(array: Any) -> Any:
    """Convert an array of another namespace to NumPy, from any device."""
    return _convert_to_numpy(array, array.__array_namespace__())


__all__ = [
    "CallbackSupportMixin",
    "Interval",
    "ScoringMonitor",
    "StrOptions",
    "align_api_if_sparse",
    "check_same_namespace",
    "fit_context",
    "foreign_to_numpy",
    "get_namespace_and_device",
    "max_precision_float_dtype",
    "validate_data",
    "validate_params",
]
