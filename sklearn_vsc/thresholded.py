"""ThresholdedVSC: variational sparse coding with thresholded samples."""

from __future__ import annotations

import math
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
from ._base.constraints import SCALE, WEIGHT
from ._base.neural_coder import NeuralSparseCoder
from ._models.construction import VariationalDescription
from ._models.description import ModelDescription
from ._models.objectives import Objective
from ._models.sparse_linear import SparseLinearModel
from ._rows.compat import Interval, StrOptions
from .latents import LatentFamily, Thresholded
from .likelihoods import Likelihood

# Codes that are rarer than this underflow.
_LEAST_INCLUSION = 1e-9
# The threshold, relative to the scale of the prior, is no less than this, and no more than its
# inverse.
_LEAST_THRESHOLD = 1e-10
_SAMPLED_GRADIENTS = ("gumbel_softmax", "straight_through", "subgradient")
# First and last temperature of relaxed gates.
_TEMPERATURES = (1.0, 0.5)


class ThresholdedVSC(NeuralSparseCoder):
    """Variational sparse coding with thresholded samples.

    Each code z_k starts as a draw from a base distribution, Laplace or Gaussian. A draw beyond a
    threshold is shrunk by the threshold; any other becomes exactly zero. A network infers the
    posterior of the codes from the row, and a decoder, linear by default, maps codes to rows. The
    score is a lower bound on log p(x) under this model, with the KL divergence between the
    *thresholded* distributions.

    The parameters come in this order:

    * **Most used**: ``n_components``, ``prior``, ``density``, ``likelihood``, ``encoder``,
      ``decoder``, ``max_iter``.
    * **Model**: ``prior_scale``, ``threshold``, ``threshold_prior``, ``threshold_shape``,
      ``noise_variance``, ``n_dense``, ``row_scale``, ``positive_code``, ``hidden_layer_sizes``,
      ``n_unrolled``, ``image_shape``, ``output_activation``.
    * **Training**: ``solver``, ``gradient``, ``n_draws``, ``objective``, ``kl_weight``,
      ``kl_warmup``, ``batch_size``, ``learning_rate_init``, ``early_stopping``,
      ``validation_fraction``, ``n_iter_no_change``, ``tol``, ``warm_start``.
    * **Inference**: ``n_refine``, ``refine_tol``, ``transform_method``, ``score_method``,
      ``score_draws``.
    * **Published settings** (to reproduce a paper): ``kl``, ``threshold_kl_weight``,
      ``decoder_penalty``, ``noise_warmup``.
    * **Running**: ``random_state``, ``verbose``, ``callbacks``, ``sparse_output``, ``device``,
      ``precision``.

    Parameters
    ----------
    n_components : int, default=None
        Number of components K. None: as many as features.

    prior : {'laplace', 'gaussian'} or LatentFamily, default='laplace'
        Prior distribution of a code. A name stands for the base distribution, before thresholding.
        An object: a :class:`~sklearn_vsc.latents.LatentFamily`, of this package or of your own; it
        is copied, not changed. With an object, ``prior_scale``, ``density``, ``threshold``,
        ``threshold_prior``, ``threshold_shape``, ``kl`` and ``threshold_kl_weight`` do not apply.

    density : float or {'auto', 'learned', 'per_component'}, default='auto'
        Prior probability that a code is not zero, which is the expected share of non-zero codes.
        'learned': estimated from the training rows, one for all codes. 'per_component': one for
        each. Both need ``solver='em'``. With a number, a learned noise variance stays large enough
        that the codes of the training rows are no denser. 'auto': 'per_component' with
        ``solver='em'``, else 0.1.
        Used where ``threshold`` is None.

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
        linear, and a Gaussian likelihood. 'auto': 'lista' where the gradient is exact and
        thresholds have a Gamma prior, else 'mlp'.

    decoder : {'linear', 'mlp', 'conv'} or nn.Module, default='linear'
        Network that decodes a code. A module maps (n, n_components) to (n, n_features). Its outputs
        are log-odds for 'bernoulli', and log rates for 'poisson' and 'negative_binomial'. 'conv':
        the mirror image of the 'conv' encoder.

    max_iter : int, default=50
        Maximum number of epochs, that is, of passes over the rows.

    prior_scale : float, default=1.0
        Scale of the prior: the standard deviation of a Gaussian, the scale b0 of a Laplace
        distribution.

    threshold : float, default=None
        Threshold lambda, in the unit of the codes; with a Gamma prior, the mean of that prior.
        None: the threshold at which the prior has a share ``density`` of non-zero codes.

    threshold_prior : {'auto', 'gamma'} or None, default='auto'
        None: the threshold is fixed. 'gamma': it is inferred for each row and code, so that whether
        a code is on no longer depends on how uncertain the code is. With a Laplace base
        distribution the threshold is integrated out in closed form. 'auto': 'gamma' with a Laplace
        base distribution, and None with a Gaussian one, where only fixed thresholds have closed
        forms.

    threshold_shape : float, default=3.0
        Shape of the Gamma prior.

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
        without draws. It needs a linear decoder and a Gaussian likelihood. It does not apply to a
        Gaussian base distribution with Gamma thresholds. 'gumbel_softmax': relaxed draws of whether
        a code is on, separate from its value; biased, but less so as the temperature falls, from 1
        to 0.5 over the steps of ``fit``. 'straight_through', as published: passes the decoder's
        gradient past the threshold to the location and scale of every code, zero or not; a biased
        heuristic. 'subgradient': the gradient of the thresholded draw, which does not see the jump
        at the threshold. 'auto': 'exact' where it applies, ``n_draws=1`` and ``objective='elbo'``,
        else 'gumbel_softmax' or, with a ``prior`` object, the way that the object names.

    n_draws : int, default=1
        Number of posterior draws J per row. ``transform_method='max_elbo'`` chooses the best of
        them. Each training step with a sampled gradient uses as many.

    objective : {'elbo', 'max_elbo', 'iwae'}, default='elbo'
        What training maximises: the mean ELBO of the draws, the highest one, or the log of their
        mean importance weight.

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
        decoder, a Gaussian likelihood and a prior that is a spike and slab. 'auto': as many as it
        takes where sweeps apply and training is exact, else 0, which is the posterior of the
        encoder.

    refine_tol : float, default=0.05
        Rise of the bound of a row below which its sweeps end, in nats.

    transform_method : {'map', 'mean', 'max_elbo', 'sample'}, default='map'
        The code that ``transform`` returns. 'map': a sparse point estimate. With Gamma thresholds
        it keeps the codes that are more likely non-zero than zero, at the location of the posterior
        or, where the posterior is refined, at the best linear estimate given which codes are kept.
        With a fixed threshold, which keeps all inclusion probabilities low, it is the posterior
        mean where the location lies beyond the threshold. 'mean': the posterior mean, which is not
        sparse. 'max_elbo': the draw with the highest ELBO among ``n_draws`` seeded draws. 'sample':
        one seeded draw.

    score_method : {'elbo', 'iwae'}, default='elbo'
        Bound that ``score`` and ``score_samples`` return. 'elbo': the evidence lower bound. 'iwae':
        the importance-weighted bound of ``score_draws`` draws, which on average is at least as
        tight.

    score_draws : int, default=64
        Number of draws that estimate the bound where it has no closed form.

    kl : {'auto', 'thresholded', 'base'}, default='auto'
        Distributions whose KL divergence training uses. 'base': those before thresholding, as
        published; this divergence is never smaller. 'auto': 'thresholded', except with
        'straight_through' and 'subgradient', where it is 'base': the thresholded KL divergence
        leaves the location of a zero code free, and a straight-through gradient then makes it drift
        away.

    threshold_kl_weight : float, default=1.0
        Weight in training of the KL divergence of the thresholds, where it is a separate term: with
        ``kl='base'``, or with a Gaussian base distribution.

    decoder_penalty : float, default=0.0
        Weight of the squared Frobenius norm of the decoder's weights in the loss, in nats per row.

    noise_warmup : float, default=0.0
        Share of the training steps over which the noise of the draws grows from a tenth to its full
        size.

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

    threshold_ : float or ndarray of shape (n_components,)
        Threshold of the prior, or the mean of its Gamma prior, at ``density_``; NaN for a ``prior``
        object without thresholds.

    history_ : list of dict
        One record per epoch. ``epoch`` counts from 1 and ``duration`` is in seconds. ``loss`` is in
        nats per row, in the units of the model; with early stopping there is ``valid_loss``, too.
        The other values are means over the rows in the steps of the epoch. ``log_likelihood`` is
        the expected log likelihood of the rows under the posterior, in nats per row, taken at the
        draws of training where there are any, relaxed ones included. ``kl`` is the KL divergence
        without its weight, in nats per row. The loss is ``kl_weight * kl - log_likelihood``, apart
        from warm-ups and ``decoder_penalty``. With ``objective='max_elbo'`` these two terms are
        taken at the chosen draws; with 'iwae' they are the terms of the ELBO, which that bound
        exceeds. ``kl`` belongs to the distributions that the parameter ``kl`` chooses, and includes
        ``threshold_kl_weight``. ``density`` is the share of codes that are not zero, under the
        posterior or in its draws.

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
    FISTADictionaryLearner : Sparse coding by the lasso, without an inference network.

    Notes
    -----
    The following settings give the published objective [1]_, for rows standardised to unit
    variance::

        ThresholdedVSC(
            prior="laplace", prior_scale=0.1, threshold=0.25, threshold_prior=None,
            gradient="straight_through", kl="base", n_draws=20, objective="max_elbo",
            noise_variance=0.01 * n_features / 2, decoder_penalty=0.02 / n_features,
            hidden_layer_sizes=(512, 1024, 512, 256), noise_warmup=0.02, batch_size=100,
            max_iter=300, n_iter_no_change=300,
        )

    The paper minimises the mean squared error per feature with a KL weight of 0.01. A Gaussian
    likelihood with the variance given here and a KL weight of 1 is the same objective. Two
    mistakes of the published code are not reproduced: its gradient of the location counts active
    codes twice, and its 'iwae' is not a bound.

    References
    ----------
    .. [1] Fallah, K. and Rozell, C. J. (2022). Variational Sparse Coding with Learned
       Thresholding. International Conference on Machine Learning.
    .. [2] Isely, G., Hillar, C. and Sommer, F. (2010). Deciphering subsampled data: adaptive
       compressive sampling as a principle of brain communication. Advances in Neural
       Information Processing Systems.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_vsc import ThresholdedVSC
    >>> X = load_digits().data[:300]
    >>> model = ThresholdedVSC(n_components=32, max_iter=30, random_state=0).fit(X)
    >>> codes = model.transform(X)
    >>> codes.shape, bool((codes == 0).mean() > 0.5)
    ((300, 32), True)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NeuralSparseCoder._parameter_constraints,
        **NeuralSparseCoder._variational_constraints,
        **CLOSED_FORM_CONSTRAINTS,
        "prior": [StrOptions({"laplace", "gaussian"}), LatentFamily],
        "prior_scale": [SCALE],
        "threshold": [Interval(Real, 0, np.inf, closed="left"), None],
        "threshold_prior": [StrOptions({"auto", "gamma"}), None],
        "threshold_shape": [Interval(Real, 0.1, 1e6, closed="both")],
        "threshold_kl_weight": [WEIGHT],
        "gradient": [StrOptions({"auto", "exact", *_SAMPLED_GRADIENTS})],
        "kl": [StrOptions({"auto", "thresholded", "base"})],
        "noise_warmup": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        prior: str | LatentFamily = "laplace",
        prior_scale: float = 1.0,
        threshold: float | None = None,
        density: float | str = "auto",
        threshold_prior: str | None = "auto",
        threshold_shape: float = 3.0,
        threshold_kl_weight: float = 1.0,
        gradient: str = "auto",
        n_draws: int = 1,
        objective: str = "elbo",
        kl: str = "auto",
        kl_weight: float = 1.0,
        likelihood: str | Likelihood = "gaussian",
        noise_variance: float | str | ArrayLike = "auto",
        n_dense: int = 0,
        row_scale: str | None = None,
        positive_code: bool = False,
        solver: str = "auto",
        encoder: str | nn.Module = "auto",
        decoder: str | nn.Module = "linear",
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
        noise_warmup: float = 0.0,
        kl_warmup: float = 0.0,
        max_iter: int = 50,
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
        self.threshold = threshold
        self.density = density
        self.threshold_prior = threshold_prior
        self.threshold_shape = threshold_shape
        self.threshold_kl_weight = threshold_kl_weight
        self.gradient = gradient
        self.n_draws = n_draws
        self.objective = objective
        self.kl = kl
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
        self.noise_warmup = noise_warmup
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
            noise_warmup=self.noise_warmup,
            temperatures=_TEMPERATURES,
            make_family=self._make_family,
            check_family=self._check_family,
            prior_name=f"prior={self.prior!r}",
            family_name=self._family_name,
            gradient=self.gradient,
            sampled=Objective(self.objective, self.n_draws, self.kl_weight),
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
        return f"prior={self.prior!r} with threshold_prior={self.threshold_prior!r}"

    @property
    def _has_gamma_thresholds(self) -> bool:
        if self.threshold_prior == "auto":
            return self.prior == "laplace"
        return self.threshold_prior == "gamma"

    def _make_family(self, exact: bool) -> LatentFamily:
        """Return the latent family; with an ``exact`` gradient no draw needs relaxed gates."""
        if isinstance(self.prior, LatentFamily):
            asked = self.gradient if self.gradient in _SAMPLED_GRADIENTS else "auto"
            return self.prior.with_gradient("exact" if exact else asked)
        gamma = self._has_gamma_thresholds
        if gamma and self.threshold == 0:
            raise ValueError(
                "threshold=0 cannot be the mean of a Gamma prior; give a positive 'threshold', "
                "or threshold_prior=None for codes that are never thresholded."
            )
        gradient = self.gradient
        if gradient not in _SAMPLED_GRADIENTS:
            gradient = "straight_through" if exact else "gumbel_softmax"
        return Thresholded(
            self.prior,
            prior_scale=self.prior_scale,
            threshold=self.threshold,
            density=density_of_family(self),
            gamma_shape=self.threshold_shape if gamma else None,
            gradient=gradient,
            training_kl=self._training_kl,
            threshold_kl_weight=self.threshold_kl_weight,
        )

    @property
    def _training_kl(self) -> str:
        if self.kl != "auto":
            return self.kl
        return "base" if self.gradient in ("straight_through", "subgradient") else "thresholded"

    def _check_family(self, family: LatentFamily) -> None:
        """Refuse thresholds that float32 cannot represent beside the scale of the prior."""
        if not isinstance(family, Thresholded):
            return
        relative = family.threshold / family.prior_scale
        if relative and not _LEAST_THRESHOLD <= relative <= 1 / _LEAST_THRESHOLD:
            asked = f"threshold={self.threshold!r}"
            if isinstance(self.prior, LatentFamily):
                asked = self._family_name
            elif self.threshold is None:
                gamma = self._has_gamma_thresholds
                shape = f" with threshold_shape={self.threshold_shape!r}" if gamma else ""
                asked = f"density={self.density!r}{shape}"
            raise ValueError(
                f"{asked} makes a threshold of {relative:.3g} times prior_scale="
                f"{family.prior_scale!r}, which float32 cannot train. Use a threshold of "
                f"{_LEAST_THRESHOLD:g} to {1 / _LEAST_THRESHOLD:g} times 'prior_scale'."
            )
        if family.prior_inclusion < _LEAST_INCLUSION:
            raise ValueError(
                f"threshold={family.threshold:g} is too large for prior_scale="
                f"{family.prior_scale:g}: a code is non-zero with probability "
                f"{family.prior_inclusion:.1g}. Lower 'threshold', or leave it None and set "
                "'density'."
            )

    @property
    def threshold_(self) -> float | NDArray:
        """Threshold of the prior, or the mean of its Gamma prior; NaN for another family."""
        family = self.module_.family
        if not isinstance(family, Thresholded):
            return math.nan
        if isinstance(self.module_, SparseLinearModel) and self.module_.learns_density:
            return family.threshold_at(self.density_)
        return family.threshold
