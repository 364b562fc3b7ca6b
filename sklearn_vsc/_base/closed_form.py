"""Which estimators learn by closed forms, and what their parameters then describe."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._models.description import ModelDescription
from .._models.sparse_linear import SparseLinearModel
from .._models.sparse_linear_construction import SparseLinearDescription, slab_of
from .._rows.arrays import to_numpy
from .._rows.compat import Interval, StrOptions
from ..latents import LatentFamily
from ..likelihoods import GaussianLikelihood, Likelihood
from .constraints import DENSITY

# Constraints of the parameters that describe the sparse linear model.
CLOSED_FORM_CONSTRAINTS: dict[str, list[Any]] = {
    "solver": [StrOptions({"auto", "em", "gradient"})],
    "noise_variance": [
        StrOptions({"auto", "learned", "per_feature"}),
        Interval(Real, 0, np.inf, closed="neither"),
        "array-like",
    ],
    "density": [StrOptions({"auto", "learned", "per_component"}), DENSITY],
    "n_dense": [Interval(Integral, 0, None, closed="left")],
    "row_scale": [StrOptions({"noise", "row"}), None],
    "positive_code": ["boolean"],
    "refine_tol": [Interval(Real, 0, np.inf, closed="left")],
    "tol": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
}
# Parameters that only gradient steps have a use for, and the values that do not ask for them.
_OF_NETWORKS: dict[str, tuple[Any, ...]] = {
    "encoder": ("auto",),
    "gradient": ("auto",),
    "objective": ("elbo",),
    "kl": ("auto",),
    "kl_weight": (1,),
    "kl_warmup": (0,),
    "noise_warmup": (0,),
    "decoder_penalty": (0,),
    "threshold_kl_weight": (1,),
    "gradient_of_bound": ("auto", "standard"),
    "posterior_family": ("auto", "spike_slab"),
    "precision": ("float32",),
}
# Parameters that only the sparse linear model has, and the values that do not ask for it.
_OF_CLOSED_FORMS: dict[str, tuple[Any, ...]] = {
    "n_dense": (0,),
    "row_scale": (None,),
    "positive_code": (False,),
}
# What 'auto' stands for under gradient steps.
DEFAULT_DENSITY = 0.1


def _is_among(value: Any, values: tuple[Any, ...]) -> bool:
    return isinstance(value, (str, bool, Real, type(None))) and value in values


def solver_of(estimator: Any) -> str:
    """Return 'em' or 'gradient': what an estimator's parameters ask for.

    Raises
    ------
    ValueError
        Where parameters ask for both.
    """
    obstacle = obstacle_to_closed_forms(estimator)
    asked = _asks_for_closed_forms(estimator)
    solver = estimator.solver
    if solver == "auto":
        solver = "gradient" if obstacle and not asked else "em"
    if solver == "em" and obstacle:
        why = "solver='em'" if estimator.solver == "em" else str(asked)
        raise ValueError(
            f"{why} needs closed-form updates, which {obstacle} does not have: they need "
            "decoder='linear', likelihood='gaussian' and a prior that is a spike and slab, and "
            "train no network. "
            f"Leave '{obstacle.partition('=')[0]}' at its default"
            + (", or use solver='gradient'." if estimator.solver == "em" else ".")
        )
    if solver == "gradient" and asked:
        raise ValueError(f"{asked} needs closed-form updates: use solver='em' or 'auto'.")
    return str(solver)


def _asks_for_closed_forms(estimator: Any) -> str | None:
    """Name the parameter that only the sparse linear model has, if one is set."""
    for name, values in _OF_CLOSED_FORMS.items():
        value = getattr(estimator, name)
        if not _is_among(value, values):
            return f"{name}={value!r}"
    noise, density = estimator.noise_variance, estimator.density
    if isinstance(noise, str) and noise == "per_feature":
        return f"noise_variance={noise!r}"
    if not isinstance(noise, (str, Real)):
        return "an array as 'noise_variance'"
    if isinstance(density, str) and density != "auto":
        return f"density={density!r}"
    return None


def obstacle_to_closed_forms(estimator: Any) -> str | None:
    """Name the parameter that keeps closed forms from applying, if there is one."""
    for name, values in _OF_NETWORKS.items():
        value = getattr(estimator, name, values[0])
        if not _is_among(value, values):
            return f"{name}={value!r}"
    if not _is_among(estimator.decoder, ("linear",)):
        return f"decoder={estimator.decoder!r}"
    if not _is_among(estimator.likelihood, ("gaussian",)) and not isinstance(
        estimator.likelihood, GaussianLikelihood
    ):
        return f"likelihood={estimator.likelihood!r}"
    if estimator.output_activation not in ("auto", "identity"):
        return f"output_activation={estimator.output_activation!r}"
    if _is_among(estimator.n_refine, (0,)) and not isinstance(estimator.n_refine, str):
        return "n_refine=0"
    if estimator.device == "accelerate":
        return "device='accelerate'"
    try:
        slab = slab_of(estimator._make_family(True), positive=False)
    except ValueError:
        # A value out of range, which is reported where the model is built.
        return None
    if slab is None:
        return str(estimator._family_name)
    return None


def density_of_family(estimator: Any) -> float:
    """Return the density of the prior that is declared; what is learned starts from it."""
    density = estimator.density
    return DEFAULT_DENSITY if isinstance(density, str) else float(density)


def density_of_fit(estimator: Any) -> float | NDArray:
    """Return the prior density of a fitted estimator, or that of each code."""
    model = estimator.module_
    if not isinstance(model, SparseLinearModel):
        return float(model.family.prior_inclusion)
    density = to_numpy(model.density, estimator.components_.dtype)
    return density if model.learned.density == "per_component" else float(density[0])


def dense_columns_of_fit(estimator: Any) -> NDArray:
    """Return the dense columns of a fitted estimator, in units of X."""
    model = estimator.module_
    if not isinstance(model, SparseLinearModel):
        return estimator.components_[:0].copy()
    return to_numpy(model.dense * estimator._units.scale, estimator.components_.dtype)


def describe(estimator: Any) -> ModelDescription:
    """Return the model that the parameters of an estimator describe."""
    common = {
        "n_components": estimator.n_components,
        "likelihood_name": estimator._likelihood_name,
        "networks": estimator._networks(),
        "n_draws": estimator.n_draws,
        "n_refine": estimator.n_refine,
        "refine_tol": float(estimator.refine_tol),
    }
    if solver_of(estimator) == "em":
        return _describe_closed_form(estimator, estimator._likelihood(), **common)
    description: ModelDescription = estimator._network_description(**common)
    return description


def _describe_closed_form(
    estimator: Any, likelihood: Likelihood, **common: Any
) -> ModelDescription:
    """Return the sparse linear model that the parameters of an estimator describe."""
    density: Any = estimator.density
    threshold = getattr(estimator, "threshold", None)
    if isinstance(estimator.prior, LatentFamily):
        # The object says how dense codes are, unless that is to be learned.
        density = density if density in ("learned", "per_component") else None
    elif density == "auto":
        # A threshold that is given says how dense codes are.
        density = "per_component" if threshold is None else None
    elif threshold is not None:
        density = None
    noise: Any = estimator.noise_variance
    if isinstance(likelihood, GaussianLikelihood) and isinstance(estimator.likelihood, Likelihood):
        given = likelihood.arguments()["noise_variance"]
        noise = "learned" if likelihood.learned else given
    if isinstance(noise, str):
        noise = "shared" if noise == "learned" else "per_feature"
    elif not isinstance(noise, Real):
        noise = _checked_noise(noise)
    return SparseLinearDescription(
        likelihood=likelihood,
        make_family=lambda: estimator._make_family(True),
        check_choices=getattr(estimator, "_check_choices", lambda: None),
        check_family=getattr(estimator, "_check_family", lambda _: None),
        noise=noise,
        density=density,
        n_dense=int(estimator.n_dense),
        row_scale=estimator.row_scale,
        positive=bool(estimator.positive_code),
        **common,
    )


def _checked_noise(noise: Any) -> Any:
    values = np.asarray(noise)
    right = values.ndim == 1 and values.dtype.kind in "iuf"
    if not right or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            "The 'noise_variance' parameter must be one positive number for each feature, where it "
            f"is an array; got {noise!r}."
        )
    return values.astype(float)
