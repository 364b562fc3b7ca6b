"""Bias, signal and cost of the gradient estimators of SparseVAE.

The data are 8 by 8 patches of photographs, with 64 codes and linear decoders. There are three
tables:

1. Gates of a spike and slab. A model is fitted for a few epochs and its posteriors of some held-out
   rows are fixed. Each estimator then draws the gradient of the ELBO with respect to their log-odds
   many times. With a linear decoder the ELBO has a closed form, so the true gradient is known.
2. The result of training the model from the start with each estimator.
3. Importance-weighted bounds with a Laplace prior: the signal-to-noise ratio of the gradient with
   respect to the location of each code, standard and doubly reparameterised, by number of samples.

Times are CPU time on one thread. Takes about four minutes on one core.

    python benchmarks/gradients.py [--rows 64] [--draws 16384] [--epochs 15]
"""

import argparse
import dataclasses
import statistics
import time
import warnings

import numpy as np
import torch
from data import natural_patches

from sklearn_vsc import SparseVAE
from sklearn_vsc._models.gate_gradients import NVILBaseline
from sklearn_vsc._models.latent_variable import LatentVariableModel
from sklearn_vsc._models.objectives import Objective

N_COMPONENTS = 64
BATCH_SIZE = 128
TEMPERATURES = (1.0, 0.5, 0.2)
# Number of samples in one pass; limits memory and does not change the results.
CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An estimator of the gradient and its name in the table."""

    name: str
    is_biased: bool
    objective: Objective
    # How the family samples a gate in training.
    draws: str = "score"
    temperature: float = 0.5


def gate_estimators():
    """Yield all estimators of gate gradients; those that relax gates at several temperatures."""
    for gradient in ("gumbel_softmax", "straight_through"):
        for t in TEMPERATURES:
            yield Estimator(f"{gradient}, temperature {t}", True, Objective(), gradient, t)
    yield Estimator("reinforce", False, Objective(gates="reinforce"))
    yield Estimator("reinforce, 8 draws", False, Objective(n_draws=8, gates="reinforce"))
    yield Estimator("nvil", False, Objective(gates="nvil"))
    yield Estimator("muprop", False, Objective(gates="muprop"))
    for t in TEMPERATURES:
        objective = Objective(gates="rebar")
        yield Estimator(f"rebar, temperature {t}", False, objective, temperature=t)


def fit(X, n_epochs, **parameters):
    """Fit a model for all its epochs."""
    model = SparseVAE(
        N_COMPONENTS,
        encoder="mlp",
        decoder="linear",
        n_refine=0,  # refinement would change the posteriors that are compared
        max_iter=n_epochs,
        n_iter_no_change=n_epochs,
        random_state=0,
        **parameters,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*atoms")  # some are not used yet
        return model.fit(X)


class HeldPosterior(LatentVariableModel):
    """A model with a given posterior instead of an inferred one."""

    def __init__(self, model, posterior):
        parts = ("encoder", "heads", "decoder", "likelihood", "family", "gate_baseline")
        super().__init__(*(getattr(model, part) for part in parts))
        self.given = posterior

    def posterior(self, x):
        """Return the given posterior."""
        return self.given


def gradient_at(model, x, posterior, name, objective, generator):
    """Return the gradient of each row's bound with respect to one parameter of its posterior."""
    parameter = getattr(posterior, name).detach().requires_grad_()
    model = HeldPosterior(model, dataclasses.replace(posterior, **{name: parameter}))
    bound = model.training_step(x, objective, generator, kl_weight=1.0).bound
    (gradient,) = torch.autograd.grad(bound.sum(), parameter)
    return gradient


def moments(model, x, posterior, name, objective, n_draws):
    """Return the mean and the variance of the estimates, and their number."""
    generator = torch.Generator().manual_seed(0)
    copies = max(1, CHUNK // (len(x) * objective.n_draws))
    # Each copy of a row counts as a separate row with its own samples.
    values = {f.name: getattr(posterior, f.name) for f in dataclasses.fields(posterior)}
    many = dataclasses.replace(
        posterior,
        **{k: v.repeat(copies, 1) for k, v in values.items() if isinstance(v, torch.Tensor)},
    )
    n_seen, total, total_squares = 0, 0.0, 0.0
    while n_seen < n_draws:
        found = gradient_at(model, x.repeat(copies, 1), many, name, objective, generator)
        found = found.unflatten(0, (copies, len(x)))
        total = total + found.sum(0)
        total_squares = total_squares + found.square().sum(0)
        n_seen += copies
    mean = total / n_seen
    return mean, (total_squares / n_seen - mean**2) * n_seen / (n_seen - 1), n_seen


def signal_to_noise(mean, variance, n_seen):
    """Return the mean gradient's magnitude over an estimate's standard deviation, averaged."""
    # The square of a sample mean is too large by the variance of this mean.
    signal = (mean**2 - variance / n_seen).clamp_min(0).sqrt()
    return float(torch.where(variance > 0, signal / variance.clamp_min(1e-300).sqrt(), 0).mean())


def set_gates(model, estimator):
    """Make the family sample gates as the estimator requires."""
    model.family.gradient = estimator.draws
    model.family.temperature = estimator.temperature


def milliseconds(model, batch, objective, n_repeats=50):
    """Return the median time of one gradient of all weights, for one batch."""
    generator = torch.Generator().manual_seed(0)
    times = []
    for _ in range(n_repeats):
        model.zero_grad()
        start = time.process_time()
        step = model.training_step(batch, objective, generator, kl_weight=1.0)
        step.bound.mean().backward()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def train_baseline(model, rows, n_steps=1000):
    """Train the baseline of NVIL for a fixed model."""
    generator = torch.Generator().manual_seed(0)
    model.gate_baseline = NVILBaseline(rows.shape[1], generator).to(rows)
    optimizer = torch.optim.Adam(model.gate_baseline.parameters(), lr=1e-3)
    objective = Objective(gates="nvil")
    for _ in range(n_steps):
        batch = rows[torch.randint(len(rows), (BATCH_SIZE,), generator=generator)]
        optimizer.zero_grad()
        step = model.training_step(batch, objective, generator, kl_weight=1.0)
        (-step.bound).mean().backward()
        optimizer.step()
    model.gate_baseline.eval()


def print_gates(X, X_held, n_draws, n_epochs):
    """Print bias, signal and cost of each estimator of the gradient of gates."""
    fitted = fit(X, n_epochs, prior="spike_slab")
    model, cpu = fitted.module_, torch.device("cpu")
    rows, x = (fitted._units.to_model(data, cpu) for data in (X, X_held))
    train_baseline(model, rows)
    with torch.no_grad():
        posterior = model.posterior(x)
    on = posterior.inclusion
    print(
        f"Gates of {len(x)} rows with {N_COMPONENTS} codes each, after {n_epochs} epochs. "
        f"Inclusion: {float(on.mean()):.1%} on average, above one half for "
        f"{float((on > 0.5).double().mean()):.1%} of the codes. {n_draws} estimates each; "
        f"times for {BATCH_SIZE} rows.\n"
    )
    exact = gradient_at(model, x, posterior, "logit", Objective("exact"), torch.Generator())
    print("| estimator | biased | relative bias | by noise alone | signal to noise | ms |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for estimator in gate_estimators():
        set_gates(model, estimator)
        found = moments(model, x, posterior, "logit", estimator.objective, n_draws)
        mean, variance, n_seen = found
        bias = float((mean - exact).norm() / exact.norm())
        noise = float((variance.sum() / n_seen).sqrt() / exact.norm())
        spent = milliseconds(model, rows[:BATCH_SIZE], estimator.objective)
        print(
            f"| {estimator.name} | {'yes' if estimator.is_biased else 'no'} | {bias:.3f} | "
            f"{noise:.3f} | {signal_to_noise(*found):.3f} | {spent:.1f} |",
            flush=True,
        )
    spent = milliseconds(model, rows[:BATCH_SIZE], Objective("exact"))
    print(f"| exact | no | 0 | 0 | no noise | {spent:.1f} |", flush=True)


def print_fits(X, X_test, n_epochs):
    """Print the result of training with each estimator."""
    print(f"\nTrained from the start for {n_epochs} epochs; {len(X_test)} held-out rows.\n")
    print("| gradient | draws | score, nats | non-zero codes | fit, s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    runs = [("exact", 1), ("gumbel_softmax", 1), ("straight_through", 1), ("reinforce", 1)]
    runs += [("reinforce", 8), ("nvil", 1), ("muprop", 1), ("rebar", 1), ("rebar", 8)]
    for gradient, n_draws in runs:
        start = time.process_time()
        model = fit(X, n_epochs, prior="spike_slab", gradient=gradient, n_draws=n_draws)
        spent = time.process_time() - start
        density = np.mean(model.transform(X_test) != 0)
        print(
            f"| {gradient} | {n_draws} | {model.score(X_test):.1f} | {density:.1%} | {spent:.1f} |",
            flush=True,
        )


def print_importance_weights(X, X_held, n_draws, n_epochs):
    """Print the signal-to-noise ratios for importance-weighted bounds."""
    fitted = fit(X, n_epochs, prior="laplace")
    model = fitted.module_
    x = fitted._units.to_model(X_held, torch.device("cpu"))
    with torch.no_grad():
        posterior = model.posterior(x)
    print(f"\nSignal to noise of the gradient of the IWAE bound; {n_draws} estimates.\n")
    print("| draws | standard | doubly reparameterised |")
    print("| ---: | ---: | ---: |")
    for j in (1, 4, 16, 64):
        ratios = [
            signal_to_noise(*moments(model, x, posterior, "loc", objective, n_draws))
            for objective in (
                Objective("iwae", j),
                Objective("iwae", j, doubly_reparameterised=True),
            )
        ]
        print(f"| {j} | {ratios[0]:.3f} | {ratios[1]:.3f} |", flush=True)


def main(n_rows, n_draws, n_epochs):
    """Load the data and print the tables."""
    torch.set_num_threads(1)
    options = {"patch_size": 8, "dtype": np.float64}
    X, X_test = natural_patches(10_000, **options)
    print_gates(X, X_test[:n_rows], n_draws, n_epochs)
    print_fits(X, X_test, n_epochs)
    print_importance_weights(X, X_test[:n_rows], min(n_draws, 4096), n_epochs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="held-out rows of the first table")
    parser.add_argument("--draws", type=int, default=16_384, help="estimates per estimator")
    parser.add_argument("--epochs", type=int, default=15, help="epochs of each fit")
    given = parser.parse_args()
    main(given.rows, given.draws, given.epochs)
