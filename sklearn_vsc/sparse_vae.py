"""SparseVAE: variational autoencoders with Gaussian, Laplace, Cauchy and spike-and-slab priors."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ._base.closed_form import (
    CLOSED_FORM_CONSTRAINTS,
    dense_columns_of_fit,
    density_of_family,
    density_of_fit,
    describe,
)
from ._base.constraints import SCALE
from ._base.neural_coder import NeuralSparseCoder
from ._inference.fitted_model import refuse_to_collapse
from ._models.construction import VariationalDescription
from ._models.description import ModelDescription
from ._models.objectives import SCORE_GRADIENTS, Objective
from ._rows.compat import Interval, StrOptions
from .latents import Continuous, LatentFamily, SpikeSlab
from .likelihoods import Likelihood

_DEFAULT_POSTERIORS = {
    "gaussian": "gaussian",
    "laplace": "gaussian",
    "cauchy": "cauchy",
    "spike_slab": "spike_slab",
}
_RELAXED_GRADIENTS = ("gumbel_softmax", "straight_through")


class SparseVAE(NeuralSparseCoder):
    """Variational autoencoder with a prior that favours sparse codes.

    The priors are Gaussian (the plain VAE), Laplace and Cauchy [1]_, and spike-and-slab [3]_,
    whose codes have exact zeros. A network infers the posterior of each row, and a decoder, an
    MLP by default, maps codes to rows.

    The parameters come in this order:

    * **Most used**: ``n_components``, ``prior``, ``density``, ``likelihood``, ``encoder``,
      ``decoder``, ``max_iter``.
    * **Model**: ``prior_scale``, ``slab``, ``posterior_family``, ``noise_variance``, ``n_dense``,
      ``row_scale``, ``positive_code``, ``hidden_layer_sizes``, ``n_unrolled``, ``image_shape``,
      ``output_activation``.
    * **Training**: ``solver``, ``gradient``, ``temperature``, ``n_draws``, ``objective``,
      ``gradient_of_bound``, ``kl_weight``, ``kl_warmup``, ``batch_size``, ``learning_rate_init``,
      ``early_stopping``, ``validation_fraction``, ``n_iter_no_change``, ``tol``, ``warm_start``.
    * **Inference**: ``n_refine``, ``refine_tol``, ``transform_method``, ``score_method``,
      ``score_draws``.
    * **Published settings** (to reproduce a paper): ``decoder_penalty``.
    * **Running**: ``random_state``, ``verbose``, ``callbacks``, ``sparse_output``, ``device``,
      ``precision``.

    Parameters
    ----------
    n_components : int, default=None
        Number of components K. None: as many as features.

    prior : {'laplace', 'gaussian', 'cauchy', 'spike_slab'} or LatentFamily, default='laplace'
        Prior distribution of a code. An object: a :class:`~sklearn_vsc.latents.LatentFamily`, of
        this package or of your own; it is copied, not changed. With an object, ``prior_scale``,
        ``density`` and ``slab`` do not apply, and ``posterior_family`` must be 'auto'.

    density : float or {'auto', 'learned', 'per_component'}, default='auto'
        Prior probability that a code is not zero, which is the expected share of non-zero codes.
        'learned': estimated from the training rows, one for all codes. 'per_component': one for
        each. Both need ``solver='em'``. With a number, a learned noise variance stays large enough
        that the codes of the training rows are no denser. 'auto': 'per_component' with
        ``solver='em'``, else 0.1.
        Used by ``prior='spike_slab'``.

    likelihood : {'gaussian', 'bernoulli', 'poisson', 'negative_binomial'} \
            or Likelihood, default='gaussian'
        Distribution of a row given its code. 'bernoulli' needs X in [0, 1]; 'poisson' and
        'negative_binomial' need whole non-negative numbers (counts) and decode to log rates. An
        object: a :class:`~sklearn_vsc.likelihoods.Likelihood`, such as
        ``PoissonLikelihood(exposure='row_sums')``; it is copied, not changed.

    encoder : {'auto', 'lista', 'mlp', 'conv'} or nn.Module, default='auto'
        Network that reads a row. A module maps (n, n_features) to (n, any number). 'conv':
        convolutions of stride 2 over rows that are images of shape ``image_shape``. 'lista':
        ``n_unrolled`` steps of accelerated ISTA with the atoms of the decoder, which must be
        linear, and a Gaussian likelihood. 'auto': 'lista' where the gradient is exact and the prior
        is a spike and slab, else 'mlp'.

    decoder : {'linear', 'mlp', 'conv'} or nn.Module, default='mlp'
        Network that decodes a code. A module maps (n, n_components) to (n, n_features). Its outputs
        are log-odds for 'bernoulli', and log rates for 'poisson' and 'negative_binomial'. 'conv':
        the mirror image of the 'conv' encoder.

    max_iter : int, default=100
        Maximum number of epochs, that is, of passes over the rows.

    prior_scale : float, default=1.0
        Scale of the prior: the standard deviation of a Gaussian, the scale b0 of a Laplace
        distribution. It is the scale of a Cauchy prior, too; with a spike and slab it is the scale
        of the slab.

    slab : {'gaussian', 'laplace'}, default='gaussian'
        Distribution of a code that is not zero. Used by ``prior='spike_slab'``.

    posterior_family : {'auto', 'gaussian', 'laplace', 'cauchy', 'spike_slab'}, default='auto'
        Distribution of a code given its row. 'auto': 'gaussian' for the Gaussian and Laplace
        priors, else the same as the prior; a ``prior`` object brings its own posterior. A posterior
        with an infinite KL divergence from the prior raises an error.

    noise_variance : float, array-like of shape (n_features,), or one of \
            {'auto', 'learned', 'per_feature'}, default='auto'
        Variance of the Gaussian likelihood, in squared units of X. 'learned': estimated from the
        training rows, one for all features. 'per_feature': one for each. An array: one for each, as
        given. The last two need ``solver='em'``. A learned variance is no smaller than the
        resolution of the data allows: h^2 / 12 for values that are h apart. 'auto': 'per_feature'
        with ``solver='em'``, else 'learned'.

    n_dense : int, default=0
        Number of dense columns beside the sparse codes: directions in which all rows vary, each by
        a normally distributed amount. They count as noise that features share, and are integrated
        out exactly. Needs ``solver='em'``.

    row_scale : {'noise', 'row'} or None, default=None
        What differs in size from row to row. 'noise': the noise of a row, dense columns included,
        has a scale of its own, so that it follows a multivariate Student t distribution. 'row': the
        whole row, less the intercept, has a contrast of its own, by which its codes are multiplied.
        Both need ``solver='em'``.

    positive_code : bool, default=False
        Whether codes are never negative, under the prior and under the posterior. Needs
        ``solver='em'``.

    hidden_layer_sizes : int or array-like of int, default=(512,)
        Sizes of the hidden layers of the MLP encoder; an MLP decoder has them in reverse order.

    n_unrolled : int, default=8
        Number of unrolled steps of ISTA. Used by ``encoder='lista'``.

    image_shape : tuple of three ints, default=None
        Channels, height and width of a row that is an image, for 'conv' networks. No other network
        uses it.

    output_activation : {'auto', 'identity', 'sigmoid', 'tanh'}, default='auto'
        Activation of the decoder's output under the Gaussian likelihood, in the units of X. 'auto':
        'identity'. Other likelihoods have a fixed activation: 'bernoulli' a sigmoid, 'poisson' and
        'negative_binomial' an exponential.

    solver : {'auto', 'em', 'gradient'}, default='auto'
        How the model learns. 'em': by closed forms, pass by pass, without a network. It needs a
        linear decoder, a Gaussian likelihood and a prior that is a spike and slab. 'gradient': by
        steps of Adam on an encoder and a decoder. 'auto': 'em' where it applies and no parameter of
        'gradient' (``encoder``, ``gradient``, ``objective``, ``kl_weight`` and the like) is set.

    gradient : str, default='auto'
        How training differentiates the bound. 'exact': the gradient of the ELBO in closed form,
        without draws. It needs a linear decoder and a Gaussian likelihood. It applies to every
        prior except Cauchy. The others are ways in which gradients reach the gates of a spike and
        slab. 'gumbel_softmax' (relaxed gates) and 'straight_through' (hard gates, relaxed gradient)
        are biased. 'reinforce' (with ``n_draws`` above 1 the baseline of each draw is the mean of
        the others), 'nvil', 'muprop' and 'rebar' are unbiased. 'auto': 'exact' where it applies,
        ``n_draws=1`` and ``objective='elbo'``, else 'gumbel_softmax' or, with a ``prior`` object,
        the way that the object names.

    temperature : float or tuple of two floats, default=(1.0, 0.5)
        Temperature of relaxed gates: a constant, or the first and last value of an exponential
        schedule over the steps of ``fit``. ``partial_fit`` stays at the last value.

    n_draws : int, default=1
        Number of posterior draws J per row. ``transform_method='max_elbo'`` chooses the best of
        them. Each training step with a sampled gradient uses as many.

    objective : {'elbo', 'max_elbo', 'iwae'}, default='elbo'
        What training maximises: the mean ELBO of the draws, the highest one, or the log of their
        mean importance weight. Unbiased gradients of the gates exist only for 'elbo'.

    gradient_of_bound : {'auto', 'standard', 'dreg'}, default='auto'
        Gradient used with ``objective='iwae'``. 'standard': the plain gradient, whose
        signal-to-noise ratio falls as draws are added. 'dreg': the doubly reparameterised gradient
        [4]_, for priors other than 'spike_slab', and for ``prior`` objects whose
        ``can_be_doubly_reparameterised`` is true. 'auto': 'dreg' where it applies, else 'standard'.

    kl_weight : float, default=1.0
        Weight of the KL divergence in training. The score always uses 1.

    kl_warmup : float, default=0.0
        Share of the training steps over which the weight of the KL divergence grows from zero.

    batch_size : int or 'auto', default='auto'
        Number of rows per training step. 'auto': min(128, n_samples). With ``solver='em'`` 'auto'
        is all rows or, where there are more than 4096 and more than 20 for each component, a fifth
        of that many.

    learning_rate_init : float, default=0.001
        Highest learning rate of Adam: it rises over the first steps of ``fit`` and then falls along
        a cosine.

    early_stopping : bool, default=False
        Whether to set aside ``validation_fraction`` of the rows, stop when the loss on them no
        longer improves, and keep the best epoch.

    validation_fraction : float, default=0.1
        Share of the rows that ``early_stopping`` sets aside.

    n_iter_no_change : int, default=10
        Number of epochs without an improvement of the training loss (of the validation loss with
        ``early_stopping``) after which training stops. With ``solver='em'`` it counts with
        ``early_stopping`` alone.

    tol : float or 'auto', default='auto'
        With ``solver='gradient'``: smallest improvement of the loss that counts, in nats per row.
        With ``solver='em'``: training stops once a pass raises the bound by less than this share of
        all that it has risen. 'auto': 1e-4 with 'gradient', 0.005 with 'em'.

    warm_start : bool, default=False
        Whether ``fit`` continues from the last fit.

    n_refine : int or 'auto', default='auto'
        Most sweeps over the codes of a row that find its posterior, in ``transform``, ``posterior``
        and ``score``. They start from no code at all, let codes enter one by one, and end once the
        bound of the row rises by less than ``refine_tol``. With ``gradient='exact'`` the decoder
        learns from posteriors of the encoder refined by at most 5 sweeps. Sweeps need a linear
        decoder, a Gaussian likelihood and a spike and slab. 'auto': as many as it takes where
        sweeps apply and training is exact, else 0, which is the posterior of the encoder.

    refine_tol : float, default=0.05
        Rise of the bound of a row below which its sweeps end, in nats.

    transform_method : {'map', 'mean', 'max_elbo', 'sample'}, default='map'
        The code that ``transform`` returns. 'map': a point estimate, sparse with a spike and slab.
        It then keeps the codes that are more likely non-zero than zero, at the location of the slab
        or, where the posterior is refined, at the best linear estimate given which codes are kept.
        Other posteriors have no atom at zero, and 'map' is their location. 'mean': the posterior
        mean, which is not sparse. 'max_elbo': the draw with the highest ELBO among ``n_draws``
        seeded draws. 'sample': one seeded draw.

    score_method : {'elbo', 'collapsed_elbo', 'iwae'}, default='elbo'
        Bound that ``score`` and ``score_samples`` return. 'elbo': the evidence lower bound. 'iwae':
        the importance-weighted bound of ``score_draws`` draws, which on average is at least as
        tight. 'collapsed_elbo', on average between the two: the ELBO of the gates alone, with the
        slabs integrated out. It needs a spike and slab with a Gaussian slab, a linear decoder and a
        Gaussian likelihood; there 'iwae' draws gates alone, too.

    score_draws : int, default=64
        Number of draws that estimate the bound where it has no closed form.

    decoder_penalty : float, default=0.0
        Weight of the squared Frobenius norm of the decoder's weights in the loss, in nats per row.

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
        of the training codes [2]_.

    intercept_ : ndarray of shape (n_features,)
        What a linear decoder adds to ``code @ components_``. It exists only with a linear decoder.

    component_usage_ : ndarray of shape (n_components,)
        Share of the training rows that use each atom. A row uses an atom where its 'map' code is
        not zero.

    n_dead_ : int
        Number of atoms that no training row uses: the zeros of ``component_usage_``.

    noise_variance_ : float or ndarray of shape (n_features,)
        Variance of the Gaussian likelihood, in squared units of X. NaN for any other likelihood.

    density_ : float or ndarray of shape (n_components,)
        Prior probability that a code is not zero, or that of each code where they were learned one
        by one.

    dense_components_ : ndarray of shape (n_dense, n_features)
        The dense columns, in units of X. A column times a standard normal number is its part of a
        row.

    history_ : list of dict
        One record per epoch. ``epoch`` counts from 1 and ``duration`` is in seconds. ``loss`` is in
        nats per row, in the units of the model; with early stopping there is ``valid_loss``, too.
        The other values are means over the rows in the steps of the epoch. ``log_likelihood`` is
        the expected log likelihood of the rows under the posterior, in nats per row, taken at the
        draws of training where there are any, relaxed ones included. ``kl`` is the KL divergence
        without its weight, in nats per row. The loss is ``kl_weight * kl - log_likelihood``, apart
        from warm-ups and ``decoder_penalty``. With ``objective='max_elbo'`` these two terms are
        taken at the chosen draws; with 'iwae' they are the terms of the ELBO, which that bound
        exceeds. ``density`` is the share of codes that are not zero, under the posterior or in its
        draws. It is recorded with ``prior='spike_slab'``.

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
    ThresholdedVSC : Variational sparse coding in which a threshold sets codes to zero.

    Notes
    -----
    A Cauchy distribution has no mean. A Cauchy posterior therefore needs a decoder with bounded
    output: ``output_activation='sigmoid'`` or ``'tanh'`` with the Gaussian likelihood, or a
    module of your own whose output is bounded. With any other decoder the ELBO is minus
    infinity, and ``fit`` raises an error. ``posterior(X)`` gives the location in place of the
    mean, and an infinite standard deviation.

    References
    ----------
    .. [1] Pyle, S. A Sparse VAE.
    .. [2] Isely, G., Hillar, C. and Sommer, F. (2010). Deciphering subsampled data: adaptive
       compressive sampling as a principle of brain communication. Advances in Neural
       Information Processing Systems.
    .. [3] Tonolini, F., Jensen, B. S. and Murray-Smith, R. (2020). Variational Sparse Coding.
       Uncertainty in Artificial Intelligence.
    .. [4] Tucker, G., Lawson, D., Gu, S. and Maddison, C. (2019). Doubly Reparameterized
       Gradient Estimators for Monte Carlo Objectives. International Conference on Learning
       Representations.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_vsc import SparseVAE
    >>> X = load_digits().data[:300]
    >>> model = SparseVAE(n_components=10, prior="laplace", max_iter=20, random_state=0).fit(X)
    >>> model.transform(X).shape
    (300, 10)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NeuralSparseCoder._parameter_constraints,
        **NeuralSparseCoder._variational_constraints,
        **CLOSED_FORM_CONSTRAINTS,
        "prior": [StrOptions({"gaussian", "laplace", "cauchy", "spike_slab"}), LatentFamily],
        "prior_scale": [SCALE],
        "slab": [StrOptions({"gaussian", "laplace"})],
        "posterior_family": [StrOptions({"auto", "gaussian", "laplace", "cauchy", "spike_slab"})],
        "gradient": [StrOptions({"auto", "exact", *_RELAXED_GRADIENTS, *SCORE_GRADIENTS})],
        "temperature": [Interval(Real, 0, np.inf, closed="neither"), "array-like"],
        "gradient_of_bound": [StrOptions({"auto", "standard", "dreg"})],
        "score_method": [StrOptions({"elbo", "collapsed_elbo", "iwae"})],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        prior: str | LatentFamily = "laplace",
        prior_scale: float = 1.0,
        density: float | str = "auto",
        slab: str = "gaussian",
        posterior_family: str = "auto",
        gradient: str = "auto",
        temperature: float | tuple[float, float] = (1.0, 0.5),
        n_draws: int = 1,
        objective: str = "elbo",
        gradient_of_bound: str = "auto",
        kl_weight: float = 1.0,
        likelihood: str | Likelihood = "gaussian",
        noise_variance: float | str | ArrayLike = "auto",
        n_dense: int = 0,
        row_scale: str | None = None,
        positive_code: bool = False,
        solver: str = "auto",
        encoder: str | nn.Module = "auto",
        decoder: str | nn.Module = "mlp",
        image_shape: tuple[int, int, int] | None = None,
        output_activation: str = "auto",
        hidden_layer_sizes: int | Sequence[int] = (512,),
        n_unrolled: int = 8,
        decoder_penalty: float = 0.0,
        n_refine: int | str = "auto",
        refine_tol: float = 0.05,
        transform_method: str = "map",
        score_method: str = "elbo",
        score_draws: int = 64,
        kl_warmup: float = 0.0,
        max_iter: int = 100,
        batch_size: int | str = "auto",
        learning_rate_init: float = 1e-3,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float | str = "auto",
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool | int = False,
        callbacks: Sequence[Any] | None = None,
        sparse_output: bool = False,
        device: str = "auto",
        precision: str = "float32",
    ) -> None:
        self.n_components = n_components
        self.prior = prior
        self.prior_scale = prior_scale
        self.density = density
        self.slab = slab
        self.posterior_family = posterior_family
        self.gradient = gradient
        self.temperature = temperature
        self.n_draws = n_draws
        self.objective = objective
        self.gradient_of_bound = gradient_of_bound
        self.kl_weight = kl_weight
        self.likelihood = likelihood
        self.noise_variance = noise_variance
        self.n_dense = n_dense
        self.row_scale = row_scale
        self.positive_code = positive_code
        self.solver = solver
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = image_shape
        self.output_activation = output_activation
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_unrolled = n_unrolled
        self.decoder_penalty = decoder_penalty
        self.n_refine = n_refine
        self.refine_tol = refine_tol
        self.transform_method = transform_method
        self.score_method = score_method
        self.score_draws = score_draws
        self.kl_warmup = kl_warmup
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

    def _describe(self) -> ModelDescription:
        return describe(self)

    def _network_description(self, **common: Any) -> VariationalDescription:
        return VariationalDescription(
            **common,
            likelihood=self._likelihood(),
            kl_weight=self.kl_weight,
            decoder_penalty=self.decoder_penalty,
            kl_warmup=self.kl_warmup,
            temperatures=self._temperatures,
            make_family=self._make_family,
            check_choices=self._check_choices,
            prior_name=f"prior={self.prior!r}",
            family_name=self._family_name,
            gradient=self.gradient,
            sampled=Objective(
                self.objective,
                self.n_draws,
                self.kl_weight,
                gates=self.gradient if self._has_score_gradient else None,
                doubly_reparameterised=self.objective == "iwae"
                and self.gradient_of_bound != "standard"
                and self._can_be_doubly_reparameterised,
            ),
        )

    @property
    def density_(self) -> float | NDArray:
        """Prior probability that a code is not zero, or that of each code."""
        return density_of_fit(self)

    @property
    def dense_components_(self) -> NDArray:
        """The dense columns, (n_dense, n_features), in units of X."""
        return dense_columns_of_fit(self)

    @property
    def _family_name(self) -> str:
        """Parameters that name the family, for messages."""
        if isinstance(self.prior, LatentFamily):
            return f"prior={self.prior!r}"
        if self.prior == "spike_slab":
            return f"prior={self.prior!r} with slab={self.slab!r}"
        return f"prior={self.prior!r} with posterior_family={self.posterior_family!r}"

    @property
    def _has_gates(self) -> bool:
        """Whether the prior has an atom at zero."""
        if isinstance(self.prior, LatentFamily):
            return not self.prior.is_continuous
        return self.prior == "spike_slab"

    @property
    def _can_be_doubly_reparameterised(self) -> bool:
        if isinstance(self.prior, LatentFamily):
            return self.prior.can_be_doubly_reparameterised
        return not self._has_gates

    @property
    def _has_score_gradient(self) -> bool:
        """Whether gates learn by a score-function estimator."""
        return self._has_gates and self.gradient in SCORE_GRADIENTS

    @property
    def _posterior_name(self) -> str:
        """Distribution of the posterior of a named prior."""
        if self.posterior_family == "auto":
            return _DEFAULT_POSTERIORS[str(self.prior)]
        return self.posterior_family

    def _make_family(self, exact: bool) -> LatentFamily:
        """Return the latent family; a named one is the same with an ``exact`` gradient."""
        if isinstance(self.prior, LatentFamily):
            # Score-function estimators do not differentiate draws of gates.
            asked = self.gradient if self.gradient in _RELAXED_GRADIENTS else "auto"
            return self.prior.with_gradient("exact" if exact else asked)
        if self.prior != "spike_slab":
            return Continuous(self.prior, self._posterior_name, prior_scale=self.prior_scale)
        gradient = self.gradient if self.gradient in _RELAXED_GRADIENTS else "gumbel_softmax"
        return SpikeSlab(
            self.slab,
            prior_scale=self.prior_scale,
            density=density_of_family(self),
            gradient="score" if self.gradient in SCORE_GRADIENTS else gradient,
        )

    @property
    def _temperatures(self) -> tuple[float, float]:
        """First and last temperature of relaxed gates."""
        values = np.ravel(self.temperature)
        numbers = values.dtype.kind in "iuf" and len(values) in (1, 2)
        if not numbers or not ((values >= 1e-3) & (values <= 1e3)).all():
            raise ValueError(
                "The 'temperature' parameter must be one number from 0.001 to 1000, or a pair of "
                f"them, the first and the last; got {self.temperature!r}."
            )
        return float(values[0]), float(values[-1])

    def _check_choices(self) -> None:
        """Refuse parameters that do not go together."""
        description = self._describe()
        if isinstance(self.prior, LatentFamily):
            self._check_object(self.prior)
        else:
            self._check_posterior()
        if self.score_method == "collapsed_elbo":
            obstacle = description.obstacle_to_collapsing
            if obstacle is not None:
                refuse_to_collapse(obstacle)
        if self._has_score_gradient and self.objective != "elbo":
            raise ValueError(
                f"gradient={self.gradient!r} estimates the gradient of the ELBO; with objective="
                f"{self.objective!r} use gradient='straight_through' or 'gumbel_softmax'."
            )
        if self.gradient_of_bound == "dreg" and not self._can_be_doubly_reparameterised:
            needed = "draws without an atom at zero"
            if not self._has_gates:
                needed = "a posterior with a method 'detached'"
            raise ValueError(
                f"gradient_of_bound='dreg' needs {needed}, which "
                f"{self._family_name} does not give; use gradient_of_bound='auto'."
            )

    def _check_object(self, prior: LatentFamily) -> None:
        """Refuse parameters that do not go with a prior object."""
        if self.posterior_family != "auto":
            raise ValueError(
                f"posterior_family={self.posterior_family!r} does not apply to prior={prior!r}, "
                "which brings its own posterior; use posterior_family='auto'."
            )
        if self._has_score_gradient and prior.as_gated() is None:
            raise ValueError(
                f"gradient={self.gradient!r} needs a spike and slab with free gates, which "
                f"prior={prior!r} is not: its 'as_gated' returns None. Use gradient='auto'."
            )

    def _check_posterior(self) -> None:
        """Refuse pairs of prior and posterior that do not go together."""
        posterior = self._posterior_name
        if (posterior == "spike_slab") != (self.prior == "spike_slab"):
            raise ValueError(
                f"posterior_family={posterior!r} does not go with prior={self.prior!r}: one has "
                "an atom at zero and the other has not. Use posterior_family='auto'."
            )
        if posterior == "cauchy" and self.prior != "cauchy":
            raise ValueError(
                f"posterior_family='cauchy' has an infinite KL from prior={self.prior!r}, whose "
                "tails are lighter; use prior='cauchy', or posterior_family='auto'."
            )
