"""Linear least squares between codes and rows."""

from __future__ import annotations

import torch
from torch import Tensor

# Conjugate gradients stop once the residual has fallen to this multiple of machine epsilon
# (relative to its start), or after this many steps.
_ROUNDINGS = 10.0
_MOST_STEPS = 200


def effective_dictionary(X: Tensor, codes: Tensor) -> Tensor:
    """Return the linear dictionary that best decodes the codes, ``min ||X - codes A||_F``.

    It shows what each code represents when the decoder is not linear (Isely et al. 2010).
    The fit is uncentred and without intercept; atoms of codes that are never used are zero.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Rows; missing entries are NaN and are left out of the sum of squares.
    codes : Tensor of shape (n_samples, n_components)
        Their codes.

    Returns
    -------
    dictionary : Tensor of shape (n_components, n_features)
        Least-squares solution of minimum norm. With missing entries, where the observed entries
        leave a choice: the solution whose reconstruction of all rows has the smallest norm.
    """
    gram = codes.T @ codes
    observed = ~X.isnan()
    if observed.all():
        return dictionary_of_moments(gram, codes.T @ X)
    inverse = torch.linalg.pinv(gram, hermitian=True)
    return _of_observed(torch.where(observed, X, 0), codes, observed, inverse)


def dictionary_of_moments(code_gram: Tensor, code_data: Tensor) -> Tensor:
    """Return the same from ``codes.T @ codes`` and ``codes.T @ X`` for complete rows."""
    return torch.linalg.pinv(code_gram, hermitian=True) @ code_data


def _of_observed(X: Tensor, codes: Tensor, observed: Tensor, inverse: Tensor) -> Tensor:
    """Solve the normal equations of each feature, which has its own Gram matrix.

    Uses conjugate gradients on all features at once, preconditioned by the Gram matrix of all
    rows: missing entries move the eigenvalues from one towards the observed share.
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
        # A direction that affects only missing entries has no curvature except from rounding; a
        # step along it would be unbounded.
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
