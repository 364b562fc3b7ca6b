"""Variational sparse coding of images with a deep generator: the figures of Fallah & Rozell.

Reproduces their Figure 7 and the related results on Fashion-MNIST: convolutional networks, a
Gaussian likelihood whose variance corresponds to the published loss, and every prior, trained on
the best of several samples as published, against the number of codes and the share of non-zero
codes. Two methods are compared with them: the relaxed gates that ThresholdedVSC uses for deep
decoders, in place of the published gradient, and ThresholdedVSC with its defaults, a linear decoder
and the exact ELBO.

All errors are squared errors per pixel of held-out images, times 1000:

- best: of the best of 20 posterior samples, chosen by comparison with the image, as published.
- one: of a single sample.
- mean, map: of the posterior mean, and of the code from `transform`, both without sampling.

`non-zero` is the share of non-zero codes in the best sample, and in the code from `transform`.
`multi-information` is in bits, for the best samples: from counts in the published bins, and from
the lower bound of `metrics.multi_information`, which needs more images than codes. `correlation` is
the correlation of a class (one against the rest) with its most informative code, from posterior
means, averaged over classes. `collapsed` is the share of codes whose posterior equals the prior.
`ELBO` is in nats per image, under the declared likelihood.

By default the script trains for a few epochs on a few rows, for a CPU. This takes about twenty
minutes on one thread, and is far from the published 300 epochs. `--full` trains as long as
published and needs a GPU. `--celeba` does the same with the images in a folder, cropped and resized
as published. Each line is printed as soon as it is available.

    python benchmarks/vsc_images.py [--latents 20 64 256 1024] [--shares 0.05 0.1 0.2 0.5]
        [--only Gaussian "thresholded Laplace" linear] [--rows 60000] [--epochs 300] [--draws 20]
        [--learned-noise] [--plot docs/images] [--full] [--device cuda]
        [--celeba FOLDER list_attr_celeba.txt]
"""

import argparse
import time
import warnings
from operator import itemgetter
from pathlib import Path

import numpy as np
from sklearn.preprocessing import label_binarize
from sklearn.utils import gen_batches
from vsc_images_models import CELEBA, FASHION, LINEAR, PRIORS, SPARSE, deep_model, linear_model

from sklearn_vsc.datasets import fetch_fashion_mnist, load_attributed_images
from sklearn_vsc.inspection import DictionaryDisplay
from sklearn_vsc.metrics import (
    attribute_correlation,
    effective_dictionary,
    multi_information,
    posterior_collapse,
)

# Number of samples whose best gives the published test errors, and number for an ELBO estimate.
BEST_OF, SCORE_DRAWS = 20, 4
# Images coded at once: with many samples, the feature maps of the networks are large.
CHUNK = 200
# Edges of the published bins for images.
BINS = 30
# The number of codes while the share varies, and the share while the number varies; also plotted.
LATENTS, SHARE = 64, 0.1
SHORT = {
    "rows": 1_000, "test": 500, "epochs": 5, "batch": 32, "draws": 4, "rate": 3e-3,
    "linear_epochs": 20, "latents": [20, 64, 256, 1024], "shares": [0.05, 0.1, 0.2, 0.5],
}  # fmt: skip
FULL = {
    "rows": 60_000, "test": 10_000, "epochs": 300, "batch": 512, "draws": 20, "rate": 3e-4,
    "linear_epochs": 50, "latents": [20, 64, 256, 1024], "shares": [0.05, 0.1, 0.2, 0.5],
}  # fmt: skip
FULL_CELEBA = FULL | {
    "rows": 150_000, "test": 19_000, "batch": 500, "draws": 1, "latents": [64, 512, 1024, 2048],
}  # fmt: skip


def fashion(n_rows, n_test):
    """Return training images, held-out images, their class indicators and the class names."""
    X, _ = fetch_fashion_mnist(return_X_y=True)
    test = fetch_fashion_mnist(subset="test")
    return (
        X[:n_rows],
        test.data[:n_test],
        label_binarize(test.target[:n_test], classes=range(len(test.target_names))),
        test.target_names,
    )


def celeba(folder, attributes, n_rows, n_test):
    """Return the same for a folder of faces, cropped and resized as published."""
    faces = load_attributed_images(folder, attributes, crop=140, size=64, n_images=n_rows + n_test)
    return faces.data[:n_rows], faces.data[n_rows:], faces.target[n_rows:], faces.target_names


# --- measures


def coded(model, X, method, n_draws=1):
    """Return codes by one of the methods of `transform`."""
    model.set_params(transform_method=method, n_draws=n_draws)
    return np.concatenate([model.transform(X[rows]) for rows in gen_batches(len(X), CHUNK)])


def measure(model, X, X_test, attributes, with_dictionary):
    """Fit a model, and return its measures on held-out images."""
    start = time.perf_counter()
    model.fit(X)
    found = {"seconds": time.perf_counter() - start}

    def error(codes):
        parts = (codes[rows] for rows in gen_batches(len(codes), CHUNK))
        X_hat = np.concatenate([model.inverse_transform(part) for part in parts])
        return 1e3 * np.mean((X_test - X_hat) ** 2)

    best = coded(model, X_test, "max_elbo", BEST_OF)
    codes, means = (coded(model, X_test, method) for method in ("map", "mean"))
    found |= {
        "best": error(best),
        "one": error(coded(model, X_test, "sample")),
        "mean": error(means),
        "map": error(codes),
        "share": np.mean(best != 0),
        "map_share": np.mean(codes != 0),
        "plug_in": multi_information(best, method="plug_in", bins=BINS),
    }
    if len(best) > best.shape[1]:
        found["copula"] = multi_information(best)
    correlation = attribute_correlation(means, attributes)
    if with_dictionary:
        # From samples, as published: posterior means are too similar to be distinguished.
        drawn = coded(model, X, "max_elbo", BEST_OF)
        found["dictionary"] = effective_dictionary(X - X.mean(0), drawn)
    return found | {
        "correlation": np.mean(np.abs(correlation).max(1)),
        "collapsed": posterior_collapse(model, X_test[:CHUNK]),
        "score": model.set_params(score_draws=SCORE_DRAWS).score(X_test[:CHUNK]),
        "correlations": correlation,
    }


# --- output

COLUMNS = {
    "best": ("best of 20", ".1f"),
    "one": ("one sample", ".1f"),
    "mean": ("mean", ".1f"),
    "map": ("map", ".1f"),
    "share": ("non-zero, best", ".1%"),
    "map_share": ("non-zero, map", ".1%"),
    "plug_in": ("multi-information, counts", ".1f"),
    "copula": ("multi-information, bound", ".1f"),
    "correlation": ("correlation", ".2f"),
    "collapsed": ("collapsed", ".0%"),
    "score": ("ELBO", ".0f"),
    "seconds": ("fit, s", ".0f"),
}


def print_line(name, n_components, share, found):
    """Print one line of the table."""
    cells = [
        format(found[key], form) if key in found else "-" for key, (_, form) in COLUMNS.items()
    ]
    requested = f"{share:.0%}" if name in (*SPARSE, LINEAR) else "-"
    print(f"| {name} | {n_components} | {requested} | {' | '.join(cells)} |", flush=True)


def settings(latents, shares, only):
    """Yield prior, number of codes and share of non-zeros; first the settings that are plotted."""
    n_middle = LATENTS if LATENTS in latents else latents[0]
    middle = SHARE if SHARE in shares else shares[0]
    pairs = [(n_middle, middle), *((n_middle, share) for share in shares if share != middle)]
    pairs += [(n, middle) for n in latents if n != n_middle]
    for pair in pairs:
        for name in (*PRIORS, LINEAR):
            varies = name in SPARSE or name == LINEAR or pair[1] == middle
            if varies and (not only or name in only or (name == LINEAR and "linear" in only)):
                yield name, *pair


def draw_curves(figures, path):
    """Plot errors and multi-information by the number of codes and by the share of non-zeros."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 8), sharey="row", layout="constrained")
    _, n_middle, middle = next(iter(figures))
    for index, name in enumerate(dict.fromkeys(key[0] for key in figures)):
        style = {"c": f"C{index}", "marker": "o", "ms": 4}
        own = {key[1:]: found for key, found in figures.items() if key[0] == name}
        lines = (
            [(n, found) for (n, share), found in own.items() if share == middle],
            [(found["share"], found) for (n, _), found in own.items() if n == n_middle],
        )
        for line, (above, below) in zip(lines, axes.T, strict=True):
            x, measures = zip(*sorted(line, key=itemgetter(0)), strict=True)
            above.plot(x, [of["best"] for of in measures], label=name, **style)
            above.plot(x, [of["map"] for of in measures], ls=":", **style)
            below.plot(x, [of.get("copula", np.nan) for of in measures], **style)
            below.plot(x, [of["plug_in"] for of in measures], ls="--", **style)
    axes[0, 0].set(ylabel="squared error per pixel, x 1000", xscale="log")
    axes[0, 0].set_title("best of 20 samples (dots: the code from `transform`)", fontsize="medium")
    axes[1, 0].set(ylabel="multi-information, bits", xlabel="codes", xscale="log")
    axes[1, 0].set_yscale("symlog", linthresh=1)
    axes[1, 0].set_ylim(bottom=-1)
    axes[1, 0].set_title("lower bound (dashes: counts in bins)", fontsize="medium")
    axes[1, 1].set(xlabel=f"share of non-zero codes, of {n_middle}")
    for axis in axes[:, 0]:
        ticks = sorted({key[1] for key in figures})
        axis.set_xticks(ticks, ticks)
        axis.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, path)


def draw_dictionaries(task, figures, path):
    """Plot the least-squares dictionary of the codes: the atoms with the largest norm."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 3, figsize=(9, 10), layout="constrained")
    for axis, (name, found) in zip(axes.flat, figures.items(), strict=False):
        atoms = found["dictionary"]
        order = np.argsort(-np.linalg.norm(atoms, axis=1))[:49]
        DictionaryDisplay(atoms[order], image_shape=task.image_shape).plot(ax=axis, n_columns=7)
        axis.set_title(name, fontsize="medium")
    for axis in axes.flat[len(figures) :]:
        axis.set_axis_off()
    save(figure, path)


def draw_attributes(task, figures, names, path):
    """Plot, for each model and attribute, the atom whose code is most informative."""
    import matplotlib.pyplot as plt

    n_shown = min(10, len(names))
    size = (1.3 * n_shown, 1.5 * len(figures))
    figure, axes = plt.subplots(
        len(figures), n_shown, figsize=size, squeeze=False, layout="constrained"
    )
    for row, (name, found) in zip(axes, figures.items(), strict=True):
        for attribute, axis in enumerate(row):
            correlation = found["correlations"][attribute]
            best = np.abs(correlation).argmax()
            # Signed so that images with the attribute have a positive code.
            atom = np.sign(correlation[best]) * found["dictionary"][best]
            DictionaryDisplay(atom[None], image_shape=task.image_shape).plot(ax=axis)
            axis.set_title(f"{abs(correlation[best]):.2f}", fontsize="small")
        label = {"xycoords": "axes fraction", "ha": "right", "va": "center", "fontsize": "small"}
        row[0].annotate(name.replace(", ", ",\n"), (-0.08, 0.5), **label)
    for axis, name in zip(axes[0], names, strict=False):
        axis.set_title(f"{name}\n{axis.get_title()}", fontsize="small")
    save(figure, path)


def save(figure, path):
    """Save a figure, small enough for the pages of the guide."""
    import matplotlib.pyplot as plt

    options = {"pil_kwargs": {"quality": 75}} if path.endswith(".jpg") else {}
    figure.savefig(path, dpi=90, **options)
    plt.close(figure)


def draw(task, figures, names, folder):
    """Plot all results; dictionaries use the first number of codes and the first share."""
    stem = Path(folder) / f"papers_images_{task.name.split('-')[0].lower()}"
    first = next(iter(figures))[1:]
    shown = {key[0]: found for key, found in figures.items() if key[1:] == first}
    draw_curves(figures, f"{stem}_curves.png")
    draw_dictionaries(task, shown, f"{stem}_dictionaries.jpg")
    draw_attributes(task, shown, names, f"{stem}_attributes.jpg")


def main(options):
    """Print the table, and save the plots."""
    # The table shows unused codes; counts are known to saturate with many codes.
    warnings.filterwarnings("ignore", message=".*(atoms|joint entropy)")
    task = CELEBA if options.celeba else FASHION
    sizes = (FULL_CELEBA if options.celeba else FULL) if options.full else SHORT
    sizes = sizes | {key: value for key, value in vars(options).items() if value is not None}
    load, place = (celeba, options.celeba) if options.celeba else (fashion, ())
    X, X_test, attributes, names = load(*place, sizes["rows"], sizes["test"])
    noise = "learned" if options.learned_noise else task.noise_variance
    base = 1e3 * np.mean((X_test - X.mean(0)) ** 2)
    print(
        f"{task.name}: {len(X)} images, {len(X_test)} held out, whose distance from the mean image "
        f"is {base:.1f}.\n{sizes['epochs']} epochs in batches of {sizes['batch']}, the best of "
        f"{sizes['draws']} samples in training, noise variance {noise}.\n"
        f"The linear decoder: {sizes['linear_epochs']} epochs.\n"
    )
    print(f"| prior | codes | share | {' | '.join(name for name, _ in COLUMNS.values())} |")
    print(f"| --- |{' ---: |' * (len(COLUMNS) + 2)}", flush=True)
    figures = {}
    for name, n_components, share in settings(sizes["latents"], sizes["shares"], options.only):
        if name == LINEAR:
            model = linear_model(
                n_components, share, max_iter=sizes["linear_epochs"], device=options.device
            )
        else:
            model = deep_model(
                task, name, n_components, share, n_draws=sizes["draws"], noise_variance=noise,
                max_iter=sizes["epochs"], batch_size=sizes["batch"],
                learning_rate_init=sizes["rate"], device=options.device,
            )  # fmt: skip
        is_drawn = bool(options.plot) and all(key[1:] == (n_components, share) for key in figures)
        found = measure(model, X, X_test, attributes, is_drawn)
        print_line(name, n_components, share, found)
        figures[name, n_components, share] = found
        if options.plot and name == LINEAR:
            draw(task, figures, names, options.plot)
    if options.plot:
        draw(task, figures, names, options.plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="train as long as published")
    parser.add_argument("--latents", type=int, nargs="+", help="numbers of codes")
    parser.add_argument("--shares", type=float, nargs="+", help="shares of non-zero codes")
    parser.add_argument("--only", nargs="+", choices=[*PRIORS, "linear"], help="priors to run")
    parser.add_argument("--rows", type=int, help="number of training images")
    parser.add_argument("--test", type=int, help="number of held-out images")
    parser.add_argument("--epochs", type=int, help="epochs of the deep models")
    parser.add_argument("--linear-epochs", type=int, help="epochs of the linear decoder")
    parser.add_argument("--batch", type=int, help="batch size of the deep models")
    parser.add_argument("--draws", type=int, help="samples in training; the best is used")
    parser.add_argument("--rate", type=float, help="peak learning rate of the deep models")
    parser.add_argument("--learned-noise", action="store_true", help="learn the noise variance")
    parser.add_argument("--celeba", nargs=2, metavar=("FOLDER", "ATTRIBUTES"))
    parser.add_argument("--plot", metavar="DIR", help="folder for the figures")
    parser.add_argument("--device", default="cpu")
    main(parser.parse_args())
