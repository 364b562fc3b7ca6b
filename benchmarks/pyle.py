"""Pyle's three tasks: a comparison of Gaussian, Laplace and Cauchy codes.

In "A Sparse VAE", Pyle trained variational autoencoders with three priors on small patches that are
sums of five basis functions, on digits, and on patches of photographs, and studied what the codes
represent. This script repeats the tasks, with figures for what he judged by eye:

- squared error: error per pixel of the reconstruction from the 'map' code, divided by the variance
  of a pixel;
- ELBO, IWAE-100: bounds on log p(x) of held-out rows, in nats;
- codes in use: codes with a mean KL above 0.1 nats per row;
- accuracy: of a classifier with ten nearest neighbours on the codes (digits only);
- share of the strongest: share of a row's KL that belongs to its code with the largest KL, averaged
  over rows; it is one if a single code carries all the information;
- feature kurtosis: kurtosis over the pixels of each latent feature, averaged over the codes in use;
  it is 3 for Gaussian noise, and high where a few pixels stand out.

A latent feature is the effect of a code on the decoded row: the decoded mean at the upper end of
the code's range (95 % quantile) minus that at the lower end (5 %), with all other codes at their
medians. The script plots these features and ``components_``, the linear dictionary of the codes;
unused codes are left blank.

All decoders are MLPs that end in a sigmoid, because a Cauchy posterior otherwise has no bound. Data
lie in [0, 1]. The script prints a table and saves plots to --output. Takes about two minutes on one
core.

    python benchmarks/pyle.py [--output pyle] [--fashion-mnist FOLDER] [--epochs 1.0]

FOLDER holds the four idx files of Fashion-MNIST (or MNIST), gzipped or not; they replace
scikit-learn's digits.
"""

import argparse
import gzip
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import kurtosis
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from sklearn_vsc import SparseVAE
from sklearn_vsc.datasets import load_natural_patches
from sklearn_vsc.inspection import DictionaryDisplay

PRIORS = ("gaussian", "laplace", "cauchy")
MIN_KL = 0.1


@dataclass
class Task:
    """Training rows, held-out rows, and their labels if there are any."""

    name: str
    train: np.ndarray
    test: np.ndarray
    n_components: int
    n_epochs: int
    labels: tuple[np.ndarray, np.ndarray] | None = None


def basis_functions():
    """Return five functions on 5 by 5 pixels: a row, a column, two diagonals and a frame."""
    basis = np.zeros((5, 5, 5))
    basis[0, 2, :] = 1
    basis[1, :, 2] = 1
    basis[2] = np.eye(5)
    basis[3] = np.eye(5)[::-1]
    basis[4] = 1
    basis[4, 1:4, 1:4] = 0
    return basis.reshape(5, 25)


def make_sums(n_samples, rng):
    """Draw random sums of the five basis functions plus noise, in [0, 1]."""
    weights = rng.uniform(0.3, 1, (n_samples, 5)) * (rng.random((n_samples, 5)) < 0.4)
    rows = 0.1 + 0.25 * weights @ basis_functions()
    return np.clip(rows + 0.03 * rng.standard_normal(rows.shape), 0, 1).astype(np.float32)


def load_idx(folder, name):
    """Read one file in the idx format of MNIST, gzipped or not."""
    for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if path.exists():
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
                data = file.read()
            if data[:3] != b"\0\0\x08":
                raise ValueError(f"{path} is not an idx file of unsigned bytes.")
            shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
            return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    raise FileNotFoundError(f"{folder} has neither {name} nor {name}.gz.")


def load_images(folder):
    """Return training and test rows, then their labels: digits, or the files in a folder."""
    if folder is None:
        X, y = load_digits(return_X_y=True)
        return train_test_split((X / 16).astype(np.float32), y, test_size=0.25, random_state=0)
    rows, labels = [], []
    for part in ("train", "t10k"):
        images = load_idx(folder, f"{part}-images-idx3-ubyte")
        rows.append((images.reshape(len(images), -1) / 255).astype(np.float32))
        labels.append(load_idx(folder, f"{part}-labels-idx1-ubyte"))
    return *rows, *labels


def load_grey_patches(n_samples, subset):
    """Return 12 by 12 patches of photographs, not whitened, in [0, 1]."""
    X = load_natural_patches(
        n_samples, patch_size=12, whitening=None, subset=subset, random_state=0
    )
    # Maps plus and minus three standard deviations of the photographs to 1 and 0.
    return np.clip(0.5 + X / 6, 0, 1)


def tasks(folder, epochs):
    """Return the tasks; `epochs` multiplies their numbers of epochs."""
    rng = np.random.default_rng(0)
    X, X_test, y, y_test = load_images(folder)
    n_image_epochs = 150 if folder is None else 20
    patches = load_grey_patches(10_000, "train"), load_grey_patches(2_000, "test")
    listed = [
        Task("5 by 5 sums of five functions", make_sums(5_000, rng), make_sums(2_000, rng), 10, 60),
        Task("digits, 10 codes", X, X_test, 10, n_image_epochs, (y, y_test)),
        Task("digits, 2 codes", X, X_test, 2, n_image_epochs, (y, y_test)),
        Task("12 by 12 patches of photographs", *patches, 25, 40),
    ]
    for task in listed:
        task.n_epochs = max(1, round(epochs * task.n_epochs))
    return listed


def fit(task, prior):
    """Train a model on a task for all its epochs."""
    return SparseVAE(
        task.n_components,
        prior=prior,
        output_activation="sigmoid",
        hidden_layer_sizes=(256,),
        max_iter=task.n_epochs,
        n_iter_no_change=task.n_epochs,
        random_state=0,
    ).fit(task.train)


def code_kl(model, X):
    """Return the KL of each code from its prior, in nats, of shape (n_samples, n_components)."""
    with torch.no_grad():
        rows = model._units.to_model(X, torch.device("cpu"))
        return model.module_.posterior(rows).kl().numpy()


def latent_features(task, model):
    """Return the effect of each code on the decoded row, (n_components, n_features)."""
    code = model.transform(task.train)
    low, middle, high = np.quantile(code, (0.05, 0.5, 0.95), axis=0)
    ends = [
        model.inverse_transform(np.where(np.eye(len(middle), dtype=bool), end, middle))
        for end in (low, high)
    ]
    return ends[1] - ends[0]


def measure(task, model):
    """Measure a model, and print a line of the table."""
    code = model.transform(task.test)
    error = np.mean((task.test - model.inverse_transform(code)) ** 2) / task.test.var(axis=0).mean()
    kl = code_kl(model, task.test)
    used = kl.mean(axis=0) > MIN_KL
    strongest = np.mean(kl.max(axis=1) / kl.sum(axis=1))
    features = latent_features(task, model)[used]
    sharpness = kurtosis(features, axis=1, fisher=False).mean() if used.any() else np.nan
    accuracy = "-"
    if task.labels is not None:
        neighbours = KNeighborsClassifier(10)
        neighbours.fit(model.transform(task.train), task.labels[0])
        accuracy = f"{neighbours.score(code, task.labels[1]):.1%}"
    elbo = model.score(task.test)
    model.set_params(score_method="iwae", score_draws=100)
    iwae = model.score(task.test)
    print(
        f"| {task.name} | {model.prior} | {error:.3f} | {elbo:.1f} | {iwae:.1f} | "
        f"{used.sum()} of {task.n_components} | {strongest:.2f} | "
        f"{sharpness:.1f} | {accuracy} |",
        flush=True,
    )


def draw_mosaics(task, models, mosaics, path):
    """Plot one mosaic per model, with codes ordered by KL and unused codes blank."""
    figure, axes = plt.subplots(1, len(models), figsize=(3 * len(models), 3.3))
    for ax, model, atoms in zip(axes, models, mosaics, strict=True):
        kl = code_kl(model, task.test).mean(axis=0)
        order = np.argsort(-kl)
        atoms = np.where(kl[order, None] > MIN_KL, atoms[order], 0)
        DictionaryDisplay.from_components(atoms, order=None, cmap="RdBu_r", ax=ax)
        ax.set_title(model.prior)
    save(figure, path)


def draw_spread(task, models, path):
    """Plot the 2-D codes of held-out rows by label, and the decoded plane of codes."""
    side = int(task.train.shape[1] ** 0.5)
    figure, axes = plt.subplots(2, len(models), figsize=(3.2 * len(models), 6.4))
    for (above, below), model in zip(axes.T, models, strict=True):
        code = model.transform(task.test)
        low, high = np.quantile(code, (0.01, 0.99), axis=0)
        above.scatter(*code.T, c=task.labels[1], cmap="tab10", s=4)
        margin = 0.1 * (high - low)
        above.set_xlim(low[0] - margin[0], high[0] + margin[0])
        above.set_ylim(low[1] - margin[1], high[1] + margin[1])
        above.set_title(model.prior)
        first, second = (np.linspace(a, b, 8) for a, b in zip(low, high, strict=True))
        grid = np.stack(np.meshgrid(first, second[::-1]), axis=-1).reshape(-1, 2)
        pictures = model.inverse_transform(grid.astype(np.float32)).reshape(8, 8, side, side)
        picture = pictures.transpose(0, 2, 1, 3).reshape(8 * side, 8 * side)
        below.imshow(picture, cmap="gray")
        below.set_axis_off()
    save(figure, path)


def draw_reconstructions(task, models, path):
    """Plot held-out rows above their reconstruction by each model."""
    side = int(task.test.shape[1] ** 0.5)
    shown = task.test[:16]
    strips = [shown, *(model.inverse_transform(model.transform(shown)) for model in models)]
    picture = np.vstack([np.hstack(list(rows.reshape(-1, side, side))) for rows in strips])
    figure, ax = plt.subplots(figsize=(8, 2.4))
    ax.imshow(picture, cmap="gray", interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks(side * np.arange(len(strips)) + side / 2, ["data", *(m.prior for m in models)])
    save(figure, path)


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, dpi=72)
    plt.close(figure)


def main(folder, output, epochs):
    """Fit the models, print the table and save the plots."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    print(
        "| task | prior | squared error | ELBO | IWAE-100 | codes in use "
        "| share of the strongest | feature kurtosis | accuracy |"
    )
    print(f"| --- | --- |{' ---: |' * 7}")
    for task, stem in zip(
        tasks(folder, epochs), ("sums", "digits10", "digits2", "patches"), strict=True
    ):
        models = [fit(task, prior) for prior in PRIORS]
        for model in models:
            measure(task, model)
        draw_reconstructions(task, models, output / f"pyle_{stem}_reconstructions.png")
        features = [latent_features(task, model) for model in models]
        draw_mosaics(task, models, features, output / f"pyle_{stem}_features.png")
        dictionaries = [model.components_ for model in models]
        draw_mosaics(task, models, dictionaries, output / f"pyle_{stem}_components.png")
        if task.n_components == 2:
            draw_spread(task, models, output / f"pyle_{stem}_spread.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion-mnist", metavar="FOLDER", help="idx files to use as digits")
    parser.add_argument("--output", type=Path, default=Path("pyle"), help="folder for the plots")
    parser.add_argument("--epochs", type=float, default=1.0, help="multiplier of the epochs")
    given = parser.parse_args()
    main(given.fashion_mnist, given.output, given.epochs)
