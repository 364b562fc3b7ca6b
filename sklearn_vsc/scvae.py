"""SCVAE: sparse codes inside a deep autoencoder, by unrolled iterative shrinkage."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from torch import nn

from ._autoencoder_construction import AutoencoderBuilder
from ._neural import SCALE, WEIGHT
from ._rows.compat import Interval, StrOptions

# Parameters of the other neural estimators that a deterministic code has not, or not as they do.
_NOT_SHARED = (
    *("objective", "kl_weight", "kl_warmup", "n_refine", "decoder_penalty"),
    *("encoder", "decoder"),
)


class SCVAE(AutoencoderBuilder):
    """Deep autoencoder whose latent vectors are sparse sums of learned atoms.

    An encoder maps a row to a latent vector; a fixed number of steps of accelerated ISTA find
    the sparse code that explains it by a learned dictionary; a decoder maps the sparse sum of
    atoms back to a row [1]_. All is trained together.

    Parameters
    ----------
    n_components : int, default=None
        Number of atoms K; None: as many as features.

    alpha : float, default=1.0
        Penalty of the l1 norm of the latent code, and threshold of the unrolled steps: higher
        means sparser. Latent vectors grow as far as the rows' likelihood asks for, at this
        price in nats, whatever the unit of X.

    latent_size : int, default=None
        Length of a latent vector; None: half of ``n_components``.

    n_unrolled : int, default=8
        Steps of the unrolled coder.

    image_shape : tuple of three ints, default=None
        Channels, height and width of a row that is an image, for 'conv'. X may then be of shape
        (n_samples, channels, height, width) too.

    n_downsamplings : int, default=2
        How often 'conv' halves the sides of an image: the grid of latent vectors is as much
        smaller than the image.

    latent_weight : 'attention' or float, default='attention'
        Weight in the loss of half the squared distance between latent vectors and their sparse
        sums. 'attention': the positions of an image share a weight of one, and those coded
        worst have most of it; a row has one position, and this is 1.

    likelihood : {'gaussian', 'bernoulli'}, default='gaussian'
        Law of a row given its code; 'bernoulli' needs X in [0, 1].

    noise_variance : 'learned' or float, default='learned'
        Variance of the Gaussian likelihood, in squared units of X.

    encoder : {'auto', 'mlp', 'conv'} or nn.Module, default='auto'
        Network that reads a row. 'conv': convolutions of stride two and residual blocks, with a
        latent vector at each position of a grid; it needs ``image_shape``. A module maps
        (n, n_features) to (n, any number), from where a linear layer goes on to one latent
        vector. 'auto': 'conv' with an ``image_shape``, else 'mlp'.

    decoder : {'auto', 'mlp', 'conv'} or nn.Module, default='auto'
        Network that decodes sparse sums of atoms. 'conv' mirrors a 'conv' encoder; a module maps
        the latent vectors of a row, position by position, (n, n_positions * latent_size), to
        (n, n_features), and for 'bernoulli' gives log-odds. 'auto': 'conv' where the encoder is,
        else 'mlp'.

    output_activation : {'auto', 'identity', 'sigmoid', 'tanh'}, default='auto'
        Activation of the decoder's output, in the units of X. 'auto': identity for the
        Gaussian likelihood; the Bernoulli's mean is always a sigmoid.

    hidden_layer_sizes : int or array-like of int, default=(512,)
        Hidden layers of the MLP encoder, mirrored in an MLP decoder.

    n_draws : int, default=1
        Draws of the posterior that ``transform_method='max_elbo'`` chooses from. Training
        decodes the code itself.

    transform_method : {'map', 'mean', 'max_elbo', 'sample'}, default='map'
        The code that ``transform`` returns. 'map' and 'mean': that of the unrolled coder, with
        exact zeros. 'max_elbo': of ``n_draws`` seeded draws of the posterior the one with the
        highest ELBO. 'sample': one seeded draw.

    score_method : {'elbo', 'iwae'}, default='elbo'
        Bound that ``score`` and ``score_samples`` return: the ELBO, or the importance-weighted
        bound of ``score_draws`` draws, which is tighter on average.

    score_draws : int, default=64
        Draws by which the bound is estimated.

    max_iter : int, default=100
        Number of epochs.

    batch_size : int or 'auto', default='auto'
        Rows per training step; 'auto' is min(128, n_samples).

    learning_rate_init : float, default=0.003
        Highest learning rate of Adam; it rises over the first steps of ``fit`` and then falls
        along a cosine.

    early_stopping : bool, default=False
        Whether to set ``validation_fraction`` of the rows aside, stop when their loss no
        longer improves, and keep the best epoch.

    validation_fraction : float, default=0.1
        Share of rows set aside by ``early_stopping``.

    n_iter_no_change : int, default=10
        Epochs without improvement of the training loss (validation loss with
        ``early_stopping``) after which training stops.

    tol : float, default=1e-4
        Smallest improvement of the loss that counts, in nats a row.

    warm_start : bool, default=False
        Whether ``fit`` goes on from the last fit.

    random_state : int, RandomState instance or None, default=None
        Decides initial weights, order of rows, and all draws.

    verbose : bool or int, default=False
        Whether to show a progress bar.

    callbacks : list or None, default=None
        skorch callbacks, passed through to the training loop.

    sparse_output : bool, default=False
        Whether ``transform`` returns a SciPy CSR matrix in place of an array.
    device : str, default='auto'
        'auto' (CUDA if there is one, else MPS, else CPU) or the name of a torch device.
        'accelerate': the one that `accelerate launch` gives each of its processes, which then
        share the batches of ``fit`` and ``partial_fit``; it needs the extra ``accelerate``.

    precision : {'float32', 'bf16'}, default='float32'
        Numbers that networks multiply in while they are trained. 'bf16': bfloat16, on CPUs and
        on CUDA devices that have it. Weights, densities and all that a fitted model answers
        keep their precision.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The least-squares linear dictionary of the training codes [2]_: what the atoms stand
        for in rows, as far as a linear map can say. Of grids the codes are summed over
        positions.

    grid_shape_ : tuple of two ints
        Height and width of the grid of codes; (1, 1) but for ``encoder='conv'``.

    component_usage_ : ndarray of shape (n_components,)
        Share of training rows that use each atom, by its code.

    n_dead_ : int
        Number of atoms that no training row uses.

    noise_variance_ : float
        Variance of the Gaussian likelihood, in squared units of X; NaN for 'bernoulli'.

    history_ : list of dict
        For each epoch ``epoch``, ``loss`` (nats a row, in the units of the model),
        ``valid_loss`` with early stopping, and ``duration`` in seconds. Besides, as means over
        the rows in the steps of the epoch, the two parts of the loss, which is
        ``penalty - log_likelihood``: the log likelihood of the rows, half at their codes and
        half at draws around them, and what ``alpha`` and ``latent_weight`` weigh, both nats a
        row; and ``density``, the share of codes that are not zero.

    module_ : torch.nn.Module
        The trained model, on the CPU.

    n_iter_ : int
        Number of epochs.

    n_features_in_ : int
        Number of features seen during ``fit``.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features, where X has names that are all strings.

    See Also
    --------
    SparseVAE : Variational autoencoder, with sparse priors.
    FISTADictionaryLearner : Sparse codes of the rows themselves.

    Notes
    -----
    The published method has no likelihood. Here the score is a lower bound on log p(x) under
    independent Laplace laws for all codes and the decoder's mean with Gaussian noise. The
    posterior of a code is a Laplace law too, centred on what ``transform`` returns; its scales,
    one for each atom, maximise the bound. Such a law has no mass at zero: ``inclusion`` of
    ``posterior(X)`` is one throughout, and no draw is exactly zero; ``mean`` has the zeros.
    Codes are in units of the scale of their prior.

    Against the published code, the first step is as long as the others, steps are never longer
    than the inverse of the dictionary's squared spectral norm, the l1 norm is part of the loss,
    and no gradient passes through the attention weights.

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
        **{
            name: allowed
            for name, allowed in AutoencoderBuilder._parameter_constraints.items()
            if name not in _NOT_SHARED
        },
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
        likelihood: str = "gaussian",
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
