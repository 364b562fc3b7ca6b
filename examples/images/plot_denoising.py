"""
Denoising a photograph
======================

A few atoms of a dictionary make an edge or a stripe, but no few of them make noise. So the sparse
code of a noisy patch, decoded, is the patch with most of the noise left out. The dictionary is
learned from the noisy photograph itself [1]_; nothing here has seen a clean one.
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
# A square of a photograph in grey, with Gaussian noise of a known level.

photograph = load_sample_image("china.jpg")[60:220, 120:280] @ [0.299, 0.587, 0.114] / 255
noise = SIGMA * np.random.default_rng(0).standard_normal(photograph.shape)
noisy = (photograph + noise).astype(np.float32)

# %%
# Patches, and back
# -----------------
#
# All overlapping patches are cut out, and their means are taken off: brightness is no matter of
# sparse codes. Decoded, each goes back to its place, and where patches overlap, scikit-learn's
# function takes the average.

patches = extract_patches_2d(noisy, (SIDE, SIDE)).reshape(-1, SIDE**2)
means = patches.mean(axis=1, keepdims=True)
learned = np.random.default_rng(0).choice(len(patches), 8_000, replace=False)


def denoise(model):
    """Return the photograph that decoded codes of its patches make."""
    decoded = model.inverse_transform(model.transform(patches - means)) + means
    return reconstruct_from_patches_2d(decoded.reshape(-1, SIDE, SIDE), photograph.shape)


# %%
# Codes that are sure, and codes that are not
# -------------------------------------------
#
# The noise level is what :class:`~sklearn_vsc.ThresholdedVSC` calls `noise_variance`. Its posterior
# knows more than one code: of each atom, how probable it is that it is there. Decoding the mean of
# the posterior, in place of the single most probable set of atoms, weighs an atom of which the
# patch is half certain by a half. That is the estimate with the least squared error under the
# model, and it is better here too.
#
# :class:`~sklearn_vsc.FISTADictionaryLearner` has a penalty in place of a noise level; `alpha` is a
# trade of noise that stays against detail that goes.

vsc = ThresholdedVSC(
    n_components=100,
    noise_variance=SIGMA**2,
    learning_rate_init=3e-3,
    max_iter=10,
    random_state=0,
).fit((patches - means)[learned])
fista = FISTADictionaryLearner(n_components=100, alpha=0.15, max_iter=15, random_state=0)
fista.fit((patches - means)[learned])

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
# What comes out
# --------------
#
# A median filter takes detail for noise where it is finer than the filter, as the tiles of the
# roofs are. Total variation keeps edges and leaves grain between them. Non-local means averages
# patches that are alike, and so does a dictionary, in a way: an atom is what many patches have in
# common.

shown = {"photograph": photograph, **images}
figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
for ax, (name, image) in zip(axes.ravel(), shown.items(), strict=True):
    ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    ax.set_title(name, fontsize=10)
    ax.axis("off")

# %%
# What was taken out should be noise. Where the photograph shows through, detail was lost with it.

removed = ("median filter", "non-local means", "FISTADictionaryLearner", "ThresholdedVSC, mean")
figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for ax, name in zip(axes, removed, strict=True):
    ax.imshow(noisy - images[name], cmap="gray", vmin=-0.3, vmax=0.3)
    ax.set_title(f"noisy minus {name}", fontsize=9)
    ax.axis("off")

# %%
# The atoms that were learned from the noisy patches, those of most use first. Under a prior that
# knows the noise, the atoms in use are edges and stripes without noise in them, and what is left
# of the dictionary is hardly used. A penalty that is low enough to keep detail also lets atoms in
# that stand for noise.

figure, axes = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
for ax, model in zip(axes, (fista, vsc), strict=True):
    DictionaryDisplay.from_estimator(model, ax=ax)
    ax.set_title(type(model).__name__)
plt.show()

# %%
# .. [1] Elad, M. and Aharon, M. (2006). Image denoising via sparse and redundant representations
#    over learned dictionaries. IEEE Transactions on Image Processing 15(12), 3736-3745.
