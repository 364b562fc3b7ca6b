"""Synthetic data with a known dictionary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .._rows.arrays import private_random_state
from .._rows.numbers import check_count, check_number
from ._checks import check_option


def make_sparse_coded(
    n_samples: int = 1000,
    n_components: int = 20,
    n_features: int = 20,
    *,
    density: float = 0.1,
    code_distribution: str = "laplace",
    code_scale: float = 1.0,
    positive_code: bool = False,
    noise: float = 0.0,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Generate data from a known dictionary and known sparse codes.

    ``X = codes @ dictionary + noise * e``, where `e` is standard normal. Each atom is drawn
    uniformly from the unit sphere. Each code is non-zero with probability `density`,
    independently of all others, so that all codes of a row are zero with probability
    ``(1 - density) ** n_components``.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.

    n_components : int, default=20
        Number of atoms.

    n_features : int, default=20
        Number of features. Fewer than `n_components` makes the dictionary overcomplete.

    density : float, default=0.1
        Probability that a code is non-zero, in [0, 1].

    code_distribution : {'laplace', 'gaussian', 'uniform'}, default='laplace'
        Distribution of the non-zero codes: Laplace with scale `code_scale`,
        normal with standard deviation `code_scale`, or uniform between
        `-code_scale` and `code_scale`.

    code_scale : float, default=1.0
        Scale of this distribution; must be positive.

    positive_code : bool, default=False
        Whether to take the absolute value of the codes.

    noise : float, default=0.0
        Standard deviation of the noise on each feature, in units of `X`.

    random_state : int, RandomState instance or None, default=None
        Determines all random draws. Pass an int for the same data in each call. With None
        the data differ each time; NumPy's global generator is not used.

    Returns
    -------
    X : ndarray of shape (n_samples, n_features)
        The data.

    dictionary : ndarray of shape (n_components, n_features)
        The atoms, rows of unit Euclidean norm.

    codes : ndarray of shape (n_samples, n_components)
        The codes.

    See Also
    --------
    sklearn.datasets.make_sparse_coded_signal : A fixed number of non-zero codes per row.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_vsc.datasets import make_sparse_coded
    >>> X, dictionary, codes = make_sparse_coded(500, 32, 16, random_state=0)
    >>> X.shape, dictionary.shape, codes.shape
    ((500, 16), (32, 16), (500, 32))
    >>> bool(np.allclose(X, codes @ dictionary))
    True
    """
    check_count(n_samples, "n_samples")
    check_count(n_components, "n_components")
    check_count(n_features, "n_features")
    check_number(density, "density", high=1)
    check_option("code_distribution", code_distribution, ("laplace", "gaussian", "uniform"))
    check_number(code_scale, "code_scale", open_low=True)
    check_number(noise, "noise")

    rng = private_random_state(random_state)
    dictionary = rng.normal(size=(n_components, n_features))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    shape = (n_samples, n_components)
    if code_distribution == "laplace":
        codes = rng.laplace(scale=code_scale, size=shape)
    elif code_distribution == "gaussian":
        codes = rng.normal(scale=code_scale, size=shape)
    else:
        codes = rng.uniform(-code_scale, code_scale, size=shape)
    if positive_code:
        codes = np.abs(codes)
    codes = np.where(rng.uniform(size=shape) < density, codes, 0.0)
    X = codes @ dictionary
    if noise > 0:
        X += rng.normal(scale=noise, size=X.shape)
    return X, dictionary, codes


def make_bars(
    n_samples: int = 1000,
    size: int = 8,
    *,
    density: float | None = None,
    combine: str = "or",
    noise: float = 0.0,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Generate images of horizontal and vertical bars.

    This is the bars test of Földiák [1]_: a square image contains each of its ``2 * size`` bars
    with the same probability, independently of the others. A model that learns the bars as atoms
    has found the causes of the images, which are not apparent from single pixels.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of images.

    size : int, default=8
        Side length of the images in pixels.

    density : float, default=None
        Probability of each bar, in [0, 1]. None means ``1 / size``, an average of two bars per
        image.

    combine : {'or', 'sum'}, default='or'
        Value of a pixel where two bars cross: with 'or' it is 1 as in [1]_, which is not linear;
        with 'sum' it is 2, so that ``X = codes @ components``.

    noise : float, default=0.0
        Standard deviation of the Gaussian noise on each pixel.

    random_state : int, RandomState instance or None, default=None
        Determines all random draws. Pass an int for the same data in each call. With None
        the data differ each time; NumPy's global generator is not used.

    Returns
    -------
    X : ndarray of shape (n_samples, size * size)
        The images, each in row-major order.

    components : ndarray of shape (2 * size, size * size)
        The bars, as zeros and ones: first the horizontal bars from top to bottom, then the
        vertical bars from left to right.

    codes : ndarray of shape (n_samples, 2 * size)
        1 if an image contains a bar, 0 otherwise.

    References
    ----------
    .. [1] Földiák, P. (1990). Forming sparse representations by local anti-Hebbian
       learning. Biological Cybernetics 64, 165-170.

    Examples
    --------
    >>> from sklearn_vsc.datasets import make_bars
    >>> X, components, codes = make_bars(100, size=3, random_state=0)
    >>> X.shape, components.shape, codes.shape
    ((100, 9), (6, 9), (100, 6))
    >>> components[1].reshape(3, 3)
    array([[0., 0., 0.],
           [1., 1., 1.],
           [0., 0., 0.]])
    """
    check_count(n_samples, "n_samples")
    check_count(size, "size")
    if density is None:
        density = 1 / size
    check_number(density, "density", high=1)
    check_option("combine", combine, ("or", "sum"))
    check_number(noise, "noise")

    rng = private_random_state(random_state)
    lines, ones = np.eye(size), np.ones((1, size))
    components = np.vstack([np.kron(lines, ones), np.kron(ones, lines)])
    codes = (rng.uniform(size=(n_samples, 2 * size)) < density).astype(np.float64)
    X = codes @ components
    if combine == "or":
        X = np.minimum(X, 1.0)
    if noise > 0:
        X += rng.normal(scale=noise, size=X.shape)
    return X, components, codes
