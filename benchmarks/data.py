"""Rows that several benchmarks use: photographs, Fashion-MNIST and handwritten digits."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_vsc.datasets import fetch_fashion_mnist, load_natural_patches


def natural_patches(n_rows, n_test=2_000, *, standardised=False, **options):
    """Return patches of the left halves of the photographs, and of the right halves.

    They are whitened unless ``options`` say otherwise; ``standardised`` divides each pixel by its
    standard deviation in the training rows.
    """
    options = {"random_state": 0} | options
    train = load_natural_patches(n_rows, subset="train", **options)
    test = load_natural_patches(n_test, subset="test", **options)
    if not standardised:
        return train, test
    mean, std = train.mean(0), train.std(0)
    return (train - mean) / std, (test - mean) / std


def fashion_mnist(n_rows, n_test=2_000):
    """Return training and test images of Fashion-MNIST, 28x28 pixels in [0, 1]."""
    train, test = (fetch_fashion_mnist(subset=subset).data for subset in ("train", "test"))
    return train[:n_rows], test[:n_test]


def digits(n_rows=None, test_size=0.25, *, dequantised=False):
    """Return training and test images of handwritten digits, 8x8 pixels.

    Raw pixels are whole numbers from 0 to 16. Dequantised ones are spread uniformly over the
    interval of their grey level, in [0, 1]: otherwise the density of pixels that are always zero
    would be unbounded.
    """
    X = load_digits().data[:n_rows]
    if dequantised:
        X = ((X + np.random.default_rng(0).random(X.shape)) / 17).astype(np.float32)
    return train_test_split(X, test_size=test_size, random_state=0)
