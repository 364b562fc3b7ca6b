"""
A photograph with missing pixels
================================

NaN in X means *missing*. Here half of the pixels of a photograph are gone, all three colours of
each. A dictionary is learned from the overlapping patches of the damaged photograph itself, with
holes and all; the codes of the patches, decoded, fill the holes. Beside it is linear interpolation
between the pixels that are left.
"""

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.interpolate import griddata
from sklearn.datasets import load_sample_image

from sklearn_vsc import FISTADictionaryLearner, ThresholdedVSC
from sklearn_vsc.inspection import DictionaryDisplay
from sklearn_vsc.metrics import psnr

SIDE = 8  # pixels of a patch
STEP = 2  # pixels from one patch to the next

# %%
# Patches with holes
# ------------------
#
# A square of a photograph, with colours in [0, 1]. An array of the indices of its numbers cuts
# overlapping patches out of an image and, later, says where each of their values belongs.

photograph = load_sample_image("china.jpg")[100:228, 132:260].astype(np.float32) / 255
indices = np.arange(photograph.size).reshape(photograph.shape)
indices = sliding_window_view(indices, (SIDE, SIDE), axis=(0, 1))[::STEP, ::STEP]
indices = indices.reshape(-1, 3 * SIDE**2)

hidden = np.random.default_rng(0).random(photograph.shape[:2]) < 0.5
damaged = np.where(hidden[:, :, None], np.float32(np.nan), photograph)
print(f"{len(indices)} patches of {indices.shape[1]} numbers, {np.mean(hidden):.0%} missing")

# %%
# Filling them
# ------------
#
# A patch is coded from the pixels that it has, as what it differs by from their mean colour. Each
# pixel of the photograph is in several patches; where it is missing, it becomes the average of
# what these say. What was observed stays as it is.

patches = damaged.reshape(-1)[indices]
means = np.nanmean(patches.reshape(len(patches), 3, -1), axis=2).repeat(SIDE**2, axis=1)


def restore(model):
    """Fill the missing pixels from codes of the patches that they are in."""
    codes = model.fit_transform(patches - means)
    filled = model.inverse_transform(codes) + means
    total = np.bincount(indices.reshape(-1), weights=filled.reshape(-1))
    average = (total / np.bincount(indices.reshape(-1))).reshape(damaged.shape)
    return np.where(np.isnan(damaged), average.clip(0, 1), damaged)


def interpolate():
    """Fill the missing pixels linearly from the nearest ones that are observed."""
    here, missing = np.argwhere(~hidden), np.argwhere(hidden)
    values = griddata(here, damaged[~hidden], missing)
    outside = np.isnan(values)  # of all triangles of observed pixels
    values[outside] = griddata(here, damaged[~hidden], missing, method="nearest")[outside]
    filled = damaged.copy()
    filled[hidden] = values
    return filled


# %%
# What comes back
# ---------------
#
# Interpolation frays edges, and a dictionary of edges does not. Peak signal-to-noise ratios are of
# the whole square, what was observed included.

fista = FISTADictionaryLearner(n_components=100, alpha=0.05, max_iter=10, random_state=0)
vsc = ThresholdedVSC(n_components=100, learning_rate_init=3e-3, max_iter=6, random_state=0)
images = {
    "photograph": photograph,
    "half of the pixels": np.nan_to_num(damaged),
    "linear interpolation": interpolate(),
    "FISTADictionaryLearner": restore(fista),
    "ThresholdedVSC": restore(vsc),
}
figure, axes = plt.subplots(1, 5, figsize=(14, 3.2), layout="constrained")
for ax, (name, image) in zip(axes, images.items(), strict=True):
    ax.imshow(image.clip(0, 1))
    ax.set_title(name, fontsize=10)
    ax.axis("off")
for name in list(images)[2:]:
    print(f"{name}: {psnr(photograph[None], images[name][None], data_range=1):.1f} dB")

# %%
# A part of it, larger.

figure, axes = plt.subplots(1, 5, figsize=(14, 3.2), layout="constrained")
for ax, (name, image) in zip(axes, images.items(), strict=True):
    ax.imshow(image[55:95, 80:120].clip(0, 1))
    ax.set_title(name, fontsize=10)
    ax.axis("off")

# %%
# The dictionary
# --------------
#
# No patch that the atoms were learned from is whole, and yet the atoms are: edges, and stripes of
# the roofs. These are the atoms of `ThresholdedVSC` that patches use most.

_, ax = plt.subplots(figsize=(9, 2.5), layout="constrained")
DictionaryDisplay.from_estimator(
    vsc, image_shape=(3, SIDE, SIDE), n_components=60, n_columns=15, ax=ax
)
plt.show()
