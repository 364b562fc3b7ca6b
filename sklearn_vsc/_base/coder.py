"""What all estimators share: validation, tags, feature names, score, saving."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from .._persistence.state import save
from .._rows.array_api import converted, to_host
from .._rows.compat import CallbackSupportMixin, validate_data
from .._rows.images import check_image_shape, flat_images
from .._rows.missing import check_observed
from .._rows.sources import batches_of, held_rows, is_dataset
from .._rows.user_warnings import warn_user

# Above this share of unused atoms a fit warns.
_MANY_DEAD = 0.2


def check_size(X: NDArray, least: float = 1e-100, largest: float = 1e100) -> float:
    """Check that the squares of X neither underflow nor overflow; return its largest size."""
    values = X.data if issparse(X) else X
    ends = np.fmax.reduce, np.fmin.reduce
    size = float(max(abs(end(values, axis=None, initial=0)) for end in ends))
    if size and not least <= size <= largest:
        raise ValueError(
            f"Input X has values of at most {size:.3g} in size. Their squares would be lost in "
            f"{X.dtype}: scale X so that its largest value is between {least:g} and {largest:g}."
        )
    return size


@dataclass(frozen=True)
class Posterior:
    """Moments of the posterior q(z given x) of each row.

    Attributes
    ----------
    mean : ndarray of shape (n_samples, n_components)
        Posterior mean of the code.
    std : ndarray of shape (n_samples, n_components)
        Posterior standard deviation of the code.
    inclusion : ndarray of shape (n_samples, n_components)
        Posterior probability that the code is not zero.
    """

    mean: NDArray
    std: NDArray
    inclusion: NDArray


class BaseSparseCoder(
    CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Base of the estimators; a subclass fits, codes and decodes.

    One that has a likelihood bounds log p(x) by a method ``score_samples``, of which ``score``
    is the mean.
    """

    components_: NDArray
    component_usage_: NDArray
    n_dead_: int
    sparse_output: bool
    score_samples: Callable[..., NDArray]
    # What a user may change when many atoms are dead.
    _dead_atoms_cure: ClassVar[str] = "Lower n_components, or train on more rows."
    # Whether X may hold images with axes of their own, of shape ``image_shape``.
    _takes_images: ClassVar[bool] = False
    # Whether X may be a SciPy CSR matrix.
    _takes_sparse: ClassVar[bool] = False
    # Attributes that fits set and ``save`` keeps: of what type, or with dimensions that have one
    # size each, or itself such a size, or the class of a record and the attributes of that. With
    # a question mark: only some fits set it.
    _kept: ClassVar[dict[str, Any]] = {
        "n_features_in_": "D",
        "feature_names_in_?": ("D",),
        "components_": ("K", "D"),
        "component_usage_": ("K",),
        "n_dead_": Integral,
        "noise_variance_": [Real, ("D",)],
        "history_": list,
        "n_iter_": "n_iter",
        "_sklearn_output_config?": dict,
    }

    @abstractmethod
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit the model to the rows of X."""

    @abstractmethod
    def transform(self, X: ArrayLike) -> NDArray:
        """Return the sparse code of each row."""

    def transform_batches(self, X: Any) -> Iterator[NDArray]:
        """Return the codes of the rows of X batch by batch, for more rows than fit into memory.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), Dataset or DataLoader
            Rows to code. A torch ``DataLoader`` decides the batches; arrays and torch datasets are
            coded a few thousand rows at a time.

        Returns
        -------
        batches : iterator of ndarray or CSR matrix of shape (n_rows, n_features_out)
            The same as ``transform`` of the rows of each batch, coded when it is asked for.
        """
        model = self._check_usable()
        return map(model.transform, batches_of(X, getattr(self, "image_shape", None)))

    def fit_transform(self, X: ArrayLike, y: Any = None, **fit_params: Any) -> NDArray:
        """Fit the model to X, then return the codes of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to learn from and to code.
        y : Ignored
            Not used, present for API consistency by convention.
        **fit_params : dict
            Passed to ``fit``.

        Returns
        -------
        code : ndarray of shape (n_samples, n_features_out)
            The same as ``fit(X).transform(X)``.
        """
        return self.fit(X, y, **fit_params).transform(X)

    @available_if(lambda self: hasattr(self, "score_samples"))
    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the mean lower bound on log p(x), in nats a row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), Dataset or DataLoader
            Rows to score. A torch dataset or data loader is read batch by batch.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        score : float
            Mean of ``score_samples(X)``; higher is better, and the scores of different
            classes on the same X may be compared.
        """
        image_shape = getattr(self, "image_shape", None)
        batches = batches_of(X, image_shape) if is_dataset(X) else (X,)
        bounds = [to_host(self.score_samples(batch)) for batch in batches]
        return float(np.mean(np.concatenate(bounds), dtype=np.float64))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator into a folder, without pickle.

        :func:`sklearn_vsc.load` reads it. The folder holds ``model.safetensors`` and
        ``config.json``: parameters, fitted attributes, and the state that training continues
        from. A model that was saved there before is replaced once the new one is complete.

        Callbacks are left out, with a warning. Modules, priors and likelihoods of your own
        classes are not saved either: give them to ``load`` again.

        Parameters
        ----------
        path : str or path-like
            The folder; its parent must exist.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        TypeError
            Where a parameter is not plain data (numbers, strings, lists, dicts), or the class is
            not one of this package.
        ValueError
            Where an attribute is unknown, or a module was replaced after ``fit``.
        OSError
            Where the folder cannot be written, or holds something other than a saved model.
        """
        save(self, path)

    def _validate_rows(self, X: Any, *, reset: bool) -> NDArray:
        """Check rows on their way in; up to 32 bits they become float32, all else float64.

        Rows to learn from (``reset``) must have an observed entry in every column.
        """
        X = self._validate_table(X, reset=reset)
        check_observed(X, columns=reset)
        self._check_size(X, reset=reset)
        return X

    def _validate_table(self, X: Any, *, reset: bool) -> NDArray:
        """Check type and shape of X, but not its missing entries; images are flattened."""
        if not reset:
            self._check_usable()
        image_shape: Sequence[int] | None = getattr(self, "image_shape", None)
        X = held_rows(X, image_shape)
        images = self._takes_images and image_shape is not None
        if images:
            X = flat_images(X, image_shape)
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float64, np.float32, np.float16],
            ensure_all_finite=False,
            accept_sparse="csr" if self._takes_sparse else False,
        )
        if X.dtype == np.float16:
            X = X.astype(np.float32)
        if issparse(X) and not X.has_canonical_format:
            X = X.copy()
            X.sum_duplicates()
        if images:
            check_image_shape(image_shape, X.shape[1], "rows that are images")
        return X

    def _check_size(self, X: NDArray, *, reset: bool) -> None:
        """Check that the squares of rows to learn from can be represented."""
        if reset:
            check_size(X)

    def _check_usable(self) -> Self:
        """Check that there is a fit, and the parameters, which may have been changed after it."""
        check_is_fitted(self)
        self._validate_params()
        return self

    def _validate_codes(self, Z: ArrayLike) -> NDArray:
        """Check codes given to ``inverse_transform``."""
        self._check_usable()
        with np.errstate(over="ignore", invalid="ignore"):
            Z = check_array(Z, accept_sparse="csr", dtype=[np.float64, np.float32], input_name="Z")
        n_codes = self._n_features_out
        if Z.shape[1] != n_codes:
            raise ValueError(
                f"Z has {Z.shape[1]} columns, but {type(self).__name__} makes codes of {n_codes} "
                "columns."
            )
        return Z

    def _record_usage(self, usage: NDArray, *, warn: bool = True) -> None:
        """Keep the share of training rows that use each atom; warn when many are dead."""
        self.component_usage_ = usage
        self.n_dead_ = int(np.count_nonzero(usage == 0))
        if warn and self.n_dead_ > _MANY_DEAD * len(usage):
            warn_user(
                f"{self.n_dead_} of {len(usage)} atoms are used by no training row. "
                f"{self._dead_atoms_cure}"
            )

    @property
    @abstractmethod
    def _n_features_out(self) -> int:
        """Number of columns of the codes."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = self._takes_sparse
        # SciPy's sparse matrices hold NumPy arrays.
        tags.array_api_support = not self.sparse_output
        return tags

    def __getstate__(self) -> dict[str, Any]:
        # An estimator that was fitted on a GPU can be opened without one.
        return {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in super().__getstate__().items()
        }

    def __sklearn_array_api_convert__(self, converter: Callable[[Any], Any]) -> Self:
        """Return the estimator with its fitted arrays moved, as scikit-learn asks for it."""
        return converted(self, converter)
