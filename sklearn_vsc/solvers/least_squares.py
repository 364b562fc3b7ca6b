"""Linear least squares between codes and rows."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_dictionary(X: Tensor, codes: Tensor) -> Tensor:
    """Return the linear dictionary that best decodes the codes, ``min ||X - codes A||_F``.

    It shows what each code stands for where the decoder is not linear (Isely et al. 2010).
    Uncentred and without intercept; atoms of codes that are never used are zero.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Rows.
    codes : Tensor of shape (n_samples, n_components)
        Their codes.

    Returns
    -------
    dictionary : Tensor of shape (n_components, n_features)
        Least-squares solution of least norm.
    """
    gram = codes.T @ codes
    return torch.linalg.pinv(gram, hermitian=True) @ (codes.T @ X)
