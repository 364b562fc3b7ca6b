"""What the neural estimators share: building, training, coding, scoring, sampling."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from . import bounds
from ._arrays import (
    draw_seed,
    resolve_device,
    row_generators,
    row_slices,
    seeded_generator,
    to_numpy,
    to_tensor,
)
from ._base import BaseSparseCoder, Posterior
from ._compat import Interval, StrOptions, fit_context
from .latents import Draws, LatentFamily, LatentPosterior, Noise
from .likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from .model import Heads, LatentVariableModel
from .networks import LinearDecoder, atoms_from_rows, mlp, mlp_decoder
from .solvers.least_squares import effective_dictionary
from .training import TrainingOptions, train

# Numbers held at once while draws are scored; bounds memory, not results.
_CHUNK_NUMBERS = 2**24


class NeuralSparseCoder(BaseSparseCoder):
    """Base of the estimators that train an inference network.

    The model lives in units of its own: X less its column means, over one number that is the
    root mean square of what remains. That is done once at the door and undone there, so the
    unit of X changes neither the training nor the codes.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "objective": [StrOptions({"elbo", "max_elbo", "iwae"})],
        "kl_weight": [Interval(Real, 0, None, closed="left")],
        "likelihood": [StrOptions({"gaussian", "bernoulli"})],
        "noise_variance": [StrOptions({"learned"}), Interval(Real, 0, None, closed="neither")],
        "encoder": [StrOptions({"mlp"}), nn.Module],
        "decoder": [StrOptions({"linear", "mlp"}), nn.Module],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "transform_method": [StrOptions({"map", "mean", "max_elbo", "sample"})],
        "score_method": [StrOptions({"elbo", "iwae"})],
        "score_draws": [Interval(Integral, 1, None, closed="left")],
        "kl_warmup": [Interval(Real, 0, 1, closed="both")],
        "decoder_penalty": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [list, tuple, None],
        "device": [str],
    }

    @abstractmethod
    def _make_family(self) -> LatentFamily:
        """Return the latent family that the parameters name."""

    def _training_objective(self, model: LatentVariableModel) -> str:
        """Return the objective to train with: one of the bounds, or ``'exact'``."""
        return self.objective

    # ---------------------------------------------------------------- fitting

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train the model on the rows of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            When a parameter or X does not fit the model, or when training diverges.
        """
        X = self._validate_rows(X, reset=True)
        self._check_likelihood(X)
        device = resolve_device(self.device)
        goes_on = self.warm_start and hasattr(self, "module_")
        if not goes_on:
            self._initialize(X)
        X_train, X_valid = X, None
        if self.early_stopping:
            X_train, X_valid = self._split(X)
        self._train(X_train, X_valid, device, self.max_iter, schedule=True)
        self._finish(X, device)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train for one more pass over these rows.

        The first call fixes the number of features and the units of the model from its rows.
        The learning rate stays at ``learning_rate_init`` and warm-ups do not apply.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The estimator after this pass.
        """
        first = not hasattr(self, "module_")
        X = validated = self._validate_rows(X, reset=first)
        self._check_likelihood(validated)
        device = resolve_device(self.device)
        if first:
            self._initialize(X)
        self._train(X, None, device, 1, schedule=False)
        self._finish(X, device)
        return self

    def _check_likelihood(self, X: NDArray) -> None:
        if self.likelihood == "bernoulli" and (X.min() < 0 or X.max() > 1):
            raise ValueError(
                "likelihood='bernoulli' needs X in [0, 1]; got values from "
                f"{X.min():.3g} to {X.max():.3g}. Rescale X or use likelihood='gaussian'."
            )

    def _split(self, X: NDArray) -> tuple[NDArray, NDArray]:
        if len(X) < 2:
            raise ValueError("early_stopping=True needs at least 2 rows to set some aside.")
        train_rows, valid_rows = train_test_split(
            X, test_size=self.validation_fraction, random_state=draw_seed(self._random_state)
        )
        return train_rows, valid_rows

    def _initialize(self, X: NDArray) -> None:
        """Fix units and seeds, and build the model."""
        self._random_state = check_random_state(self.random_state)
        self._evaluation_seed = draw_seed(self._random_state)
        self._offset, self._unit = self._find_units(X)
        self._n_components = X.shape[1] if self.n_components is None else self.n_components
        generator = seeded_generator(draw_seed(self._random_state))
        self._optimizer_state: dict[str, Any] | None = None
        self.history_: list[dict[str, Any]] = []
        # A sample is enough to start from; float32 is what networks are trained in.
        rows = self._normalize(X[:10_000], torch.device("cpu")).float()
        self.module_ = self._build(rows, generator)

    def _find_units(self, X: NDArray) -> tuple[NDArray, float]:
        if self.likelihood == "bernoulli":
            return np.zeros(X.shape[1], dtype=X.dtype), 1.0
        offset = X.mean(axis=0, dtype=np.float64)
        power = np.mean([np.mean((X[s] - offset) ** 2) for s in row_slices(len(X), 4096)])
        unit = float(np.sqrt(power)) or float(np.abs(offset).max()) or 1.0
        return offset.astype(X.dtype), unit

    def _build(self, rows: Tensor, generator: torch.Generator) -> LatentVariableModel:
        n_features = rows.shape[1]
        n_components = self._n_components
        family = self._make_family()
        encoder, n_hidden = self._make_encoder(rows, generator)
        decoder = self._make_decoder(rows, n_components, family, generator)
        heads = Heads(n_hidden, family.n_heads, n_components, generator)
        return LatentVariableModel(encoder, heads, decoder, self._make_likelihood(), family)

    def _hidden_sizes(self) -> tuple[int, ...]:
        sizes = np.atleast_1d(self.hidden_layer_sizes)
        if sizes.size and (sizes.dtype.kind not in "iu" or sizes.min() < 1):
            raise ValueError(
                "The 'hidden_layer_sizes' parameter must hold whole numbers of at least 1; "
                f"got {self.hidden_layer_sizes!r}."
            )
        return tuple(int(size) for size in sizes)

    def _make_encoder(self, rows: Tensor, generator: torch.Generator) -> tuple[nn.Module, int]:
        """Return the encoder and the number of features it gives to the heads."""
        n_features = rows.shape[1]
        if isinstance(self.encoder, nn.Module):
            encoder = copy.deepcopy(self.encoder).float()
            return encoder, _probe(encoder, "encoder", rows[:1], None)
        sizes = self._hidden_sizes()
        return mlp(n_features, sizes, generator), sizes[-1] if sizes else n_features

    def _make_decoder(
        self, rows: Tensor, n_components: int, family: LatentFamily, generator: torch.Generator
    ) -> nn.Module:
        n_features = rows.shape[1]
        if isinstance(self.decoder, nn.Module):
            decoder = copy.deepcopy(self.decoder).float()
            _probe(decoder, "decoder", rows.new_zeros(1, n_components), n_features)
            return decoder
        if self.decoder == "mlp":
            return mlp_decoder(n_components, self._hidden_sizes(), n_features, generator)
        # Draws of the prior then decode to rows of the power that the data have.
        norm = (n_features / (n_components * family.prior_variance)) ** 0.5
        return LinearDecoder(atoms_from_rows(rows, n_components, norm, generator))

    def _make_likelihood(self) -> Likelihood:
        if self.likelihood == "bernoulli":
            return BernoulliLikelihood()
        if self.noise_variance == "learned":
            return GaussianLikelihood(1.0)
        return GaussianLikelihood(self.noise_variance / self._unit**2, learned=False)

    def _train(
        self,
        X: NDArray,
        X_valid: NDArray | None,
        device: torch.device,
        max_iter: int,
        *,
        schedule: bool,
    ) -> None:
        batch_size = min(128, len(X)) if self.batch_size == "auto" else self.batch_size
        options = TrainingOptions(
            objective=self._training_objective(self.module_),
            n_draws=self.n_draws,
            kl_weight=self.kl_weight,
            decoder_penalty=self.decoder_penalty,
            kl_warmup=self.kl_warmup if schedule else 0.0,
            noise_warmup=getattr(self, "noise_warmup", 0.0) if schedule else 0.0,
            max_iter=max_iter,
            batch_size=min(batch_size, len(X)),
            learning_rate=self.learning_rate_init,
            schedule=schedule,
            early_stopping=self.early_stopping and X_valid is not None,
            n_iter_no_change=self.n_iter_no_change,
            tol=self.tol,
            verbose=int(self.verbose),
            callbacks=tuple(self.callbacks or ()),
        )
        noise_seed, order_seed = draw_seed(self._random_state), draw_seed(self._random_state)
        with self._own_modules_seeded():
            result = train(
                self.module_.float(),
                self._normalize(X, device).float(),
                None if X_valid is None else self._normalize(X_valid, device).float(),
                options,
                noise_generator=seeded_generator(noise_seed, device),
                order_generator=seeded_generator(order_seed),
                optimizer_state=self._optimizer_state,
            )
        self._optimizer_state = result.optimizer_state
        for record in result.history:
            self.history_.append(record | {"epoch": len(self.history_) + 1})
        self.n_iter_ = len(self.history_)

    def _own_modules_seeded(self) -> Any:
        """Seed what a user's own module draws (dropout), and put the global state back."""
        if not any(isinstance(part, nn.Module) for part in (self.encoder, self.decoder)):
            return nullcontext()
        return _forked_global_generator(draw_seed(self._random_state))

    def _finish(self, X: NDArray, device: torch.device) -> None:
        """Set every fitted attribute from the trained model and its training rows."""
        self.module_.to(torch.float32 if X.dtype == np.float32 else torch.float64).eval()
        likelihood = self.module_.likelihood
        if isinstance(likelihood, GaussianLikelihood) and likelihood.learned:
            likelihood.set_noise_variance(self._best_noise_variance(X, device))
        self.noise_variance_ = self._noise_variance()
        decoder = self.module_.decoder
        codes = self._evaluate(X, device, self._map_codes)
        if isinstance(decoder, LinearDecoder):
            self.components_ = to_numpy(decoder.weight * self._unit, X.dtype)
            self.intercept_ = to_numpy(decoder.bias * self._unit, X.dtype) + self._offset
        else:
            dictionary = effective_dictionary(to_tensor(X, device), to_tensor(codes, device))
            self.components_ = to_numpy(dictionary, X.dtype)
        self._record_usage(np.mean(codes != 0, axis=0))

    def _noise_variance(self) -> float:
        likelihood = self.module_.likelihood
        if isinstance(likelihood, GaussianLikelihood):
            return float(likelihood.noise_variance) * self._unit**2
        # A coin flip's variance is its mean's, averaged under the model's own prior draws.
        return float("nan")

    def _best_noise_variance(self, X: NDArray, device: torch.device) -> float:
        """Noise variance that maximises the ELBO of the training rows, all else held."""
        def squared_error(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            posterior = model.posterior(rows)
            if model.has_closed_likelihood:
                output = model.decoder(posterior.mean)
                spread = model.decoder.output_variance(posterior.variance)
                return (rows - output).square().sum(-1) + spread
            draws = self._draws(posterior, raw, self.n_draws)
            return (rows - model.decoder(draws.code)).square().sum(-1).mean(0)

        return float(np.mean(self._evaluate(X, device, squared_error, self.n_draws)) / X.shape[1])

    # ---------------------------------------------------------------- units

    def _normalize(self, X: NDArray, device: torch.device) -> Tensor:
        """Rows in the units of the model."""
        return (to_tensor(X, device) - self._offset_on(X.dtype, device)) / self._unit

    def _denormalize(self, rows: Tensor) -> Tensor:
        """Rows in the units of X."""
        return rows * self._unit + torch.from_numpy(self._offset).to(rows)

    def _offset_on(self, dtype: np.dtype, device: torch.device) -> Tensor:
        return to_tensor(self._offset.astype(dtype, copy=False), device)

    # ---------------------------------------------------------------- evaluation

    def _evaluate(
        self,
        X: NDArray,
        device: torch.device,
        of_rows: Callable[[LatentVariableModel, Tensor, NDArray], Tensor],
        n_draws: int = 1,
    ) -> NDArray:
        """Apply a function of (model, normalised rows, raw rows) in chunks of bounded memory."""
        # At rest the model is on the CPU, where it pickles and opens anywhere.
        model = self.module_ if device.type == "cpu" else copy.deepcopy(self.module_).to(device)
        dtype = next(model.parameters()).dtype
        n_rows = max(1, _CHUNK_NUMBERS // (n_draws * max(self._n_components, X.shape[1])))
        parts = []
        with torch.no_grad():
            for chunk in row_slices(len(X), min(n_rows, 4096)):
                rows = self._normalize(X[chunk], device).to(dtype)
                parts.append(to_numpy(of_rows(model, rows, X[chunk]), X.dtype))
        return np.concatenate(parts)

    def _draws(self, posterior: LatentPosterior, X: NDArray, n_draws: int) -> Draws:
        """Seeded draws that belong to each row's content, whatever rows are beside it."""
        generators = row_generators(X, self._evaluation_seed)
        noise = [posterior.row(i).noise(n_draws, g) for i, g in enumerate(generators)]
        return posterior.rsample(Noise.concatenate(noise))

    def _evaluated(self, X: ArrayLike) -> tuple[NDArray, torch.device]:
        return self._validate_rows(X, reset=False), resolve_device(self.device)

    def transform(self, X: ArrayLike) -> NDArray:
        """Return the code of each row, by the rule that ``transform_method`` names.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code.

        Returns
        -------
        code : ndarray of shape (n_samples, n_components)
            The code of a row does not depend on the rows beside it.
        """
        X, device = self._evaluated(X)
        rule = {
            "map": self._map_codes,
            "mean": lambda model, rows, _: model.posterior(rows).mean,
            "sample": lambda model, rows, raw: self._drawn(model, rows, raw, 1)[:, 0],
            "max_elbo": self._best_codes,
        }[self.transform_method]
        n_draws = self.n_draws if self.transform_method == "max_elbo" else 1
        return self._evaluate(X, device, rule, n_draws)

    def _map_codes(self, model: LatentVariableModel, rows: Tensor, _: NDArray) -> Tensor:
        return model.posterior(rows).mode()

    def _drawn(
        self, model: LatentVariableModel, rows: Tensor, raw: NDArray, n_draws: int
    ) -> Tensor:
        """Draws of the code, rows first."""
        return self._draws(model.posterior(rows), raw, n_draws).code.transpose(0, 1)

    def _best_codes(self, model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
        """Of ``n_draws`` seeded draws the one with the highest ELBO."""
        posterior = model.posterior(rows)
        draws = self._draws(posterior, raw, self.n_draws)
        weights = model.log_weights(rows, posterior, draws, exact_ratio=False)
        best = weights.argmax(0)
        return draws.code[best, torch.arange(len(rows), device=best.device)]

    def inverse_transform(self, Z: ArrayLike) -> NDArray:
        """Decode codes: the mean of p(x given z).

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Reconstruction, in the units of the training X.
        """
        Z = self._validate_codes(Z)

        def decode(model: LatentVariableModel, codes: Tensor) -> Tensor:
            return self._denormalize(model.decode(codes))

        return self._evaluate_codes(Z, decode)

    def _evaluate_codes(
        self, Z: NDArray, of_codes: Callable[[LatentVariableModel, Tensor], Tensor]
    ) -> NDArray:
        dtype = next(self.module_.parameters()).dtype
        with torch.no_grad():
            codes = to_tensor(Z, torch.device("cpu"), dtype)
            return to_numpy(of_codes(self.module_, codes), Z.dtype)

    def posterior(self, X: ArrayLike) -> Posterior:
        """Return mean, standard deviation and inclusion probability of each code.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code.

        Returns
        -------
        posterior : Posterior
            With arrays ``mean``, ``std`` and ``inclusion`` of shape (n_samples, n_components).
        """
        X, device = self._evaluated(X)

        def moments(model: LatentVariableModel, rows: Tensor, _: NDArray) -> Tensor:
            q = model.posterior(rows)
            return torch.stack([q.mean, q.variance.clamp_min(0).sqrt(), q.inclusion], dim=1)

        found = self._evaluate(X, device, moments)
        return Posterior(mean=found[:, 0], std=found[:, 1], inclusion=found[:, 2])

    def sample_posterior(self, X: ArrayLike, n_draws: int = 1) -> NDArray:
        """Draw codes from q(z given x).

        Draws are seeded by the fit and by each row's content: the same call gives the same
        draws, and the first draws of a longer call are those of a shorter one.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code.
        n_draws : int, default=1
            Number of draws of each row.

        Returns
        -------
        draws : ndarray of shape (n_draws, n_samples, n_components)
            Codes, with exact zeros where the family has them.
        """
        n_draws = _check_count(n_draws, "n_draws")
        X, device = self._evaluated(X)

        def drawn(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            return self._drawn(model, rows, raw, n_draws)

        return np.ascontiguousarray(self._evaluate(X, device, drawn, n_draws).swapaxes(0, 1))

    def score_samples(self, X: ArrayLike) -> NDArray:
        """Return a lower bound on log p(x) of each row, in nats.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score.

        Returns
        -------
        bound : ndarray of shape (n_samples,)
            The ELBO with KL weight one, in closed form where family, decoder and likelihood
            allow it, else its unbiased estimate from ``score_draws`` seeded draws; with
            ``score_method='iwae'`` the importance-weighted bound of that many draws.
        """
        X, device = self._evaluated(X)
        bound = self._evaluate(X, device, self._row_bounds, self.score_draws)
        if self.likelihood == "gaussian":
            # Density of x from that of x / unit.
            bound = bound - X.shape[1] * np.log(self._unit)
        return bound.astype(X.dtype, copy=False)

    def _row_bounds(self, model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
        posterior = model.posterior(rows)
        closed = model.has_closed_likelihood and not posterior.needs_draws_for_kl
        if self.score_method == "elbo" and closed:
            return model.expected_log_likelihood(rows, posterior) - posterior.kl().sum(-1)
        draws = self._draws(posterior, raw, self.score_draws)
        if self.score_method == "elbo":
            return bounds.elbo(model.log_weights(rows, posterior, draws, exact_ratio=False))
        return bounds.iwae(model.log_weights(rows, posterior, draws, exact_ratio=True))

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
        check_is_fitted(self)
        n_samples = _check_count(n_samples, "n_samples")
        generator = seeded_generator(draw_seed(check_random_state(self.random_state)))
        model, dtype = self.module_, next(self.module_.parameters()).dtype
        with torch.no_grad():
            shape = (n_samples, self._n_features_out)
            codes = model.family.sample_prior(shape, generator, dtype)
            rows = model.likelihood.sample(model.decoder(codes), generator)
            return to_numpy(self._denormalize(rows), self.components_.dtype)


def _probe(module: nn.Module, name: str, batch: Tensor, n_out: int | None) -> int:
    """Run a user's module on one row and return its number of outputs, or say what is wrong."""
    wanted = "(n, n_hidden)" if n_out is None else f"(n, {n_out})"
    teach = f"The module given as '{name}' must map (n, {batch.shape[1]}) to {wanted}"
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output = module(batch)
    except RuntimeError as error:
        raise ValueError(f"{teach}, but it fails on such a batch: {error}") from error
    finally:
        module.train(was_training)
    if output.ndim != 2 or len(output) != 1 or n_out not in (None, output.shape[1]):
        raise ValueError(f"{teach}; from (1, {batch.shape[1]}) it made {tuple(output.shape)}.")
    return int(output.shape[1])


def _check_count(value: Any, name: str) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"The '{name}' parameter must be a whole number of at least 1; got {value!r}.")
    return int(value)


@contextmanager
def _forked_global_generator(seed: int) -> Iterator[None]:
    """Seed torch's global generators for a while, and put their state back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
