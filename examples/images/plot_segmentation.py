"""
Image segmentation by sparse codes
==================================

An :class:`~sklearn_vsc.SCVAE` learns from patches of the two photographs that ship with
scikit-learn. The atoms that are used around a position characterise the surface there, and k-means
on this use of atoms divides a photograph into regions, without labels and here without colours. For
comparison, the example also runs k-means on the colours of pixels and on the patches themselves.
"""

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from sklearn.decomposition import PCA

from sklearn_vsc import SCVAE

SIDE = 8  # pixels of a patch
STEP = 4  # pixels from one patch to the next
N_REGIONS = 5

# %%
# Learning from patches
# ---------------------
#
# The patches of a photograph lie on a grid and overlap by half. The model sees them without their
# mean colours, learns from a few thousand, and codes all of them.

photographs = [photograph.astype(np.float32) / 255 for photograph in load_sample_images().images]


def patch_grid(photograph):
    """Return the patches of a photograph, of shape (rows, columns, channels, pixels)."""
    windows = sliding_window_view(photograph, (SIDE, SIDE), axis=(0, 1))[::STEP, ::STEP]
    return windows.reshape(*windows.shape[:3], -1)


patches = [patch_grid(photograph) for photograph in photographs]
shapes = [grid.shape[:2] for grid in patches]
tables = [(p - p.mean(axis=3, keepdims=True)).reshape(-1, 3 * SIDE**2) for p in patches]
all_rows = np.concatenate(tables)
training_rows = np.random.default_rng(0).choice(len(all_rows), 8_000, replace=False)
model = SCVAE(n_components=64, alpha=1.0, max_iter=10, random_state=0).fit(all_rows[training_rows])
codes = [model.transform(X).reshape(*shape, -1) for X, shape in zip(tables, shapes, strict=True)]
print(f"{np.mean(codes[0] != 0):.0%} of the codes of the first photograph are non-zero")

# %%
# Where atoms are used
# --------------------
#
# The code of a leaf or a tile changes from one patch to the next, and so does its sign. The set of
# atoms that occur changes less. We therefore keep only which codes are non-zero, and average this
# over a neighbourhood of a few patches. The figure shows the six largest principal components of
# these averages for the first photograph, each scaled to unit variance. The first one measures how
# much structure there is at a position. In others, horizontal lines stand out, such as the far
# shore, or tiled roofs.


def main_components(features):
    """Return six whitened principal components of features on the grid of patches."""
    height, width, n_features = features.shape
    pca = PCA(6, whiten=True, random_state=0)
    return pca.fit_transform(features.reshape(-1, n_features)).reshape(height, width, 6)


uses = [gaussian_filter((code != 0).astype(float), (3, 3, 0)) for code in codes]
figure, axes = plt.subplots(2, 3, figsize=(12, 5.8), layout="constrained")
for ax, component in zip(axes.ravel(), np.moveaxis(main_components(uses[0]), 2, 0), strict=True):
    ax.imshow(component, cmap="RdBu_r", vmin=-3, vmax=3)
    ax.axis("off")

# %%
# Regions
# -------
#
# K-means clusters these components. Each position of the grid represents the pixels around the
# centre of its patch. For comparison, patches of pixels with their colours are averaged over
# neighbours and clustered in the same way.


def segment(features):
    """Return a region for each pixel from features on the grid of patches."""
    height, width, _ = features.shape
    clusters = KMeans(N_REGIONS, n_init=4, random_state=0)
    regions = clusters.fit_predict(main_components(features).reshape(height * width, -1))
    regions = regions.reshape(height, width).repeat(STEP, axis=0).repeat(STEP, axis=1)
    return np.pad(regions, (SIDE - STEP) // 2, mode="edge")


def segment_colours(photograph):
    """Return k-means clusters of the colours of pixels, fitted to a tenth of them."""
    colours = photograph.reshape(-1, 3)
    clusters = KMeans(N_REGIONS, n_init=4, random_state=0).fit(colours[::10])
    return clusters.predict(colours).reshape(photograph.shape[:2])


# %%
# The colours of the regions are arbitrary in each picture. Sky, water and flower are easy. The
# pagoda and the plants in front of it are both dark and of many colours, in light and in shadow.
# Clustering pixels mixes them. With the use of atoms, the pagoda is one region, its tiled roofs are
# another, and the plants a third. On the flower, atoms distinguish the directions of the petals,
# which colours do not. The background is out of focus and uses few atoms, so it is divided into
# specks.

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(2, 4, figsize=(12, 4.5), layout="constrained")
titles = ("photograph", "colours of pixels", "patches of pixels", "use of SCVAE's atoms")
for ax, title in zip(axes[0], titles, strict=True):
    ax.set_title(title, fontsize=10)
for row, photograph, grid, use in zip(axes, photographs, patches, uses, strict=True):
    pixels = gaussian_filter(grid.reshape(*grid.shape[:2], -1), (2, 2, 0))
    divisions = (segment_colours(photograph), segment(pixels), segment(use))
    for ax in row:
        ax.imshow(photograph)
        ax.axis("off")
    for ax, regions in zip(row[1:], divisions, strict=True):
        ax.imshow(regions, cmap="Set1", vmin=0, vmax=8, alpha=0.6, interpolation="nearest")
plt.show()
