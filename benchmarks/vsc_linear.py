"""Variational sparse coding of patches with a linear generator: the tables of Fallah & Rozell.

Runs the methods of their Table 1 with the published settings (see ``vsc_settings.py``) and the
subgradient of their Table 2, and compares them with the lasso and the exact ELBO of our defaults.
The data are whitened 16x16 patches of photographs, each pixel standardised; there are 256 atoms.
Each line is printed as soon as it is available, with these measures on held-out rows:

- loss: the published yardstick, 0.5 |x - z A|^2 + 20 |z|_1, per row. For the published methods it
  is the loss of the best of J samples (as published), or of a single sample where training uses the
  mean; otherwise it is the loss of the default code from `transform`. Codes are in the published
  unit, so all priors have the same spread.
- map: the same loss for the default code from `transform`.
- lasso: the lowest loss with the same atoms.
- norm: the mean norm of the atoms. The yardstick falls as it grows, for any codes.
- non-zero, explained: the share of non-zero codes, and the share of variance explained by the codes
  of 'loss'.
- information: multi-information of these codes in bits, estimated by 'copula' / 'plug_in'.
- IWAE: importance-weighted bound on log p(x) in nats, 64 samples, with the noise variance of
  training / with the mean squared error of posterior samples of training rows. FISTA: ELBO.
- collapse: share of codes whose posterior equals the prior / that are zero, on 95% of the rows.
- gradient: signal-to-noise ratio of the gradient of the dictionary / of the encoder.
- Jaccard: agreement of two samples on which codes are non-zero / expected by chance.

20,000 patches and 8,000 steps take about two hours on one core, mostly for J = 20 and Gamma.

    python benchmarks/vsc_linear.py [--full] [--steps 8000] [--only "thresholded Laplace, J = 1"]
        [--plot DIR] [--models DIR]
"""

import argparse
import copy
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import norm
from sklearn.decomposition import PCA, sparse_encode
from vsc_settings import N_COMPONENTS, NOISE_VARIANCE, PENALTY, SCALES, patches, published

from sklearn_vsc import FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.inspection import DictionaryDisplay
from sklearn_vsc.metrics import (
    GradientSNR,
    feature_collapse,
    gradient_snr,
    multi_information,
    posterior_collapse,
    support_consistency,
)

# Lasso penalty for atoms of unit norm: gives about as many non-zero codes as the priors expect.
ALPHA = 0.918
N_DRAWS = 64
# Number of rows whose posteriors are sampled many times.
N_DRAWN = 500
COLUMNS = (
    "method",
    "steps",
    "loss",
    "map",
    "lasso",
    "norm",
    "non-zero",
    "explained",
    "information",
    "IWAE",
    "collapse",
    "gradient",
    "Jaccard",
    "fit, CPU s",
)
FAMILIES = {
    "Gaussian": "gaussian",
    "Laplace": "laplace",
    "spike and slab": "spike_slab",
    "thresholded Gaussian": "thresholded_gaussian",
    "thresholded Laplace": "thresholded_laplace",
    "thresholded Laplace, Gamma": "thresholded_laplace_gamma",
    "thresholded Gaussian, Gamma": "thresholded_gaussian_gamma",
}
# Training with the mean of the samples, or without samples, is evaluated with one sample.
ONE_DRAW = {"objective": "elbo", "transform_method": "sample"}
EXACTLY = ONE_DRAW | {"gradient": "exact"}
# Inclusion, location and scale of a code are independent parameters.
FREE = {"threshold_prior": "gamma", "kl": "thresholded", "n_refine": 0}
LEARNED = {"callbacks": None, "noise_variance": "learned"}  # with our optimiser
# Changes of the published settings, for thresholded Laplace.
VARIANTS = {
    "J = 20, mean": ONE_DRAW | {"n_draws": 20},
    "J = 1, from noise": {"from_noise": True},
    "J = 20, from noise": {"n_draws": 20, "from_noise": True},
    "J = 20, mean, from noise": ONE_DRAW | {"n_draws": 20, "from_noise": True},
    "J = 1, subgradient": {"gradient": "subgradient"},
    "J = 20, subgradient": {"n_draws": 20, "gradient": "subgradient"},
    "J = 20, Adam": {"n_draws": 20, "callbacks": None},
    "exact gradient": EXACTLY,
    "exact, Gamma": EXACTLY | FREE,
    "exact, Gamma, noise learned": EXACTLY | FREE | LEARNED,
    "exact, Gamma, noise learned, refined": EXACTLY | FREE | LEARNED | {"n_refine": "auto"},
}
EXACT = {
    "FISTA": lambda epochs: FISTADictionaryLearner(
        N_COMPONENTS, alpha=ALPHA, batch_size=128, max_iter=epochs, random_state=0
    ),
    "exact ELBO, thresholded Laplace": lambda epochs: ThresholdedVSC(
        N_COMPONENTS, max_iter=epochs, random_state=0
    ),
    "exact ELBO, spike and slab": lambda epochs: SparseVAE(
        N_COMPONENTS, prior="spike_slab", decoder="linear", max_iter=epochs, random_state=0
    ),
}
PUBLISHED = {
    f"{label}, J = {j}": (f, {"n_draws": j}) for label, f in FAMILIES.items() for j in (1, 20)
}
PUBLISHED |= {
    f"thresholded Laplace, {label}": ("thresholded_laplace", changes)
    for label, changes in VARIANTS.items()
}
METHODS = (*EXACT, *PUBLISHED)
# Methods whose atoms are plotted.
PICTURED = (
    "FISTA",
    "Gaussian, J = 20",
    "spike and slab, J = 20",
    "thresholded Gaussian, J = 20",
    "thresholded Laplace, J = 20",
    "exact ELBO, thresholded Laplace",
)


def fitted(name, X, n_steps, folder):
    """Return the model with this name and its fit time, fitted now or loaded from the folder."""
    kept = folder and Path(folder, f"{name}, {len(X)} rows, {n_steps} steps.joblib")
    if kept and kept.exists():
        return joblib.load(kept)
    torch.manual_seed(0)  # initial weights of the published encoder
    if name in EXACT:
        model = EXACT[name](max(1, round(n_steps / math.ceil(len(X) / 128))))
    else:
        family, changes = PUBLISHED[name]
        model = published(family, n_steps, len(X), **changes)
    start = time.process_time()
    model.fit(X)
    found = model, time.process_time() - start
    if kept:
        joblib.dump(found, kept)
    return found


def published_unit(model):
    """Return the factor that converts codes to the scale of the published prior or penalty."""
    if isinstance(model, FISTADictionaryLearner):
        return model.alpha / PENALTY
    return SCALES[model.prior] / model.prior_scale


def yardstick(X, reconstruction, code):
    """Return half the squared error plus the l1 penalty of the code, per row."""
    errors, sizes = np.sum((X - reconstruction) ** 2, axis=1), np.abs(code).sum(axis=1)
    return np.mean(0.5 * errors + PENALTY * sizes)


def bounds(model, X, X_test):
    """Return bounds on log p(x) for some rows, with the trained and the refitted noise variance."""
    rows = X_test[:N_DRAWN]
    if isinstance(model, FISTADictionaryLearner):
        return f"{model.score(rows):.1f}"
    model = copy.deepcopy(model).set_params(score_method="iwae", score_draws=N_DRAWS)
    as_trained = f"{model.score(rows):.1f}"
    if model.noise_variance == "learned":
        return as_trained
    # Moment estimate: the error of posterior samples on training rows; posteriors are unchanged.
    drawn = model.sample_posterior(X[: 4 * N_DRAWN])[0]
    error = np.mean((X[: 4 * N_DRAWN] - model.inverse_transform(drawn)) ** 2)
    likelihood = model.module_.likelihood
    in_its_unit = float(likelihood.noise_variance) / model.noise_variance_
    likelihood.set_noise_variance(in_its_unit * error)
    return f"{as_trained} / {model.score(rows):.1f} at {error:.2f}"


def codes_of(model, X_test):
    """Return the codes that are evaluated, and the default codes from `transform`."""
    evaluated = model.transform(X_test)
    if isinstance(model, FISTADictionaryLearner) or model.transform_method == "map":
        return evaluated, evaluated
    return evaluated, copy.deepcopy(model).set_params(transform_method="map").transform(X_test)


@dataclass(frozen=True)
class Drawn:
    """Measures that depend on posterior samples."""

    collapse: float
    signal: GradientSNR
    agreement: float
    # Agreement of supports sampled with the same probabilities, independently of the row.
    by_chance: float


def drawn(model, X_test):
    """Return posterior collapse, gradient signal-to-noise ratio and agreement of samples."""
    rows = X_test[:N_DRAWN]
    draws = model.sample_posterior(rows, n_draws=10)
    active = draws != 0
    rates = active.mean(axis=(0, 1))
    return Drawn(
        posterior_collapse(model, rows),
        gradient_snr(model, X_test[:100], random_state=0),
        support_consistency(draws),
        float(np.sum(rates**2) / np.sum(2 * rates - rates**2)),
    )


def measure(model, X, X_test):
    """Return the figures of one line, and the measures to plot."""
    unit = published_unit(model)
    (code, point), atoms = codes_of(model, X_test), model.components_ / unit
    mean = model.inverse_transform(np.zeros((1, len(atoms)), dtype=X_test.dtype))
    rows, doubles = X_test.astype(np.float64), atoms.astype(np.float64)
    solved = sparse_encode(rows - mean, doubles, algorithm="lasso_cd", alpha=PENALTY)
    decoded, scaled = model.inverse_transform(code), unit * code
    figures = [
        f"{yardstick(X_test, decoded, scaled):.1f}",
        f"{yardstick(X_test, model.inverse_transform(point), unit * point):.1f}",
        f"{yardstick(rows, solved @ doubles + mean, solved):.1f}",
        f"{np.linalg.norm(atoms, axis=1).mean():.1f}",
        f"{np.mean(code != 0):.1%}",
        f"{1 - np.sum((X_test - decoded) ** 2) / np.sum((X_test - X_test.mean(0)) ** 2):.3f}",
        f"{multi_information(scaled):.1f} / {multi_information(scaled, method='plug_in'):.0f}",
        bounds(model, X, X_test),
    ]
    unused = feature_collapse(scaled)
    if isinstance(model, FISTADictionaryLearner):
        return [*figures, f"- / {unused:.0%}", "-", "-"], None
    found = drawn(model, X_test)
    signal = (
        "none"
        if np.isinf(found.signal.decoder)
        else (f"{found.signal.decoder:.2f} / {found.signal.encoder:.2f}")
    )
    agreement = f"{found.agreement:.2f} / {found.by_chance:.2f}"
    return [*figures, f"{found.collapse:.0%} / {unused:.0%}", signal, agreement], found


def plot_dictionaries(models, path):
    """Plot the most used atoms of each dictionary."""
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.4), layout="constrained")
    for (name, model), axis in zip(models.items(), axes.flat, strict=False):
        DictionaryDisplay.from_estimator(model, n_components=49, ax=axis)
        axis.set_title(name, fontsize="medium")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=72)


def plot_draws(found, path):
    """Plot signal-to-noise ratios and the agreement of samples, like published figures 4 and 5."""
    size = (12, 0.28 * len(found) + 1.2)
    figure, axes = plt.subplots(1, 3, figsize=size, sharey=True, layout="constrained")
    places = np.arange(len(found))
    for axis, part in zip(axes, ("decoder", "encoder"), strict=False):
        ratios = np.array([getattr(line.signal, part) for line in found.values()])
        axis.barh(places, np.where(np.isfinite(ratios), ratios, np.nan))
        for place in places[~np.isfinite(ratios)]:
            beside = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": "small"}
            axis.text(0.1, place, "no samples", **beside)
        # For collapsed posteriors, the encoder's gradient is that of the KL, which has no noise.
        axis.set(xscale="log", xlim=(0.05, 100))
        axis.axvline(np.sqrt(2 / np.pi / 100), color="k", lw=1, ls=":")  # noise alone
        title = "dictionary" if part == "decoder" else part
        axis.set(title=f"signal to noise, {title}")
    axes[2].barh(places, [line.agreement for line in found.values()], label="two samples")
    chance = [line.by_chance for line in found.values()]
    axes[2].plot(chance, places, "k|", ms=9, mew=2, label="by chance")
    axes[2].set(title="Jaccard index of supports", xlim=(0, 1.02))
    axes[2].legend(loc="lower right")
    axes[0].set_yticks(places, list(found))
    axes[0].set_ylim(len(found) - 0.4, -0.6)
    figure.savefig(path, dpi=90)


def main(names, n_rows, n_test, n_steps, folder, plot):
    """Print the table line by line, and save the plots."""
    warnings.simplefilter("ignore", UserWarning)
    X, X_test = patches(n_rows, n_test)
    exact = PCA(N_COMPONENTS - 1).fit(X.astype(np.float64)).score(X_test[:N_DRAWN])
    nothing = yardstick(X_test, np.zeros_like(X_test), np.zeros(X_test.shape))
    print(f"{len(X)} training patches, {len(X_test)} held out. Loss of the all-zero code:")
    noise = norm(scale=NOISE_VARIANCE**0.5).logpdf(X_test[:N_DRAWN]).sum(axis=1).mean()
    print(f"{nothing:.1f}. Log likelihood of zeros with the published noise variance: {noise:.1f}")
    print(f"nats; exact log likelihood of probabilistic PCA: {exact:.1f} nats.\n")
    print(f"| {' | '.join(COLUMNS)} |\n| --- {'| ---: ' * (len(COLUMNS) - 1)}|", flush=True)
    pictured, found = {}, {}
    for name in names:
        model, seconds = fitted(name, X, n_steps, folder)
        figures, of_draws = measure(model, X, X_test)
        print(f"| {' | '.join([name, str(n_steps), *figures, f'{seconds:.0f}'])} |", flush=True)
        if name in PICTURED:
            pictured[name] = model
        if of_draws is not None:
            found[name] = of_draws
    if plot:
        Path(plot).mkdir(parents=True, exist_ok=True)
        plot_dictionaries(pictured, Path(plot, "papers_linear_dictionaries.png"))
        plot_draws(found, Path(plot, "papers_linear_draws.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--rows", type=int, default=20_000, help="training rows")
    parser.add_argument("--steps", type=int, default=8_000, help="training steps")
    parser.add_argument("--full", action="store_true", help="80,000 rows, 300 epochs, as published")
    parser.add_argument("--models", metavar="DIR", help="folder to save and load fitted models")
    parser.add_argument("--plot", metavar="DIR", help="folder for the plots")
    options = parser.parse_args()
    if options.full:
        options.rows, options.steps = 80_000, 240_000
    n_test = 16_000 if options.full else 4_000
    for made in (options.models, options.plot):
        if made:
            Path(made).mkdir(parents=True, exist_ok=True)
    main(options.only, options.rows, n_test, options.steps, options.models, options.plot)
