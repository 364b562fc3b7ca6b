"""
Inpainting a photograph with missing pixels
===========================================

NaN in X marks a missing entry. In this example, half of the pixels of a photograph are missing, in
all three colours. A dictionary is learned from the overlapping, incomplete patches of the damaged
photograph itself, and decoding the codes of the patches imputes the missing pixels. For comparison,
the example also interpolates linearly between the observed pixels.
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
# Patches with missing pixels
# ---------------------------
#
# The data are a square region of a photograph, with colours in [0, 1]. An array of indices extracts
# the overlapping patches from the image and later maps their values back to their positions.

photograph = load_sample_image("china.jpg")[100:228, 132:260].astype(np.float32) / 255
indices = np.arange(photograph.size).reshape(photograph.shape)
indices = sliding_window_view(indices, (SIDE, SIDE), axis=(0, 1))[::STEP, ::STEP]
indices = indices.reshape(-1, 3 * SIDE**2)

hidden = np.random.default_rng(0).random(photograph.shape[:2]) < 0.5
damaged = np.where(hidden[:, :, None], np.float32(np.nan), photograph)
print(f"{len(indices)} patches of {indices.shape[1]} values, {np.mean(hidden):.0%} missing")

# %%
# Imputation
# ----------
#
# A patch is coded from its observed pixels, after subtracting their mean colour. Each pixel of the
# photograph is in several patches; a missing pixel becomes the average of its values in the decoded
# patches. Observed pixels are not changed.

patches = damaged.reshape(-1)[indices]
means = np.nanmean(patches.reshape(len(patches), 3, -1), axis=2).repeat(SIDE**2, axis=1)


def restore(model):
    """Impute the missing pixels from the codes of the patches that contain them."""
    codes = model.fit_transform(patches - means)
    decoded = model.inverse_transform(codes) + means
    total = np.bincount(indices.reshape(-1), weights=decoded.reshape(-1))
    average = (total / np.bincount(indices.reshape(-1))).reshape(damaged.shape)
    return np.where(np.isnan(damaged), average.clip(0, 1), damaged)


def interpolate():
    """Impute the missing pixels by linear interpolation between the nearest observed pixels."""
    observed, missing = np.argwhere(~hidden), np.argwhere(hidden)
    values = griddata(observed, damaged[~hidden], missing)
    outside = np.isnan(values)  # outside all triangles of observed pixels
    values[outside] = griddata(observed, damaged[~hidden], missing, method="nearest")[outside]
    interpolated = damaged.copy()
    interpolated[hidden] = values
    return interpolated


# %%
# Results
# -------
#
# Interpolation frays edges; a dictionary of edges does not. The peak signal-to-noise ratios are for
# the whole region, including the observed pixels.

fista = FISTADictionaryLearner(n_components=100, alpha=0.05, max_iter=10, random_state=0)
vsc = ThresholdedVSC(n_components=100, max_iter=6, random_state=0)
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
# An enlarged detail:

figure, axes = plt.subplots(1, 5, figsize=(14, 3.2), layout="constrained")
for ax, (name, image) in zip(axes, images.items(), strict=True):
    ax.imshow(image[55:95, 80:120].clip(0, 1))
    ax.set_title(name, fontsize=10)
    ax.axis("off")

# %%
# The dictionary
# --------------
#
# None of the training patches is complete, and yet the atoms are: they are edges and stripes of the
# roofs. The figure shows the most used atoms of `ThresholdedVSC`.

_, ax = plt.subplots(figsize=(9, 2.5), layout="constrained")
DictionaryDisplay.from_estimator(
    vsc, image_shape=(3, SIDE, SIDE), n_components=60, n_columns=15, ax=ax
)
plt.show()
