"""
Photographs segmented by their sparse codes
===========================================

An :class:`~sklearn_vsc.SCVAE` for images codes each position of a grid by a sparse vector. Here it
learns from crops of the two photographs that ship with scikit-learn, and k-means on the codes of a
whole photograph divides it into regions, without labels. Beside it are k-means on the colours of
pixels, and k-means on patches of pixels that are smoothed and whitened as the codes are.

Takes about two minutes on two cores. As a script, with a path to write the picture to::

    python examples/plot_segmentation.py docs/images/segmentation.png
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from sklearn.decomposition import PCA
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.pipeline import make_pipeline

from sklearn_vsc import SCVAE

SIZE = 32  # pixels of a crop
N_REGIONS = 5

# %%
# Learning from crops
# -------------------
#
# A thousand crops of each photograph, as images of three channels in [0, 1]. Two downsamplings make
# a grid of 8 by 8 codes from a crop of 32 by 32 pixels: one code for each patch of 4 by 4.

photographs = [photograph.astype(np.float32) / 255 for photograph in load_sample_images().images]
random_state = np.random.RandomState(0)
crops = np.concatenate(
    [
        extract_patches_2d(photograph, (SIZE, SIZE), max_patches=1000, random_state=random_state)
        for photograph in photographs
    ]
).transpose(0, 3, 1, 2)

model = SCVAE(
    n_components=64,
    alpha=2.0,
    image_shape=(3, SIZE, SIZE),
    n_downsamplings=2,
    batch_size=32,
    max_iter=10,
    random_state=0,
).fit(crops)

density = np.mean(model.transform(crops[::20]) != 0)
print(f"{density:.1%} of the codes are not zero; {model.n_dead_} atoms are never used")


# %%
# The codes of a whole photograph
# -------------------------------
#
# A photograph is larger than the images that the model knows. It is cut into crops that overlap by
# half, and of each the middle of the grid is kept: so every code has seen what is around its patch,
# and the middles, side by side, are the grid of the photograph.


def transform_photograph(photograph):
    """Return the grid of codes of an image of any size, and the pixels of a patch."""
    height, width, _ = photograph.shape
    step, margin = SIZE // 2, SIZE // 4
    patch = SIZE // model.grid_shape_[0]
    padding = [(margin, margin + -height % step), (margin, margin + -width % step), (0, 0)]
    padded = np.pad(photograph, padding, mode="reflect")
    windows = sliding_window_view(padded, (SIZE, SIZE), axis=(0, 1))[::step, ::step]
    n_high, n_wide = windows.shape[:2]
    codes = model.transform_grid(windows.reshape(-1, 3, SIZE, SIZE))

    first, last = margin // patch, (margin + step) // patch
    middles = codes[:, first:last, first:last]
    middles = middles.reshape(n_high, n_wide, *middles.shape[1:])
    n_patches = step // patch
    grid = middles.swapaxes(1, 2).reshape(n_high * n_patches, n_wide * n_patches, -1)
    return grid[: -(-height // patch), : -(-width // patch)], patch


# %%
# Regions
# -------
#
# Neighbouring codes differ as edges and leaves fall into one patch or the next; what they have in
# common is the surface. So codes are averaged over a neighbourhood of some patches, and their six
# largest principal components, each scaled to unit variance, go into k-means: else brightness,
# which varies most, would decide nearly alone. Each label is then repeated over its patch.


def segment(features, patch, shape):
    """Return a region for each pixel of an image from features on a grid of patches."""
    height, width, n_features = features.shape
    smooth = gaussian_filter(features, (2, 2, 0))
    clusters = make_pipeline(
        PCA(6, whiten=True, random_state=0), KMeans(N_REGIONS, n_init=10, random_state=0)
    )
    labels = clusters.fit_predict(smooth.reshape(-1, n_features)).reshape(height, width)
    return labels.repeat(patch, axis=0).repeat(patch, axis=1)[: shape[0], : shape[1]]


def pixel_patches(photograph, patch):
    """Return the pixels of each patch, on the grid that codes are on."""
    height, width, _ = photograph.shape
    padded = np.pad(photograph, [(0, -height % patch), (0, -width % patch), (0, 0)], mode="edge")
    windows = sliding_window_view(padded, (patch, patch), axis=(0, 1))[::patch, ::patch]
    return windows.reshape(*windows.shape[:2], -1)


def cluster_colours(photograph):
    """Return k-means clusters of the colours of single pixels."""
    clusters = KMeans(N_REGIONS, n_init=10, random_state=0)
    return clusters.fit_predict(photograph.reshape(-1, 3)).reshape(photograph.shape[:2])


# %%
# The colours of regions have no meaning from one picture to the next. Sky and flower are easy: they
# differ in colour, and all three find them. The pagoda and the plants in front of it are both dark
# and of many colours. Pixels mix them; codes keep most of one apart from the other, though not
# their shadows.

figure, axes = plt.subplots(2, 4, figsize=(16, 5.8))
for row, photograph in zip(axes, photographs, strict=True):
    codes, patch = transform_photograph(photograph)
    pixels = pixel_patches(photograph, patch)
    regions = {
        "photograph": None,
        "k-means on the colours of pixels": cluster_colours(photograph),
        "k-means on patches of pixels": segment(pixels, patch, photograph.shape),
        "k-means on SCVAE's codes": segment(codes, patch, photograph.shape),
    }
    for ax, (title, labels) in zip(row, regions.items(), strict=True):
        ax.imshow(photograph)
        if labels is not None:
            ax.imshow(labels, cmap="Set1", vmin=0, vmax=8, alpha=0.6, interpolation="nearest")
        if photograph is photographs[0]:
            ax.set_title(title)
        ax.axis("off")
figure.tight_layout()
if sys.argv[1:]:
    figure.savefig(sys.argv[1], dpi=80)
plt.show()
