"""
Natural image patches and Gabor functions
=========================================

Small patches of photographs look like nothing in particular. A dictionary that represents each
patch by a few atoms consists of edges and stripes, each localised, oriented and of one scale. Such
atoms resemble the receptive fields of simple cells in the visual cortex, and the Gabor functions
that describe them [1]_. This example learns two dictionaries, decomposes patches into atoms, and
fits Gabor functions to the atoms.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import curve_fit

from sklearn_vsc import FISTADictionaryLearner, ThresholdedVSC
from sklearn_vsc.datasets import load_natural_patches
from sklearn_vsc.inspection import DictionaryDisplay

# %%
# The patches
# -----------
#
# Two photographs ship with scikit-learn. In all photographs, power decreases with spatial
# frequency. Whitening removes this decrease, so that fine structure counts as much as coarse
# structure.

SIDE = 12  # pixels
X = load_natural_patches(8_000, patch_size=SIDE, random_state=0)
_, ax = plt.subplots(figsize=(9, 2.5), layout="constrained")
DictionaryDisplay.from_components(X[:60], order=None, n_columns=15, ax=ax)

# %%
# Two dictionaries
# ----------------
#
# :class:`~sklearn_vsc.FISTADictionaryLearner` has an l1 penalty on the codes.
# :class:`~sklearn_vsc.ThresholdedVSC` instead has a prior under which most codes are exactly zero,
# and learns a full posterior over codes for each patch. The atoms are shown in order of use. A few
# atoms of low frequency come first, followed by edges and by stripes from the tiled roof in one of
# the photographs. After such a short training, the rarer atoms of `ThresholdedVSC` are still rough.

models = {
    "FISTADictionaryLearner": FISTADictionaryLearner(
        n_components=64, alpha=1.0, max_iter=20, random_state=0
    ),
    "ThresholdedVSC": ThresholdedVSC(
        n_components=64,
        density=0.03,
        random_state=0,
    ),
}
# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
for ax, (name, model) in zip(axes, models.items(), strict=True):
    codes = model.fit_transform(X)
    explained = 1 - np.mean((X - model.inverse_transform(codes)) ** 2) / np.var(X)
    print(f"{name}: {np.mean(codes != 0):.1%} of the codes are non-zero, ", end="")
    print(f"{explained:.0%} of the variance is explained")
    DictionaryDisplay.from_estimator(model, ax=ax)
    ax.set_title(name)

# %%
# Decomposing a patch
# -------------------
#
# The code of a patch says which atoms it consists of, and how much of each. The figure shows the
# six largest codes of three patches, each multiplied by its atom, and the sum over all atoms in the
# code. The patches are taken from the patches with high contrast.

model = models["FISTADictionaryLearner"]
codes = model.transform(X)
contrasts = np.std(X, axis=1)
chosen = np.flatnonzero(contrasts > np.quantile(contrasts, 0.9))[:3]

figure, axes = plt.subplots(len(chosen), 8, figsize=(9, 3.7), layout="constrained")
for row, patch, code in zip(axes, X[chosen], codes[chosen], strict=True):
    largest = np.argsort(-np.abs(code))[:6]
    parts = code[largest, None] * model.components_[largest]
    pictures = [patch, *parts, code @ model.components_]
    titles = ["patch", *(f"{value:+.1f}" for value in code[largest]), "sum of all"]
    for ax, picture, title in zip(row, pictures, titles, strict=True):
        limit = 0.7 * np.abs(patch).max()
        ax.imshow(picture.reshape(SIDE, SIDE), cmap="gray", vmin=-limit, vmax=limit)
        ax.set_title(title, fontsize=9)
        ax.axis("off")

# %%
# Gabor functions
# ---------------
#
# A Gabor function is a wave under a Gaussian envelope. It has a cosine and a sine part, and their
# amplitudes determine its phase. The fit to an atom starts from the atom's centre of mass and from
# the largest peak of its spectrum.

y, x = np.mgrid[:SIDE, :SIDE]


def gabor(positions, x0, y0, angle, frequency, length, width, cosine, sine):
    """Evaluate a wave in direction `angle` under a Gaussian of `length` by `width`."""
    x, y = positions
    along = (x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)
    across = (y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)
    envelope = np.exp(-0.5 * ((along / length) ** 2 + (across / width) ** 2))
    wave = 2 * np.pi * frequency * along
    return envelope * (cosine * np.cos(wave) + sine * np.sin(wave))


def fit_gabor(atom):
    """Return the parameters of the best-fitting Gabor function, and its values as an image."""
    spectrum = np.abs(np.fft.fft2(atom, (64, 64)))
    row, column = np.unravel_index(np.argmax(spectrum), spectrum.shape)
    down, right = np.fft.fftfreq(64)[[row, column]]
    weights = atom**2 / np.sum(atom**2)
    start = [np.sum(weights * x), np.sum(weights * y), np.arctan2(down, right)]
    start += [max(np.hypot(down, right), 0.02), SIDE / 5, SIDE / 5, atom.max(), atom.max()]
    positions = np.stack([x.ravel(), y.ravel()])
    lowest = [-2, -2, -2 * np.pi, 0, 0.5, 0.5, -np.inf, -np.inf]
    highest = [SIDE + 2, SIDE + 2, 2 * np.pi, 0.5, SIDE, SIDE, np.inf, np.inf]
    parameters, _ = curve_fit(
        gabor, positions, atom.ravel(), start, bounds=(lowest, highest), max_nfev=2000
    )
    return parameters, gabor(positions, *parameters).reshape(SIDE, SIDE)


# %%
# The Gabor function is shown below each atom, from the best fit to the worst of the atoms shown.

atoms = model.components_.reshape(-1, SIDE, SIDE).astype(float)
fits = [fit_gabor(atom) for atom in atoms]
parameters = np.stack([fit[0] for fit in fits])
gabors = np.stack([fit[1] for fit in fits])
quality = 1 - np.sum((atoms - gabors) ** 2, axis=(1, 2)) / np.sum(atoms**2, axis=(1, 2))
print(f"Gabor functions explain 80% or more of {np.mean(quality >= 0.8):.0%} of the atoms")

best = np.argsort(-quality)[:48:4]
pairs = np.concatenate([atoms[best], gabors[best]]).reshape(2 * len(best), -1)
_, ax = plt.subplots(figsize=(9, 1.6), layout="constrained")
DictionaryDisplay.from_components(pairs, order=None, n_columns=len(best), scale="common", ax=ax)

# %%
# The size of the Gaussian, measured in periods of the wave, shows the type of an atom. Blobs are
# near the origin. Most atoms are edges: they span a fraction of a period, so they have one stripe
# with its flanks, and are longer than wide. Gratings with several stripes are on the right. All
# directions of the wave occur.

good = quality >= 0.8
_, _, angle, frequency, length, width, _, _ = parameters[good].T
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
points = left.scatter(length * frequency, width * frequency, c=frequency, cmap="viridis")
left.set(xlabel="periods of the wave in the Gaussian", ylabel="periods across it")
figure.colorbar(points, ax=left, label="cycles per pixel")
right.hist(np.rad2deg(angle) % 180, bins=np.arange(0, 181, 15), color="tab:gray")
right.set(xlabel="direction of the wave, degrees", ylabel="atoms", xticks=range(0, 181, 45))
plt.show()

# %%
# .. [1] Olshausen, B. A. and Field, D. J. (1996). Emergence of simple-cell receptive field
#    properties by learning a sparse code for natural images. Nature 381, 607-609.
