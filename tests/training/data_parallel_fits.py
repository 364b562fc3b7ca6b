"""Data-parallel fits and their outcomes, run by a launcher in several processes.

    accelerate launch --multi_gpu --num_processes 2 tests/training/data_parallel_fits.py FOLDER

Each process writes its outcomes into its own file. `outcome` can also be called in one process.
"""

import contextlib
import io
import pickle
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from skorch.callbacks import Callback, GradientNormClipping

from sklearn_vsc import SCVAE, SparseVAE, ThresholdedVSC
from sklearn_vsc._training.loss_parts import PARTS
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.latents.gaussian import Gaussian
from sklearn_vsc.latents.laplace import Laplace

# The last batch of a pass has a single row, so fewer rows than there are processes.
X = make_sparse_coded(n_samples=101, n_components=12, noise=0.1, random_state=0)[0]
TINY = {"max_iter": 2, "batch_size": 50, "hidden_layer_sizes": (16,), "random_state": 0}

# Fits whose steps depend only on the rows once noise is removed.
AGREEING = {
    "exact": (ThresholdedVSC, {"solver": "gradient"}),
    "missing": (ThresholdedVSC, {"density": 0.02, "solver": "gradient"}),
    "vae": (SparseVAE, {"decoder": "mlp"}),
    "autoencoder": (SCVAE, {}),
    "bf16": (SparseVAE, {"precision": "bf16"}),
}


class Own(torch.nn.Module):
    """An encoder with dropout, running means and unused parameters."""

    def __init__(self, n_features):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(n_features, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
        )
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.layers(x)


class Interruption(Callback):
    def on_batch_end(self, net, training=False, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


def no_noise(shape, generator, like):
    return torch.zeros(shape, dtype=like.dtype)


def weights(model):
    return torch.cat([v.double().flatten() for v in model.module_.state_dict().values()]).numpy()


def outcome(name, device):
    """Fit without noise; return gradients, losses, parts, weights and scores."""
    cls, params = AGREEING[name]
    gradients = []
    clip = GradientNormClipping.on_grad_computed

    def record(self, net, named_parameters, **kwargs):
        found = {n: p.grad for n, p in named_parameters if p.grad is not None}
        gradients.append(torch.cat([found[n].flatten() for n in sorted(found)]).numpy().copy())
        clip(self, net, list(net.module_.named_parameters()), **kwargs)

    rows = X.copy()
    if name == "missing":
        rows[np.random.default_rng(0).random(X.shape) < 0.01] = np.nan
    with (
        mock.patch.object(GradientNormClipping, "on_grad_computed", record),
        mock.patch.object(Laplace, "noise", staticmethod(no_noise)),
        mock.patch.object(Gaussian, "noise", staticmethod(no_noise)),
    ):
        model = cls(12, **TINY | params, device=device).fit(rows)
    losses = np.array([record["loss"] for record in model.history_])
    parts = [part for part in PARTS if part in model.history_[0]]
    return {
        "gradients": gradients,
        "losses": losses,
        "parts": np.array([[record[part] for part in parts] for record in model.history_]),
        "weights": weights(model),
        "scores": model.score_samples(rows),
    }


def drawn_fit():
    """Fit with noise, validation rows, a custom module and no seed, then make one more pass."""
    with torch.random.fork_rng():
        encoder = Own(X.shape[1])
    model = SparseVAE(
        12,
        prior="spike_slab",
        gradient="nvil",
        encoder=encoder,
        early_stopping=True,
        **TINY | {"random_state": None, "device": "accelerate"},
    )
    # Running means need at least two rows in every batch.
    rows = X[:100]
    model.fit(rows)
    before = weights(model), [record["valid_loss"] for record in model.history_]
    model.partial_fit(rows)
    return {"before": before, "after": weights(model), "codes": model.transform(rows)}


def seeds():
    """Return the seed for this process's draws."""
    found = []

    class Watch(Callback):
        def on_train_begin(self, net, **kwargs):
            found.append(net.module_.generator.initial_seed())

    SparseVAE(12, **TINY, device="accelerate", callbacks=[Watch()]).fit(X)
    return found


def error_of(rows, **params):
    """Return the error of a fit that must fail in every process."""
    try:
        SparseVAE(12, **TINY | params, device="accelerate").fit(rows)
    except ValueError as error:
        return str(error)
    return None


def error_of_different_states(index):
    """Return the error if one process already has a fitted model and the other does not."""
    model = SparseVAE(12, **TINY).fit(X)
    if index:
        model = SparseVAE(12, **TINY)
    try:
        model.set_params(device="accelerate").partial_fit(X)
    except ValueError as error:
        return str(error)
    return None


def interrupted():
    model = SparseVAE(12, **TINY, device="accelerate", callbacks=[Interruption()])
    try:
        model.fit(X)
    except KeyboardInterrupt:
        return hasattr(model, "module_")
    return None


def shown():
    """Return what a fit with a progress bar prints."""
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        SparseVAE(12, **TINY, device="accelerate", verbose=True).fit(X)
    return printed.getvalue()


def main(folder):
    from accelerate import PartialState

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*atoms are used by no training row")
    before = torch.random.get_rng_state()
    found = {name: outcome(name, "accelerate") for name in AGREEING}
    # The fit made this process join the group.
    state = PartialState()
    index = state.process_index
    found |= {
        "n_processes": state.num_processes,
        "backend": torch.distributed.get_backend(),
        "drawn": drawn_fit(),
        "seeds": seeds(),
        "other rows": error_of(X + index),
        "fewer rows": error_of(X[index:]),
        "other batches": error_of(X, batch_size=50 - 25 * index),
        "other state": error_of_different_states(index),
        "interrupted": interrupted(),
        "shown": shown(),
        "generator untouched": torch.equal(before, torch.random.get_rng_state()),
    }
    Path(folder, f"{index}.pickle").write_bytes(pickle.dumps(found))
    state.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
