"""The face of the estimators that train networks: check, hand on, set attributes."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .._inference.fitted_model import FittedModel, InferenceOptions
from .._models.description import ModelDescription, NetworkParameters, Start
from .._models.latent_variable import LatentVariableModel
from .._models.sparse_linear_construction import SparseLinearDescription
from .._models.units import Units
from .._rows.array_api import follows_fit, follows_input, learns_from_input
from .._rows.arrays import draw_seed, private_random_state, resolve_device, seeded_generator
from .._rows.compat import Interval, StrOptions, fit_context
from .._rows.missing import ObservedRows
from .._rows.numbers import check_count
from .._rows.sources import ArrayRows, RowSource, dataset_rows, has_no_indices, is_dataset
from .._rows.sparse_output import join_codes
from .._rows.user_warnings import warn_user
from .._training.closed_form_training import ClosedFormTraining
from .._training.fit_state import FitState, RunParameters
from .._training.fit_tasks import FitTasks
from .._training.interruption import HeldInterrupts, unchanged_on_error
from .._training.model_fit import ModelFit, WayToTrain
from .._training.network_training import NetworkTraining
from .._training.precision import check_precision
from .._training.process_group import ProcessGroup, accelerate_state
from ..latents import LatentFamily
from ..likelihoods import LIKELIHOODS, GaussianLikelihood, Likelihood
from .coder import BaseSparseCoder, Posterior
from .constraints import WEIGHT

# Parameters that do not affect the model; some are mutable objects.
_NOT_BUILT_WITH = ("callbacks", "random_state")


class NeuralSparseCoder(BaseSparseCoder):
    """Base of the estimators that train an inference network.

    A subclass describes its model in `_describe`; fitting it and asking it are the same for all.
    """

    module_: LatentVariableModel
    device: str
    precision: str
    likelihood: str | Likelihood
    noise_variance: float | str | ArrayLike
    encoder: str | nn.Module
    decoder: str | nn.Module
    image_shape: Sequence[int] | None
    hidden_layer_sizes: int | Sequence[int]
    n_unrolled: int
    output_activation: str
    n_draws: int
    transform_method: str
    score_method: str
    score_draws: int
    max_iter: int
    batch_size: int | str
    learning_rate_init: float
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float | str
    warm_start: bool
    random_state: int | np.random.RandomState | None
    verbose: bool | int
    callbacks: Sequence[Any] | None
    _units: Units
    _evaluation_seed: int
    _random_state: np.random.RandomState
    _optimizer_state: dict[str, dict[str, Tensor]] | None
    _n_uses: NDArray
    _n_rows_seen: int
    _built_with: dict[str, Any]

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "likelihood": [StrOptions(set(LIKELIHOODS)), Likelihood],
        "noise_variance": [StrOptions({"learned"}), Interval(Real, 0, np.inf, closed="neither")],
        "image_shape": ["array-like", None],
        "output_activation": [StrOptions({"auto", "identity", "sigmoid", "tanh"})],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "n_unrolled": [Interval(Integral, 1, None, closed="left")],
        "transform_method": [StrOptions({"map", "mean", "max_elbo", "sample"})],
        "score_method": [StrOptions({"elbo", "iwae"})],
        "score_draws": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, 1e30, closed="right")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [list, tuple, None],
        "sparse_output": ["boolean"],
        "device": [str],
        "precision": [StrOptions({"float32", "bf16"})],
    }
    # Constraints of parameters that estimators with an evidence lower bound share.
    _variational_constraints: ClassVar[dict[str, list[Any]]] = {
        "objective": [StrOptions({"elbo", "max_elbo", "iwae"})],
        "kl_weight": [WEIGHT],
        "kl_warmup": [Interval(Real, 0, 1, closed="both")],
        "decoder_penalty": [WEIGHT],
        "n_refine": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left")],
        "encoder": [StrOptions({"auto", "mlp", "conv", "lista"}), nn.Module],
        "decoder": [StrOptions({"linear", "mlp", "conv"}), nn.Module],
    }
    _kept: ClassVar[dict[str, Any]] = BaseSparseCoder._kept | {
        "_built_with": dict,
        "_random_state": np.random.RandomState,
        "_evaluation_seed": Integral,
        "_n_uses": ("K",),
        "_n_rows_seen": Integral,
        "intercept_?": ("D",),
        "_units": (
            Units,
            {"offset": ("D",), "scale": Real, "fill": ("D",), "reads_mask": bool},
        ),
    }

    @abstractmethod
    def _describe(self) -> ModelDescription:
        """Return the model and its objective, as the parameters describe them."""

    _dead_atoms_cure = "Train longer or on more rows, or lower n_components."

    # --- learning

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def fit(self, X: ArrayLike | Dataset | DataLoader, y: Any = None) -> Self:
        """Train the model on the rows of X.

        The likelihood counts the observed entries of rows with missing ones. Encoders read the
        mean of the column in place of a missing entry; if the rows that a model is built from
        have missing entries, an MLP or convolutional encoder also reads where they are.

        Ctrl-C ends the training: the estimator is then as it was after the last whole epoch, and
        a warning says so; if no epoch was finished it has its first weights. Attributes that
        depend on the training rows are then computed from at most 4096 rows.

        Rows of a memory-mapped array or of a dataset are read batch by batch and not kept.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), Dataset or DataLoader
            Training rows; NaN is a missing entry. Items of a dataset are rows, or tuples that
            begin with one; images, where there is an ``image_shape``, are flattened. An
            ``IterableDataset`` may also give batches of rows. It must end, give the same rows
            each time it is iterated, and keeps its order.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            When a parameter or X does not fit the model, when X holds infinite values or a row or
            column without an observed entry, or when training diverges.
        TypeError
            When items of a dataset are not rows of numbers, or it has no length and no end.
        """
        self._check_parameters()
        if self.early_stopping and has_no_indices(X):
            raise ValueError(
                "early_stopping=True selects validation rows by index, which an IterableDataset "
                "or DataLoader does not support: give a map-style Dataset, with __getitem__ and "
                "__len__, or use early_stopping=False."
            )
        tasks = FitTasks(self, X, y, self.max_iter)
        # Before there is a model Ctrl-C ends the fit, and after that only the training.
        with HeldInterrupts() as interrupts:
            with unchanged_on_error(self):
                goes_on = self.warm_start and hasattr(self, "module_")
                fit, state, rows, _ = self._begin(X, reset=not goes_on)
                n_before = len(state.history)
                interrupted = fit.fit(state, rows, tasks, interrupts)
                self._take(state, warn=not (interrupted or interrupts.came))
            interrupts.attempt(tasks.end)
        if interrupted or interrupts.came:
            # At the very end: where warnings are errors, nothing is lost by it.
            warn_user(
                "Training was interrupted: the model is that of the last whole epoch, "
                f"{self.n_iter_ - n_before} of {self.max_iter}."
            )
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def partial_fit(self, X: ArrayLike | Dataset | DataLoader, y: Any = None) -> Self:
        """Train for one more pass over these rows.

        The rows of the first call decide the number of features and whether an encoder reads where
        entries are missing. The units of the model follow the rows.
        The learning rate stays at ``learning_rate_init`` and warm-ups do not apply.
        ``component_usage_`` counts all rows seen, by their codes at that time; the
        ``components_`` of a decoder that is not linear follow from the rows of this call.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), Dataset or DataLoader
            Training rows, as ``fit`` takes them; NaN is a missing entry.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The estimator after this pass.

        Raises
        ------
        ValueError
            When a parameter or X does not fit the model, or when training diverges.
        KeyboardInterrupt
            On Ctrl-C, so that a loop around the call ends too. As after any error, the estimator
            is then as it was before the call.
        """
        self._check_parameters()
        with unchanged_on_error(self):
            fit, state, rows, observed = self._begin(X, reset=not hasattr(self, "module_"))
            fit.one_pass(state, rows, observed)
            self._take(state, warn=False)
        return self

    def _check_parameters(self) -> None:
        # In `partial_fit`, scikit-learn skips the check for a fitted estimator.
        self._validate_params()
        self._description.check()
        for callback in self.callbacks or ():
            named = isinstance(callback, tuple) and len(callback) == 2
            if not hasattr(callback[1] if named else callback, "on_train_begin"):
                raise TypeError(
                    "The 'callbacks' parameter must hold skorch callbacks, or pairs of a name and "
                    f"such a callback; got {callback!r}."
                )

    def _begin(
        self, X: ArrayLike | Dataset | DataLoader, *, reset: bool
    ) -> tuple[ModelFit, FitState, RowSource, ObservedRows]:
        """Check rows and device; return a fit, the state that it goes on from, and the rows."""
        description = self._description
        rows, observed = self._rows_of(X, description.likelihood, reset=reset)
        description.check_range(observed.least, observed.most)
        device = self._device()
        check_precision(self.precision, device)
        group = ProcessGroup.of_device(self.device)
        if group is not None:
            n_iter = 0 if reset else self.n_iter_
            group.check_same(rows.chunks(), self._shared_parameters() | {"n_iter_": n_iter})
        run, inference = self._run_parameters(), self._inference_options()
        way = self._way(description, run, device, group, inference)
        fit = ModelFit(description, run, way, device, group, inference, self._as)
        if not reset:
            return fit, self._state(), rows, observed
        state = fit.new_state(rows, observed)
        # Parameters may be changed later; the model was built with these.
        self._built_with = {
            name: copy.deepcopy(value) if isinstance(value, LatentFamily) else value
            for name, value in self.get_params(deep=False).items()
            if name not in _NOT_BUILT_WITH
        }
        return fit, state, rows, observed

    @staticmethod
    def _way(
        description: ModelDescription,
        run: RunParameters,
        device: torch.device,
        group: ProcessGroup | None,
        inference: InferenceOptions,
    ) -> WayToTrain:
        """Return what trains the model."""
        if isinstance(description, SparseLinearDescription):
            return ClosedFormTraining(run, inference)
        return NetworkTraining(description, run, device, group, inference)

    def _rows_of(
        self, X: ArrayLike | Dataset | DataLoader, likelihood: Likelihood, *, reset: bool
    ) -> tuple[RowSource, ObservedRows]:
        """Check rows, in one pass, and sum up what is observed."""
        rows: RowSource
        if is_dataset(X):
            rows = dataset_rows(X, self.image_shape)
        else:
            rows = ArrayRows(self._validate_table(X, reset=reset))
        observed = ObservedRows(rows.n_features)
        for chunk in rows.chunks():
            if is_dataset(X):
                self._validate_table(chunk, reset=reset and not observed.n_rows)
            likelihood.check_rows(chunk, observed.n_rows)
            observed.add(chunk)
        observed.check(columns=reset)
        # All other entries are smaller in size than one of these two.
        self._check_size(np.array([observed.least, observed.most], rows.dtype), reset=reset)
        return rows, observed

    def _run_parameters(self) -> RunParameters:
        return RunParameters(
            self.max_iter,
            self.batch_size,
            self.learning_rate_init,
            self.early_stopping,
            self.validation_fraction,
            self.n_iter_no_change,
            self._description.default_tol if isinstance(self.tol, str) else float(self.tol),
            self.random_state,
            self.verbose,
            self.callbacks,
            self.precision,
        )

    def _shared_parameters(self) -> dict[str, Any]:
        """Return what processes that train one model must agree on; modules are not compared."""
        return {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name not in (*_NOT_BUILT_WITH, "verbose") and not isinstance(value, nn.Module)
        }

    def _state(self) -> FitState:
        """Return what a fit goes on from."""
        return FitState(
            module=self.module_,
            units=self._units,
            evaluation_seed=self._evaluation_seed,
            # A copy: should the fit fail, the next call draws as if this one had not been made.
            random_state=copy.deepcopy(self._random_state),
            optimizer_state=self._optimizer_state,
            history=self.history_,
            n_uses=self._n_uses,
            n_rows_seen=self._n_rows_seen,
        )

    def _take(self, state: FitState, *, warn: bool) -> None:
        """Set the attributes that a fit leaves behind; warn about dead atoms if asked to."""
        self.module_ = state.module
        self.history_ = state.history
        self.n_iter_ = len(state.history)
        self.noise_variance_ = state.noise_variance
        self.components_ = state.components
        self.__dict__.pop("intercept_", None)
        if state.intercept is not None:
            self.intercept_ = state.intercept
        self._units, self._evaluation_seed = state.units, state.evaluation_seed
        self._random_state, self._optimizer_state = state.random_state, state.optimizer_state
        self._n_uses, self._n_rows_seen = state.n_uses, state.n_rows_seen
        self._record_usage(state.usage, warn=warn)

    def _as(self, state: FitState) -> Self:
        """Return a copy of the estimator as a fit in this state would leave it."""
        estimator = copy.copy(self)
        estimator._take(state, warn=False)
        return estimator

    # --- the description and the fitted model

    @property
    def _description(self) -> ModelDescription:
        return self._describe()

    def _networks(self) -> NetworkParameters:
        """Return the parameters of the encoder and the decoder."""
        return NetworkParameters(
            self.encoder,
            self.decoder,
            self.hidden_layer_sizes,
            self.image_shape,
            self.output_activation,
            self.n_unrolled,
        )

    def _likelihood(self) -> Likelihood:
        """Return the likelihood that the parameters name, or the one that was given."""
        if isinstance(self.likelihood, Likelihood):
            return self.likelihood
        named = LIKELIHOODS[self.likelihood]
        if named is GaussianLikelihood and isinstance(self.noise_variance, Real):
            return GaussianLikelihood(float(self.noise_variance), learned=False)
        return named()

    @property
    def _likelihood_name(self) -> str:
        """The likelihood as the user gave it, for messages."""
        if isinstance(self.likelihood, Likelihood):
            return f"{type(self.likelihood).__name__}(...)"
        return repr(self.likelihood)

    @property
    def _fitted(self) -> FittedModel:
        """The trained model, with all that its answers depend on."""
        return self._fitted_on(self._device())

    def _fitted_on(self, device: torch.device) -> FittedModel:
        options = self._inference_options()
        return FittedModel(self.module_, self._units, self._evaluation_seed, device, options)

    def _inference_options(self) -> InferenceOptions:
        description, obstacle = self._description, None
        if self.score_method == "collapsed_elbo":
            obstacle = description.obstacle_to_collapsing
        return InferenceOptions(
            n_refine=description.n_refine,
            kl_weight=description.kl_weight,
            n_draws=self.n_draws,
            transform_method=self.transform_method,
            score_method=self.score_method,
            score_draws=self.score_draws,
            obstacle_to_collapsing=obstacle,
        )

    def _device(self) -> torch.device:
        """Return the device that the parameter names, or that accelerate gave this process."""
        if self.device == "accelerate":
            return accelerate_state().device
        return resolve_device(self.device)

    def _evaluated(self, X: ArrayLike) -> NDArray:
        """Check rows for a fitted model."""
        X = self._validate_rows(X, reset=False)
        likelihood = self.module_.likelihood
        likelihood.check_range(np.nanmin(X), np.nanmax(X))
        likelihood.check_rows(X)
        return X

    @property
    def _n_features_out(self) -> int:
        return self.module_.n_codes

    def _rebuilt(self, state: dict[str, Any], modules: dict[str, Any]) -> LatentVariableModel:
        """Return the model that a saved fit describes, with weights of no meaning."""
        state["_built_with"] |= modules
        names = [name for name in self.get_params(deep=False) if name not in _NOT_BUILT_WITH]
        if state["_built_with"].keys() != set(names):
            raise ValueError(f"_built_with must hold {', '.join(names)}.")
        builder = type(self)(**state["_built_with"])
        builder._validate_params()
        generator = seeded_generator(0)
        # Rows decide the first weights, which are overwritten: any rows will do.
        rows = torch.randn(2, state["n_features_in_"], generator=generator)
        return builder._description.build(Start(rows, state["_units"]), generator)

    # --- answers

    @follows_input
    def transform(self, X: ArrayLike) -> NDArray:
        """Return the code of each row, by the rule that ``transform_method`` names.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN is a missing entry.

        Returns
        -------
        code : ndarray or CSR matrix of shape (n_samples, n_components)
            The code of a row does not depend on the rows beside it. Sparse with
            ``sparse_output=True``.
        """
        X = self._evaluated(X)
        return join_codes(self._fitted.codes(X), sparse_output=self.sparse_output)

    @follows_input
    def inverse_transform(self, Z: ArrayLike) -> NDArray:
        """Decode codes: the mean of p(x given z).

        Parameters
        ----------
        Z : array-like or sparse matrix of shape (n_samples, n_components)
            Codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Reconstruction, in the units of the training X; missing entries of a row are filled.
        """
        Z = self._validate_codes(Z)
        return self._fitted_on(torch.device("cpu")).decode(Z)

    @follows_input
    def posterior(self, X: ArrayLike) -> Posterior:
        """Return mean, standard deviation and inclusion probability of each code.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN is a missing entry.

        Returns
        -------
        posterior : Posterior
            With arrays ``mean``, ``std`` and ``inclusion`` of shape (n_samples, n_components).
        """
        X = self._evaluated(X)
        found = self._fitted.moments(X)
        return Posterior(mean=found[:, 0], std=found[:, 1], inclusion=found[:, 2])

    @follows_input
    def sample_posterior(self, X: ArrayLike, n_draws: int = 1) -> NDArray:
        """Draw codes from q(z given x).

        Draws are seeded by the fit and by the content of each row: the same call gives the same
        draws, and a longer call begins with the draws of a shorter one.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN is a missing entry.
        n_draws : int, default=1
            Number of draws of each row.

        Returns
        -------
        draws : ndarray of shape (n_draws, n_samples, n_components)
            Codes, with exact zeros where the family has them.
        """
        n_draws = check_count(n_draws, "n_draws")
        X = self._evaluated(X)
        return self._fitted.posterior_draws(X, n_draws)

    @follows_input
    def score_samples(self, X: ArrayLike) -> NDArray:
        """Return a lower bound on log p(x) of each row, in nats.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score; NaN is a missing entry, and the bound is on log p of the observed ones.

        Returns
        -------
        bound : ndarray of shape (n_samples,)
            The ELBO with KL weight one, in closed form where family, decoder and likelihood
            allow it, otherwise its unbiased estimate from ``score_draws`` seeded draws; with
            ``score_method='iwae'`` the importance-weighted bound of that many draws.
            'collapsed_elbo', and 'iwae' where the model allows it, draw which codes are not
            zero and integrate their values out.
        """
        X = self._evaluated(X)
        return self._fitted.log_bounds(X)

    @follows_fit
    def sample(self, n_samples: int = 1) -> NDArray:
        """Draw new rows: codes from the prior, decoded, with observation noise.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            New rows, in the units of the training X.
        """
        self._check_usable()
        n_samples = check_count(n_samples, "n_samples")
        generator = seeded_generator(draw_seed(private_random_state(self.random_state)))
        return self._fitted_on(torch.device("cpu")).sample(
            n_samples, generator, self.components_.dtype
        )

    # --- for metrics

    def _code_divergence(self, X: ArrayLike) -> NDArray:
        """KL of each code's posterior from its prior, nats, (n_samples, n_features_out)."""
        X = self._evaluated(X)
        return self._fitted.code_divergence(X)

    def _training_gradients(
        self, X: ArrayLike, **options: Any
    ) -> Iterator[Iterator[dict[str, Tensor]]]:
        """Yield gradients of the training loss, as `NetworkTraining.gradients` does."""
        if isinstance(self._description, SparseLinearDescription):
            raise ValueError(
                f"This {type(self).__name__} learns by closed forms, without a gradient: fit it "
                "with solver='gradient'."
            )
        X = self._evaluated(X)
        way = NetworkTraining(
            self._description,
            self._run_parameters(),
            self._device(),
            None,
            self._inference_options(),
        )
        return way.gradients(self._state(), X, **options)
