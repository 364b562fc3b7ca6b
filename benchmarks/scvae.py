"""SCVAE compared with a VAE, a VQ-VAE and PCA: reconstruction of held-out images.

There are three data sets of images with values in [0, 1]: scikit-learn's digits, Fashion-MNIST, and
RGB crops of 64 by 64 pixels from scikit-learn's two photographs, with training crops from the left
half of each and test crops from the right half. All models use the residual networks of SCVAE, with
the same batch size and learning rate. All train for as long as SCVAE with its default penalty: a
few epochs of each other model are timed, and it gets the number of epochs that fit into this time.

- SCVAE, with its default penalty and with others: the decoder gets the sparse sums of atoms.
- VAE, grid: SparseVAE(prior="gaussian") with a latent vector at each position, of the same size as
  in SCVAE.
- VAE, bottleneck: the same with one short latent vector for the image, and additional linear layers
  between it and the grid.
- VQ-VAE: each position has one of 512 learned vectors, also of the same size.
- PCA, with as many components as SCVAE has non-zero codes per image.

PSNR and SSIM are computed on reconstructions clipped to [0, 1]; for the digits the window of SSIM
is 7 pixels wide. The size of an image's code is given as a number of real values (for SCVAE the
non-zero ones, without counting their positions) or as a number of bits. Scores are bounds on log
p(x) in nats per image. Training times are CPU seconds (on a GPU, wall-clock seconds), without the
work of `fit` before and after training. Figures are medians over seeds.

`--paper` instead trains the configuration of the paper for some steps at full size: 512 atoms of
length 256, images of 256 by 256 pixels, grids of 32 by 32 and 16 by 16.

    python benchmarks/scvae.py [--data digits fashion photographs] [--rows 10000] [--epochs 20]
        [--seeds 3] [--alphas 0.3 3] [--batch 32] [--plot docs/images/scvae.png] [--device cpu]
    python benchmarks/scvae.py --paper [--steps 100] [--batch 16] [--device auto]
"""

import argparse
import math
import resource
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from data import digits, fashion_mnist
from scvae_peers import VQVAE, make_vae
from sklearn.datasets import load_sample_images
from sklearn.decomposition import PCA
from sklearn.feature_extraction.image import extract_patches_2d
from skorch.callbacks import Callback

from sklearn_vsc import SCVAE
from sklearn_vsc.metrics import psnr, ssim
from sklearn_vsc.networks import grid_shape

SCORE_DRAWS = 8
# Batch size of all models, and of --paper.
BATCH, PAPER_BATCH = 32, 16
# Number of epochs used to time one epoch, and the maximum number of images in each.
N_TIMED, ROWS_TIMED = 5, 1_024


@dataclass(frozen=True)
class Task:
    """A data set of images and the size of its models."""

    image_shape: tuple[int, int, int]
    n_downsamplings: int
    n_components: int
    bottleneck: int
    n_rows: int
    n_epochs: int
    # Standard deviation of the SSIM window, which is 11 pixels wide (7 for the digits).
    sigma: float = 1.5

    @property
    def latent_size(self):
        """Length of the latent vectors, as in SCVAE by default."""
        return self.n_components // 2

    @property
    def n_positions(self):
        """Number of latent vectors per image."""
        return math.prod(grid_shape(self.image_shape, self.n_downsamplings))


TASKS = {
    "digits": Task((1, 8, 8), 2, 64, 16, 1_297, 200, sigma=0.8),
    "fashion": Task((1, 28, 28), 2, 128, 64, 10_000, 20),
    "photographs": Task((3, 64, 64), 3, 128, 128, 2_000, 20),
}


def images(name, n_rows):
    """Return training images and held-out images as rows."""
    if name == "digits":
        X, X_test = ((X / 16).astype(np.float32) for X in digits(test_size=500))
        return X[:n_rows], X_test
    if name == "fashion":
        return fashion_mnist(n_rows, 500)
    return crops(64, n_rows, "left"), crops(64, 200, "right")


def crops(side, n_crops, half=None):
    """Return random RGB crops of the photographs, or of one half of each."""
    n_each = n_crops // 2
    found = []
    for picture in load_sample_images().images:
        middle = picture.shape[1] // 2
        part = {"left": picture[:, :middle], "right": picture[:, middle:], None: picture}[half]
        found.append(extract_patches_2d(part, (side, side), max_patches=n_each, random_state=0))
    X = np.concatenate(found).transpose(0, 3, 1, 2).reshape(2 * n_each, -1)
    return (X / 255).astype(np.float32)


# --- time


class EpochClock(Callback):
    """Seconds of each epoch: CPU time, which other processes do not affect, or wall time."""

    def __init__(self, device="cpu"):
        self.device = device

    def on_train_begin(self, net=None, **kwargs):
        self.last_, self.seconds_ = self.now(), []

    def on_epoch_end(self, net=None, **kwargs):
        now = self.now()
        self.seconds_.append(now - self.last_)
        self.last_ = now

    def now(self):
        """Read the clock after the device has finished its work."""
        if self.device == "cpu":
            return time.process_time()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def train(model, X):
    """Fit, and return the number of epochs and the median seconds per epoch."""
    clock = EpochClock(model.device)
    if isinstance(model, VQVAE):
        model.fit(X, clock)
    else:
        # No early stopping: every model uses its full time.
        model.set_params(callbacks=[clock], n_iter_no_change=model.max_iter).fit(X)
    return len(clock.seconds_), float(np.median(clock.seconds_))


def epochs_within(make, X, seconds):
    """Return the number of epochs of a model that fit into a time."""
    part = X[:ROWS_TIMED]
    _, of_epoch = train(make(max_iter=N_TIMED), part)
    return max(1, round(seconds / of_epoch * len(part) / len(X)))


# --- measures


def reconstruction_quality(task, X, X_test, X_hat):
    """Return PSNR, SSIM and explained variance of held-out images."""
    X_hat = np.clip(X_hat, 0, 1)
    error, power = np.sum((X_test - X_hat) ** 2), np.sum((X_test - X.mean(0)) ** 2)
    shape = {"image_shape": task.image_shape, "data_range": 1.0, "sigma": task.sigma}
    return {
        "psnr": psnr(X_test, X_hat, data_range=1.0),
        "ssim": ssim(X_test, X_hat, **shape),
        "explained": 1 - error / power,
    }


def measure(task, model, X, X_test):
    """Train a model, and return its measures on held-out images."""
    n_epochs, of_epoch = train(model, X)
    found = {"epochs": n_epochs, "seconds": n_epochs * of_epoch}
    if isinstance(model, VQVAE):
        X_hat, _ = model.decoded(X_test)
        bits = task.n_positions * math.log2(model.n_entries)
        n_unused = model.n_entries - len(np.unique(model.decoded(X)[1]))
        found |= {"bits": bits, "dead": n_unused / model.n_entries}
    else:
        codes = model.set_params(score_draws=SCORE_DRAWS).transform(X_test)
        X_hat = model.inverse_transform(codes)
        found |= {"numbers": np.count_nonzero(codes) / len(codes), "score": model.score(X_test)}
        if isinstance(model, SCVAE):
            found |= {"density": np.mean(codes != 0), "dead": model.n_dead_ / task.n_components}
    state = (model if isinstance(model, VQVAE) else model.module_).state_dict()
    # The codebook follows from its sums, so only one of the two counts.
    found["weights"] = sum(state[name].numel() for name in state if name != "sums")
    return found | reconstruction_quality(task, X, X_test, X_hat)


def measure_pca(task, n_components, X, X_test):
    """Return the measures of PCA with this number of components, or the largest possible one."""
    n_components = min(n_components, *X.shape)
    start = time.process_time()
    pca = PCA(n_components, random_state=0).fit(X)
    found = {"seconds": time.process_time() - start, "numbers": n_components}
    X_hat = pca.inverse_transform(pca.transform(X_test))
    return found | reconstruction_quality(task, X, X_test, X_hat)


def runs(task, X, X_test, alphas, seed, n_epochs, device, training):
    """Yield the name and measures of each model for one seed."""
    shared = {"random_state": seed, "device": device, **training}

    def scvae(**parameters):
        shape = {"image_shape": task.image_shape, "n_downsamplings": task.n_downsamplings}
        return SCVAE(task.n_components, **shape, **shared, **parameters)

    default = measure(task, scvae(max_iter=n_epochs), X, X_test)
    yield f"SCVAE, alpha={SCVAE().alpha:g} (default)", default
    for alpha in alphas:
        yield (
            f"SCVAE, alpha={alpha:g}",
            measure(task, scvae(alpha=alpha, max_iter=n_epochs), X, X_test),
        )
    peers = {
        "VAE, grid": lambda **kw: make_vae(task, True, **shared, **kw),
        "VAE, bottleneck": lambda **kw: make_vae(task, False, **shared, **kw),
        "VQ-VAE": lambda **kw: VQVAE(task, **shared, **kw),
    }
    for name, make in peers.items():
        n_fitting = epochs_within(make, X, default["seconds"])
        yield name, measure(task, make(max_iter=n_fitting), X, X_test)
    yield "PCA", measure_pca(task, round(default["numbers"]), X, X_test)


# --- output

COLUMNS = {
    "code": "code per image",
    "density": "non-zero",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "explained": "explained",
    "score": "score, nats",
    "dead": "unused atoms",
    "weights": "weights",
    "epochs": "epochs",
    "seconds": "training, s",
}
FORMATS = {
    "density": ".1%",
    "psnr": ".2f",
    "ssim": ".4f",
    "explained": ".2%",
    "score": ".1f",
    "dead": ".1%",
    "weights": ",.0f",
    "epochs": ".0f",
    "seconds": ".1f",
}


def print_line(name, found):
    """Print one line of the table."""
    code = f"{found['bits']:.0f} bits" if "bits" in found else f"{found['numbers']:.0f} numbers"
    cells = [format(found[key], form) if key in found else "-" for key, form in FORMATS.items()]
    print(f"| {' | '.join([name, code, *cells])} |", flush=True)


def medians(of_seeds):
    """Return the median of each measure over seeds."""
    return {key: float(np.median([found[key] for found in of_seeds])) for key in of_seeds[0]}


def compare(name, task, X, X_test, alphas, n_seeds, n_epochs, device, training):
    """Print the table for a data set, and return its figures by model."""
    grid = " x ".join(map(str, grid_shape(task.image_shape, task.n_downsamplings)))
    print(
        f"\n{name.capitalize()}: {len(X)} images of {' x '.join(map(str, task.image_shape))}, "
        f"{len(X_test)} held out, a grid of {grid},\n{task.n_components} atoms of length "
        f"{task.latent_size}; medians of {n_seeds} seeds\n"
    )
    print(f"| model | {' | '.join(COLUMNS.values())} |")
    print(f"| --- |{' ---: |' * len(COLUMNS)}")
    found = {}
    for seed in range(n_seeds):
        for model, measures in runs(task, X, X_test, alphas, seed, n_epochs, device, training):
            found.setdefault(model, []).append(measures)
            if seed == n_seeds - 1:
                print_line(model, medians(found[model]))
    return {model: medians(measures) for model, measures in found.items()}


def draw(figures, path):
    """Plot explained variance against the share of non-zero codes; peers as horizontal lines."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(figures), figsize=(5 * len(figures), 4), squeeze=False)
    for axis, (name, found) in zip(axes[0], figures.items(), strict=True):
        points = [(f["density"], f["explained"]) for f in found.values() if "density" in f]
        axis.plot(*np.array(sorted(points)).T, marker="o", label="SCVAE, over alpha")
        peers = [model for model in found if "density" not in found[model]]
        for index, model in enumerate(peers, start=1):
            axis.axhline(found[model]["explained"], ls="--", lw=1, c=f"C{index}", label=model)
        axis.set(xlabel="share of non-zero codes", ylabel="explained variance", title=name)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=120, bbox_inches="tight")


# --- the size of the paper


class PeakMemory(Callback):
    """Peak memory of training, on the GPU or of the process."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_epoch_end(self, net, **kwargs):
        if next(net.module_.parameters()).is_cuda:
            self.gib_ = torch.cuda.max_memory_allocated() / 2**30
        else:
            # Linux counts in KiB.
            self.gib_ = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def train_paper(n_steps, batch_size, device, side=256):
    """Print images per second and memory for the configuration of the paper."""
    n_epochs = 4
    X = crops(side, max(2, batch_size * math.ceil(n_steps / n_epochs)))
    print(f"\n{len(X)} crops of 3 x {side} x {side}, batches of {batch_size}, {n_epochs} epochs\n")
    print("| grid | explained, training images | images/s | memory of training, GiB | fit, s |")
    print("| --- |" + " ---: |" * 4)
    for n_downsamplings in (3, 4):
        # Wall-clock seconds, on any device.
        clock, memory = EpochClock("auto"), PeakMemory()
        model = SCVAE(
            512,
            latent_size=256,
            image_shape=(3, side, side),
            n_downsamplings=n_downsamplings,
            batch_size=batch_size,
            max_iter=n_epochs,
            callbacks=[clock, memory],
            random_state=0,
            device=device,
        )
        start = time.perf_counter()
        model.fit(X)
        seconds = time.perf_counter() - start
        X_hat = model.inverse_transform(model.transform(X[:8]))
        gain = 1 - np.sum((X[:8] - X_hat) ** 2) / np.sum((X[:8] - X.mean(0)) ** 2)
        speed = len(X) / np.median(clock.seconds_[1:])
        height, width = model.grid_shape_
        print(
            f"| {height} x {width} | {gain:.1%} | {speed:.1f} | {memory.gib_:.2f} | "
            f"{seconds:.0f} |",
            flush=True,
        )


def main(options):
    """Print the tables."""
    # The table shows the share of unused atoms.
    warnings.filterwarnings("ignore", message=".*atoms")
    if options.paper:
        return train_paper(options.steps, options.batch or PAPER_BATCH, options.device or "auto")
    figures = {}
    training = {
        "batch_size": options.batch or BATCH,
        "learning_rate_init": SCVAE().learning_rate_init,
    }
    for name in options.data:
        task = TASKS[name]
        X, X_test = images(name, options.rows or task.n_rows)
        n_epochs = options.epochs or task.n_epochs
        device = options.device or "cpu"
        figures[name] = compare(
            name, task, X, X_test, options.alphas, options.seeds, n_epochs, device, training
        )
    if options.plot:
        draw(figures, options.plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--rows", type=int, help="training images, at most")
    parser.add_argument("--epochs", type=int, help="epochs of SCVAE; the others train as long")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--alphas", nargs="*", type=float, default=[0.25, 0.5, 2.0, 4.0])
    parser.add_argument("--plot", help="file to save the plot over alpha in")
    parser.add_argument("--device", help="default: cpu, with --paper auto")
    parser.add_argument("--paper", action="store_true", help="train at the size of the paper")
    parser.add_argument("--steps", type=int, default=100, help="training steps of --paper")
    parser.add_argument("--batch", type=int, help="images per training step")
    main(parser.parse_args())
