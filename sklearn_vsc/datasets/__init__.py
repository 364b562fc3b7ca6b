"""Datasets for sparse coding: images, and synthetic data with a known dictionary."""

from ._attributed_images import load_attributed_images
from ._fashion_mnist import fetch_fashion_mnist
from ._natural_patches import load_natural_patches
from ._synthetic import make_bars, make_sparse_coded

__all__ = [
    "fetch_fashion_mnist",
    "load_attributed_images",
    "load_natural_patches",
    "make_bars",
    "make_sparse_coded",
]
