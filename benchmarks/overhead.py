"""Cost of an epoch of our estimators compared with a plain torch loop and the same network.

Three ways to train one model from the same start alternate, so that drift of the machine affects
all of them:

- ours: `fit`, with its batches, callbacks, schedule and clipping, from one epoch to the next;
- our loss: a plain loop (permutation, batches by index, Adam) around the library's own loss;
- by hand: the same loop around the closed-form loss, written out by hand.

The target is at most 1.5 times the loop by hand. With sweeps of coordinate ascent there is no loss
by hand: the plain loop calls the same sweeps, and the table gives their share of its time. Times
are medians over the epochs after the first one of each repeat.

    python benchmarks/overhead.py [--threads 1 2] [--n-refine 0 10] [--clock cpu]
"""

import argparse
import copy
import math
import time
import warnings

import numpy as np
import torch
from skorch.callbacks import Callback

from sklearn_vsc import SparseVAE, ThresholdedVSC
from sklearn_vsc._models.objectives import Objective
from sklearn_vsc.datasets import load_natural_patches

BATCH_SIZE = 128
LEARNING_RATE = 1e-3
# CPU time suits a machine that is busy with other work; on one thread it is equivalent.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class EpochClock(Callback):
    """Measure from one epoch's start to the next's, which includes the other callbacks."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_begin(self, net, **kwargs):
        """Clear the recorded times."""
        self.ticks_ = []

    def on_epoch_begin(self, net, **kwargs):
        """Record the start of an epoch."""
        self.ticks_.append(self.clock())

    def on_train_end(self, net, **kwargs):
        """Record the end of the last epoch."""
        self.ticks_.append(self.clock())


def seconds_of_ours(fitted, X, n_epochs, clock):
    """Return the seconds of each epoch of a fit that continues from a fitted estimator."""
    epochs = EpochClock(clock)
    model = copy.deepcopy(fitted)
    model.set_params(callbacks=[epochs], max_iter=n_epochs, warm_start=True).fit(X)
    return np.diff(epochs.ticks_)


def seconds_of_loop(module, rows, loss, n_epochs, clock):
    """Return the seconds of each epoch of a plain loop that continues from a fitted module."""
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(n_epochs):
        start = clock()
        for picked in torch.randperm(len(rows), generator=generator).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss(module, rows[picked]).backward()
            optimizer.step()
        seconds.append(clock() - start)
    return np.array(seconds)


def our_loss(n_refine):
    """Return the library's objective as a function of a module and a batch."""
    objective = Objective("exact", n_refine=n_refine)
    generator = torch.Generator().manual_seed(0)

    def loss(module, x):
        return -module.training_step(x, objective, generator, kl_weight=1.0).bound.mean()

    return loss


def _heads(module, x):
    return module.heads(module.encoder(x)).unbind(1)


def _bounded_exp(head):
    reach = torch.where(head < 0, 10.0, 3.0)
    return torch.exp(reach * torch.tanh(head / reach))


def _negative_log_likelihood(module, x, mean, variance):
    """Return minus the expected log density of rows: linear decoder, independent codes."""
    weight, log_noise = module.decoder.weight, module.likelihood.log_noise_variance
    error = (x - mean @ weight - module.decoder.bias).square().sum(-1)
    error = error + variance @ weight.square().sum(1)
    return 0.5 * (error / log_noise.exp() + x.shape[1] * (math.log(2 * math.pi) + log_noise))


def gaussian_loss(module, x):
    """Return minus the ELBO for a Gaussian prior of unit scale, written out."""
    loc, log_scale = _heads(module, x)
    variance = _bounded_exp(log_scale).square()
    kl = 0.5 * (variance + loc.square() - 1 - variance.log()).sum(-1)
    return (_negative_log_likelihood(module, x, loc, variance) + kl).mean()


def thresholded_loss(module, x):
    """Return minus the ELBO for a thresholded Laplace prior, its threshold integrated out."""
    loc, log_scale, log_shape, log_rate = _heads(module, x)
    prior_shape, prior_rate = module.family.gamma_shape, module.family.gamma_rate()
    prior_log_on = -prior_shape * math.log1p(1 / prior_rate)
    prior_log_off = math.log(-math.expm1(prior_log_on))
    scale = _bounded_exp(log_scale)
    shape, rate = prior_shape * _bounded_exp(log_shape), prior_rate * _bounded_exp(log_rate)
    log_on = -shape * torch.log1p(1 / (rate * scale))
    on, off = log_on.exp(), -torch.expm1(log_on)
    distance = loc.abs()
    slab = distance + scale * torch.exp(-distance / scale) - 1 - scale.log()
    kl = on * (log_on - prior_log_on + slab) + off * (off.log() - prior_log_off)
    variance = on * (2 * scale.square() + off * loc.square())
    return (_negative_log_likelihood(module, x, on * loc, variance) + kl.sum(-1)).mean()


def share_of_refinement(module, rows, n_refine, clock):
    """Return the share of an epoch of the plain loop spent on coordinate-ascent sweeps."""
    spent = []

    def loss(timed, x):
        def refine(*arguments):
            start = clock()
            found = type(timed).refine(timed, *arguments)
            spent.append(clock() - start)
            return found

        # Replaces the method for this instance only.
        timed.refine = refine
        return our_loss(n_refine)(timed, x)

    seconds = seconds_of_loop(module, rows, loss, 1, clock)
    return sum(spent) / seconds.sum()


def models(n_components, n_refine):
    """Yield estimators with their losses by hand; sweeps need codes that can be zero."""
    common = {"batch_size": BATCH_SIZE, "learning_rate_init": LEARNING_RATE, "random_state": 0}
    yield (
        ThresholdedVSC(n_components, encoder="mlp", gradient="exact", n_refine=n_refine, **common),
        thresholded_loss,
    )
    if not n_refine:
        yield (
            SparseVAE(
                n_components,
                prior="gaussian",
                decoder="linear",
                gradient="exact",
                n_refine=0,
                **common,
            ),
            gaussian_loss,
        )


def measure(model, by_hand, X, n_epochs, n_repeats, clock):
    """Print one row of the table."""
    model.set_params(max_iter=1, device="cpu").fit(X)
    rows, n_refine = model._units.to_model(X, torch.device("cpu")), model.n_refine
    losses = {"our loss": our_loss(n_refine)}
    if not n_refine:
        losses["by hand"] = by_hand
        first = [loss(model.module_, rows[:BATCH_SIZE]) for loss in losses.values()]
        torch.testing.assert_close(*first, rtol=1e-4, atol=0)
    seconds = {name: [] for name in ("ours", *losses)}
    for _ in range(n_repeats):
        seconds["ours"].extend(seconds_of_ours(model, X, n_epochs + 1, clock)[1:])
        for name, loss in losses.items():
            loop = seconds_of_loop(model.module_, rows, loss, n_epochs + 1, clock)
            seconds[name].extend(loop[1:])
    medians = {name: np.median(values) for name, values in seconds.items()}
    cells = [f"{medians[name]:.2f}" if name in medians else "-" for name in seconds]
    cells += ["-"] * (3 - len(cells))
    for name in ("our loss", "by hand"):
        cells.append(f"{medians['ours'] / medians[name]:.2f}" if name in medians else "-")
    share = share_of_refinement(model.module_, rows, n_refine, clock) if n_refine else 0
    cells.append(f"{share:.0%}")
    print(f"| {type(model).__name__} | {n_refine} | {torch.get_num_threads()} |", end=" ")
    print(" | ".join(cells), "|", flush=True)


def main(options):
    """Measure every model with every number of threads and sweeps."""
    # With so few epochs, no fit converges.
    warnings.simplefilter("ignore", UserWarning)
    clock, X = CLOCKS[options.clock], load_natural_patches(options.rows, random_state=0)
    n_epochs = options.repeats * options.epochs
    print(f"{len(X)} patches of {X.shape[1]} pixels, {options.components} codes, batches of")
    print(f"{BATCH_SIZE}; medians of {n_epochs} epochs, {options.clock} time\n")
    print(
        "| model | sweeps | threads | ours, s | our loss in a loop, s | by hand, s | "
        "ours / our loss | ours / by hand | sweeps' share of the loop |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for n_threads in options.threads:
        torch.set_num_threads(n_threads)
        for n_refine in options.n_refine:
            for model, by_hand in models(options.components, n_refine):
                measure(model, by_hand, X, options.epochs, options.repeats, clock)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="training rows")
    parser.add_argument("--components", type=int, default=256, help="codes")
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs of each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--n-refine", type=int, nargs="+", default=[0], help="sweeps in training")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    main(parser.parse_args())
