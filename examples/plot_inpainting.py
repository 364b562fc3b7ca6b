"""
A photograph with missing pixels
================================

NaN in X means *missing*. Here 30% and then 60% of the pixels of a photograph are gone, all three
colours of each. A dictionary is learned from the overlapping patches of the damaged photograph
itself, with holes and all; the codes of the patches, decoded, fill the holes. Beside it is linear
interpolation between the pixels that are left.

Takes about a minute and a half of CPU time, on one thread. As a script, with a path to write the
picture to::

    python examples/plot_inpainting.py docs/images/inpainting.jpg
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.interpolate import griddata
from sklearn.datasets import load_sample_images

from sklearn_vsc import FISTADictionaryLearner, ThresholdedVSC
from sklearn_vsc.metrics import psnr

SIDE = 8  # pixels of a patch
N_LEARNED = 8_000  # patches to learn from

# %%
# Patches with holes
# ------------------
#
# A square of 256 by 256 pixels of the photograph of a pagoda, with colours in [0, 1]. It has a
# patch of 8 by 8 pixels, 192 numbers, at each of 62,001 positions. An array of their indices cuts
# them out of an image and, later, says where each of their values belongs.

photograph = load_sample_images().images[0][20:276, 70:326].astype(np.float32) / 255
indices = sliding_window_view(
    np.arange(photograph.size).reshape(photograph.shape), (SIDE, SIDE), axis=(0, 1)
).reshape(-1, 3 * SIDE**2)

# %%
# Filling them
# ------------
#
# A patch is coded from the pixels that it has, as what it differs by from their mean colour. Each
# pixel of the photograph is in up to 64 patches; where it is missing, it becomes the average of
# what these say. What was observed stays as it is.


def restore(damaged, model):
    """Fill the missing pixels of an image from codes of its own patches."""
    patches = damaged.reshape(-1)[indices]
    means = np.nanmean(patches.reshape(len(patches), 3, -1), axis=2).repeat(SIDE**2, axis=1)
    patches -= means
    learned = np.random.default_rng(0).choice(len(patches), N_LEARNED, replace=False)
    codes = model.fit(patches[learned]).transform(patches)
    filled = model.inverse_transform(codes) + means
    total = np.bincount(indices.reshape(-1), weights=filled.reshape(-1))
    average = (total / np.bincount(indices.reshape(-1))).reshape(damaged.shape)
    return np.where(np.isnan(damaged), average.clip(0, 1), damaged)


def interpolate(damaged):
    """Fill the missing pixels of an image linearly from the nearest ones that are observed."""
    observed = ~np.isnan(damaged[:, :, 0])
    here, missing = np.argwhere(observed), np.argwhere(~observed)
    filled = damaged.copy()
    values = griddata(here, damaged[observed], missing)
    outside = np.isnan(values)  # of all triangles of observed pixels
    values[outside] = griddata(here, damaged[observed], missing, method="nearest")[outside]
    filled[~observed] = values
    return filled


# %%
# What comes back
# ---------------
#
# Peak signal-to-noise ratios are of the whole square, what was observed included. Interpolation
# frays edges, and a dictionary of edges does not: the stripes of the roofs are whole again with 30%
# missing. With 60% the finest of them are lost, and the outlines are back.

figure, axes = plt.subplots(2, 5, figsize=(16, 6.9))
for row, share in zip(axes, (0.3, 0.6), strict=True):
    hidden = np.random.default_rng(0).random(photograph.shape[:2]) < share
    damaged = np.where(hidden[:, :, None], np.float32(np.nan), photograph)
    models = {
        "FISTADictionaryLearner": FISTADictionaryLearner(
            n_components=128, alpha=0.05, max_iter=20, random_state=0
        ),
        "ThresholdedVSC": ThresholdedVSC(n_components=128, max_iter=15, random_state=0),
    }
    images = {"linear interpolation": interpolate(damaged)}
    images |= {name: restore(damaged, model) for name, model in models.items()}
    row[0].imshow(np.nan_to_num(damaged))
    row[0].set_title(f"{share:.0%} missing")
    for ax, (name, image) in zip(row[1:], images.items(), strict=False):
        ratio = psnr(photograph[None], image[None], data_range=1)
        ax.imshow(image.clip(0, 1))
        ax.set_title(f"{name}, {ratio:.1f} dB")
        print(f"{share:.0%} missing, {name}: {ratio:.1f} dB")
    row[4].imshow(photograph)
    row[4].set_title("photograph")
for ax in axes.flat:
    ax.axis("off")
figure.tight_layout()
if sys.argv[1:]:
    figure.savefig(sys.argv[1], dpi=80)
plt.show()
