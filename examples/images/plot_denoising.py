"""
Denoising a photograph
======================

A few atoms of a dictionary can represent an edge or a stripe, but not noise. Decoding the sparse
code of a noisy patch therefore removes most of the noise. The dictionary is learned from the noisy
photograph itself [1]_, without any clean image.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import median_filter
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d, reconstruct_from_patches_2d

from sklearn_vsc import FISTADictionaryLearner, ThresholdedVSC
from sklearn_vsc.inspection import DictionaryDisplay
from sklearn_vsc.metrics import psnr

SIDE = 8  # pixels of a patch
SIGMA = 0.1  # standard deviation of the noise; black is 0, white is 1

# %%
# A noisy photograph
# ------------------
#
# The data are a square region of a photograph in grey, with Gaussian noise of a known level.

photograph = load_sample_image("china.jpg")[60:220, 120:280] @ [0.299, 0.587, 0.114] / 255
noise = SIGMA * np.random.default_rng(0).standard_normal(photograph.shape)
noisy = (photograph + noise).astype(np.float32)

# %%
# From image to patches and back
# ------------------------------
#
# We extract all overlapping patches and subtract their means, because sparse codes should not have
# to represent brightness. Each decoded patch is put back in its place. Where patches overlap,
# scikit-learn's function takes the average.

patches = extract_patches_2d(noisy, (SIDE, SIDE)).reshape(-1, SIDE**2)
means = patches.mean(axis=1, keepdims=True)
training_rows = np.random.default_rng(0).choice(len(patches), 8_000, replace=False)


def denoise(model):
    """Return the photograph reconstructed from the codes of its patches."""
    decoded = model.inverse_transform(model.transform(patches - means)) + means
    return reconstruct_from_patches_2d(decoded.reshape(-1, SIDE, SIDE), photograph.shape)


# %%
# Certain and uncertain codes
# ---------------------------
#
# In :class:`~sklearn_vsc.ThresholdedVSC`, the noise level is the parameter `noise_variance`. Its
# posterior contains more than a single code: it gives the probability that each atom is present.
# Decoding the posterior mean, instead of the single most probable set of atoms, gives an atom with
# a probability of one half a weight of one half. This is the estimate with the lowest squared error
# under the model, and it is also better here.
#
# :class:`~sklearn_vsc.FISTADictionaryLearner` has a penalty instead of a noise level; `alpha` is a
# trade-off between remaining noise and lost detail.

vsc = ThresholdedVSC(
    n_components=100,
    noise_variance=SIGMA**2,
    random_state=0,
).fit((patches - means)[training_rows])
fista = FISTADictionaryLearner(n_components=100, alpha=0.15, max_iter=15, random_state=0)
fista.fit((patches - means)[training_rows])

images = {
    "noisy": noisy,
    "median filter": median_filter(noisy, 3),
    "total variation": denoise_tv_chambolle(noisy, weight=0.07),
    "non-local means": denoise_nl_means(
        noisy, patch_size=5, patch_distance=9, h=0.6 * SIGMA, sigma=SIGMA
    ),
    "FISTADictionaryLearner": denoise(fista),
    "ThresholdedVSC, most probable": denoise(vsc),
    "ThresholdedVSC, mean": denoise(vsc.set_params(transform_method="mean")),
}
for name, image in images.items():
    print(f"{name}: {psnr(photograph[None], image[None], data_range=1):.1f} dB")

# %%
# Results
# -------
#
# A median filter treats detail finer than the filter as noise, such as the roof tiles. Total
# variation keeps edges but leaves grain between them. Non-local means averages similar patches. A
# dictionary does something similar, because an atom is what many patches have in common.

shown = {"photograph": photograph, **images}
figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
for ax, (name, image) in zip(axes.ravel(), shown.items(), strict=True):
    ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    ax.set_title(name, fontsize=10)
    ax.axis("off")

# %%
# The removed part should be noise only. Where the photograph is visible in it, detail was lost.

removed = ("median filter", "non-local means", "FISTADictionaryLearner", "ThresholdedVSC, mean")
figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for ax, name in zip(axes, removed, strict=True):
    ax.imshow(noisy - images[name], cmap="gray", vmin=-0.3, vmax=0.3)
    ax.set_title(f"noisy minus {name}", fontsize=9)
    ax.axis("off")

# %%
# These are the atoms learned from the noisy patches, most used first. With a known noise variance,
# the used atoms are edges and stripes without noise, and the rest of the dictionary is hardly used.
# A penalty that is low enough to keep detail also admits atoms that represent noise.

figure, axes = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
for ax, model in zip(axes, (fista, vsc), strict=True):
    DictionaryDisplay.from_estimator(model, ax=ax)
    ax.set_title(type(model).__name__)
plt.show()

# %%
# .. [1] Elad, M. and Aharon, M. (2006). Image denoising via sparse and redundant representations
#    over learned dictionaries. IEEE Transactions on Image Processing 15(12), 3736-3745.
