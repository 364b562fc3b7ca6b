"""Linear least squares between codes and rows."""

from __future__ import annotations

import torch
from torch import Tensor

# Conjugate gradients end when the squared residual has fallen this far, in roundings, or here.
_ROUNDINGS = 10.0
_MOST_STEPS = 200


def effective_dictionary(X: Tensor, codes: Tensor) -> Tensor:
    """Return the linear dictionary that best decodes the codes, ``min ||X - codes A||_F``.

    It shows what each code stands for where the decoder is not linear (Isely et al. 2010).
    Uncentred and without intercept; atoms of codes that are never used are zero.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Rows; NaN where an entry is missing, which then counts in no sum of squares.
    codes : Tensor of shape (n_samples, n_components)
        Their codes.

    Returns
    -------
    dictionary : Tensor of shape (n_components, n_features)
        Least-squares solution of least norm; with missing entries, of the fewest decoded squares
        in all rows where observed ones leave a choice.
    """
    gram = codes.T @ codes
    observed = ~X.isnan()
    if observed.all():
        return dictionary_of_moments(gram, codes.T @ X)
    inverse = torch.linalg.pinv(gram, hermitian=True)
    return _of_observed(torch.where(observed, X, 0), codes, observed, inverse)


def dictionary_of_moments(code_gram: Tensor, code_data: Tensor) -> Tensor:
    """Return the same from ``codes.T @ codes`` and ``codes.T @ X`` of rows without holes."""
    return torch.linalg.pinv(code_gram, hermitian=True) @ code_data


def _of_observed(X: Tensor, codes: Tensor, observed: Tensor, inverse: Tensor) -> Tensor:
    """Solve the normal equations of each feature, which has a Gram matrix of its own.

    By conjugate gradients on all features at once, in the metric of the Gram matrix of all rows:
    what is missing moves its eigenvalues from one to the share observed.
    """
    residual = codes.T @ X
    dictionary = torch.zeros_like(residual)
    direction = shortened = inverse @ residual
    size = start = (residual * shortened).sum(0)
    rounding = _ROUNDINGS * torch.finfo(X.dtype).eps
    least = rounding**2 * start
    for _ in range(_MOST_STEPS):
        decoded = codes @ direction
        seen = torch.where(observed, decoded, 0)
        curvature, whole = seen.square().sum(0), decoded.square().sum(0)
        # Of a direction that only missing entries see rounding is left; a step would be endless.
        active = (size > least) & (curvature > rounding * whole)
        if not active.any():
            break
        image = codes.T @ seen
        step = torch.where(active, size / curvature, 0)
        dictionary = dictionary + step * direction
        residual = residual - step * image
        shortened = inverse @ residual
        size, before = (residual * shortened).sum(0), size
        direction = shortened + torch.where(active, size / before, 0) * direction
    return dictionary
