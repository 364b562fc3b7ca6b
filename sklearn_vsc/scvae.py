"""SCVAE: sparse codes inside a deep autoencoder, by unrolled iterative shrinkage."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ._base.constraints import SCALE, WEIGHT
from ._base.neural_coder import NeuralSparseCoder
from ._models.autoencoder_construction import AutoencoderDescription
from ._models.sparse_autoencoder import SparseAutoencoder
from ._rows.array_api import follows_input
from ._rows.compat import Interval, StrOptions
from .likelihoods import Likelihood

# Share of the training over which the penalty grows to its full value: while the decoder is still
# untrained, a full penalty empties the codes, and atoms die of it.
_PENALTY_WARMUP = 0.5


class SCVAE(NeuralSparseCoder):
    """Deep autoencoder whose latent vectors are sparse sums of learned atoms.

    An encoder maps a row to a latent vector. A fixed number of steps of accelerated ISTA finds
    the sparse code that represents this vector in a learned dictionary. A decoder maps the
    sparse sum of atoms back to a row [1]_. All parts are trained together.

    The parameters come in this order:

    * **Most used**: ``n_components``, ``alpha``, ``likelihood``, ``encoder``, ``decoder``,
      ``max_iter``.
    * **Model**: ``noise_variance``, ``hidden_layer_sizes``, ``n_unrolled``, ``latent_size``,
      ``image_shape``, ``n_downsamplings``, ``output_activation``.
    * **Training**: ``latent_weight``, ``batch_size``, ``learning_rate_init``, ``early_stopping``,
      ``validation_fraction``, ``n_iter_no_change``, ``tol``, ``warm_start``.
    * **Inference**: ``n_draws``, ``transform_method``, ``score_method``, ``score_draws``.
    * **Running**: ``random_state``, ``verbose``, ``callbacks``, ``sparse_output``, ``device``,
      ``precision``.

    Parameters
    ----------
    n_components : int, default=None
        Number of components K. None: as many as features.

    alpha : float, default=1.0
        Weight of the l1 norm of the codes: a higher one makes them sparser. It is also the
        threshold of the unrolled steps. Latent vectors grow as far as the likelihood of the rows
        asks for, at this price in nats, whatever the unit of X.

    likelihood : {'gaussian', 'bernoulli', 'poisson', 'negative_binomial'} \
            or Likelihood, default='gaussian'
        Distribution of a row given its code. 'bernoulli' needs X in [0, 1]; 'poisson' and
        'negative_binomial' need whole non-negative numbers (counts) and decode to log rates. An
        object: a :class:`~sklearn_vsc.likelihoods.Likelihood`, such as
        ``PoissonLikelihood(exposure='row_sums')``; it is copied, not changed.

    encoder : {'auto', 'mlp', 'conv'} or nn.Module, default='auto'
        Network that reads a row. A module maps (n, n_features) to (n, any number). A linear layer
        then makes one latent vector of what the module returns. 'conv': convolutions of stride 2
        over rows that are images of shape ``image_shape``. Residual blocks follow, and give a
        latent vector at each position of a grid. 'auto': 'conv' if there is an ``image_shape``,
        else 'mlp'.

    decoder : {'auto', 'mlp', 'conv'} or nn.Module, default='auto'
        Network that decodes the sparse sums of atoms. A module maps the latent vectors of a row,
        position by position, (n, n_positions * latent_size), to (n, n_features). Its outputs are
        log-odds for 'bernoulli', and log rates for 'poisson' and 'negative_binomial'. 'conv': the
        mirror image of the 'conv' encoder. 'auto': 'conv' with a 'conv' encoder, else 'mlp'.

    max_iter : int, default=100
        Maximum number of epochs, that is, of passes over the rows.

    noise_variance : 'learned' or float, default='learned'
        Variance of the Gaussian likelihood, in squared units of X. 'learned': estimated from the
        training rows.

    hidden_layer_sizes : int or array-like of int, default=(512,)
        Sizes of the hidden layers of the MLP encoder; an MLP decoder has them in reverse order.

    n_unrolled : int, default=8
        Number of unrolled steps of ISTA.

    latent_size : int, default=None
        Length of a latent vector. None: half of ``n_components``.

    image_shape : tuple of three ints, default=None
        Channels, height and width of a row that is an image, for 'conv' networks. With it, X may
        also have the shape (n_samples, channels, height, width).

    n_downsamplings : int, default=2
        Number of times that a 'conv' encoder halves the sides of an image. Each side of the grid of
        latent vectors is smaller by a factor of ``2 ** n_downsamplings``.

    output_activation : {'auto', 'identity', 'sigmoid', 'tanh'}, default='auto'
        Activation of the decoder's output under the Gaussian likelihood, in the units of X. 'auto':
        'identity'. Other likelihoods have a fixed activation: 'bernoulli' a sigmoid, 'poisson' and
        'negative_binomial' an exponential.

    latent_weight : 'attention' or float, default='attention'
        Weight in the loss of half the squared distance between latent vectors and their sparse sums
        of atoms. 'attention': the positions of an image share a weight of one, most of which goes
        to those coded worst; a row with one position has weight 1.

    batch_size : int or 'auto', default='auto'
        Number of rows per training step. 'auto': min(128, n_samples).

    learning_rate_init : float, default=0.003
        Highest learning rate of Adam: it rises over the first steps of ``fit`` and then falls along
        a cosine.

    early_stopping : bool, default=False
        Whether to set aside ``validation_fraction`` of the rows, stop when the loss on them no
        longer improves, and keep the best epoch.

    validation_fraction : float, default=0.1
        Share of the rows that ``early_stopping`` sets aside.

    n_iter_no_change : int, default=10
        Number of epochs without an improvement of the training loss (of the validation loss with
        ``early_stopping``) after which training stops.

    tol : float, default=1e-4
        Smallest improvement of the loss that counts, in nats per row.

    warm_start : bool, default=False
        Whether ``fit`` continues from the last fit.

    n_draws : int, default=1
        Number of posterior draws J per row. ``transform_method='max_elbo'`` chooses the best of
        them. Training decodes the code itself.

    transform_method : {'map', 'mean', 'max_elbo', 'sample'}, default='map'
        The code that ``transform`` returns. 'map' and 'mean': the code of the unrolled coder, which
        has exact zeros. 'max_elbo': the draw with the highest ELBO among ``n_draws`` seeded draws.
        'sample': one seeded draw.

    score_method : {'elbo', 'iwae'}, default='elbo'
        Bound that ``score`` and ``score_samples`` return. 'elbo': the evidence lower bound. 'iwae':
        the importance-weighted bound of ``score_draws`` draws, which on average is at least as
        tight.

    score_draws : int, default=64
        Number of draws that estimate the bound where it has no closed form.

    random_state : int, RandomState instance or None, default=None
        Seed of the initial model, the order of the rows and all draws.

    verbose : bool or int, default=False
        Whether to show a progress bar.

    callbacks : list or None, default=None
        skorch callbacks, passed on to the training loop.

    sparse_output : bool, default=False
        Whether ``transform`` returns a SciPy CSR matrix instead of an array.

    device : str, default='auto'
        Where to compute: 'auto' (CUDA if there is one, else MPS, else CPU) or the name of a torch
        device. Results come back as NumPy arrays or, with scikit-learn's ``array_api_dispatch``, as
        arrays of the same namespace and device as X. 'accelerate': the device that
        ``accelerate launch`` gives to each of its processes, which then share the batches of
        ``fit`` and ``partial_fit``; needs the extra ``accelerate``.

    precision : {'float32', 'bf16'}, default='float32'
        Precision of the multiplications inside networks during training. 'bf16': bfloat16, on CPUs
        and on CUDA devices that have it. Weights, densities and everything that a fitted model
        returns keep their own precision.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The dictionary. Where the decoder is not linear, it is the least-squares linear dictionary
        of the training codes [2]_. It shows what the atoms stand for in rows, as far as a linear
        map can. Codes on a grid are summed over positions.

    grid_shape_ : tuple of two ints
        Height and width of the grid of codes. It is (1, 1) unless the encoder is 'conv'.

    component_usage_ : ndarray of shape (n_components,)
        Share of the training rows that use each atom. A row uses an atom where its 'map' code is
        not zero.

    n_dead_ : int
        Number of atoms that no training row uses: the zeros of ``component_usage_``.

    noise_variance_ : float
        Variance of the Gaussian likelihood, in squared units of X. NaN for any other likelihood.

    history_ : list of dict
        One record per epoch. ``epoch`` counts from 1 and ``duration`` is in seconds. ``loss`` is in
        nats per row, in the units of the model; with early stopping there is ``valid_loss``, too.
        The other values are means over the rows in the steps of the epoch. The loss is
        ``penalty - log_likelihood``. ``log_likelihood`` is the log likelihood of the rows, half at
        their codes and half at draws around them, and ``penalty`` is the sum of the terms that
        ``alpha`` and ``latent_weight`` weigh, both in nats per row. ``density`` is the share of
        codes that are not zero.

    module_ : torch.nn.Module
        The trained model, on the CPU.

    n_iter_ : int
        Number of epochs; each call of ``partial_fit`` counts as one.

    n_features_in_ : int
        Number of features seen during ``fit``.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where X has names that are all strings.

    See Also
    --------
    SparseVAE : Variational autoencoder, with sparse priors.
    FISTADictionaryLearner : Sparse codes of the rows themselves.

    Notes
    -----
    The published method has no likelihood. Here the score is a lower bound on log p(x) under a
    model with independent Laplace priors on all codes and, by default, Gaussian noise around the
    decoder's output. The posterior of a code is a Laplace distribution, too. It is centred on
    what ``transform`` returns, and its scales, one for each atom, maximise the bound. Such a
    distribution has no mass at zero: ``inclusion`` of ``posterior(X)`` is one everywhere, and no
    draw is exactly zero, but ``mean`` has exact zeros. Codes are in units of the scale of their
    prior.

    This differs from the published code in four ways: the first step is as long as the others,
    steps are never longer than the inverse of the dictionary's squared spectral norm, the l1
    norm is part of the loss, and no gradient passes through the attention weights.

    References
    ----------
    .. [1] Xiao, P., Qiu, P., Ha, S. M., Bani, A., Zhou, S. and Sotiras, A. (2025). SC-VAE:
       Sparse coding-based variational autoencoder with learned ISTA. Pattern Recognition.
    .. [2] Isely, G., Hillar, C. and Sommer, F. (2010). Deciphering subsampled data: adaptive
       compressive sampling as a principle of brain communication. Advances in Neural
       Information Processing Systems.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_vsc import SCVAE
    >>> X = load_digits().data[:300]
    >>> model = SCVAE(n_components=32, max_iter=20, random_state=0).fit(X)
    >>> codes = model.transform(X)
    >>> codes.shape, bool((codes == 0).any())
    ((300, 32), True)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NeuralSparseCoder._parameter_constraints,
        "alpha": [SCALE],
        "latent_size": [Interval(Integral, 1, None, closed="left"), None],
        "latent_weight": [StrOptions({"attention"}), WEIGHT],
        "n_downsamplings": [Interval(Integral, 0, None, closed="left")],
        "encoder": [StrOptions({"auto", "mlp", "conv"}), nn.Module],
        "decoder": [StrOptions({"auto", "mlp", "conv"}), nn.Module],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float = 1.0,
        latent_size: int | None = None,
        n_unrolled: int = 8,
        latent_weight: float | str = "attention",
        image_shape: Sequence[int] | None = None,
        n_downsamplings: int = 2,
        likelihood: str | Likelihood = "gaussian",
        noise_variance: float | str = "learned",
        encoder: str | nn.Module = "auto",
        decoder: str | nn.Module = "auto",
        output_activation: str = "auto",
        hidden_layer_sizes: int | Sequence[int] = (512,),
        n_draws: int = 1,
        transform_method: str = "map",
        score_method: str = "elbo",
        score_draws: int = 64,
        max_iter: int = 100,
        batch_size: int | str = "auto",
        learning_rate_init: float = 3e-3,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool | int = False,
        callbacks: Sequence[Any] | None = None,
        sparse_output: bool = False,
        device: str = "auto",
        precision: str = "float32",
    ) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.latent_size = latent_size
        self.n_unrolled = n_unrolled
        self.latent_weight = latent_weight
        self.image_shape = image_shape
        self.n_downsamplings = n_downsamplings
        self.likelihood = likelihood
        self.noise_variance = noise_variance
        self.encoder = encoder
        self.decoder = decoder
        self.output_activation = output_activation
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_draws = n_draws
        self.transform_method = transform_method
        self.score_method = score_method
        self.score_draws = score_draws
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks
        self.sparse_output = sparse_output
        self.device = device
        self.precision = precision

    module_: SparseAutoencoder
    _takes_images = True
    _dead_atoms_cure = "Train longer or on more rows, or lower n_components or alpha."

    def _describe(self) -> AutoencoderDescription:
        return AutoencoderDescription(
            n_components=self.n_components,
            likelihood=self._likelihood(),
            likelihood_name=self._likelihood_name,
            networks=self._networks(),
            n_draws=self.n_draws,
            kl_warmup=_PENALTY_WARMUP,
            alpha=self.alpha,
            latent_size=self.latent_size,
            latent_weight=self.latent_weight,
            n_downsamplings=self.n_downsamplings,
        )

    @property
    def grid_shape_(self) -> tuple[int, int]:
        """Height and width of the grid of codes."""
        return self.module_.grid_shape

    def inverse_transform(self, Z: Any) -> NDArray:
        """Decode codes: the mean of p(x given z).

        Parameters
        ----------
        Z : array-like or sparse matrix of shape (n_samples, n_codes), or array-like of shape \
                (n_samples, height, width, n_components)
            Codes, as ``transform`` or ``transform_grid`` gives them.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Reconstruction, in the units of the training X; missing entries of a row are filled.
        """
        if getattr(Z, "ndim", None) == 4 and hasattr(self, "module_"):
            wanted = (*self.grid_shape_, self.module_.n_components)
            if tuple(Z.shape[1:]) != wanted:
                raise ValueError(f"Z holds grids of shape {tuple(Z.shape[1:])}; expected {wanted}.")
            Z = Z.reshape(Z.shape[0], -1)
        return super().inverse_transform(Z)

    @follows_input
    def transform_grid(self, X: ArrayLike) -> NDArray:
        """Return the codes of images at each position.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Rows to code.

        Returns
        -------
        code : ndarray of shape (n_samples, height, width, n_components)
            What ``transform`` returns, with the axes of ``grid_shape_``.
        """
        X = self._evaluated(X)
        codes = np.concatenate(list(self._fitted.codes(X)))
        return codes.reshape(-1, *self.grid_shape_, self.module_.n_components)
