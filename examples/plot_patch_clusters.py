"""
Clusters of image patches by their sparse codes
===============================================

An :class:`~sklearn_vsc.SCVAE` for images has a sparse code at each position of a grid, and each
position belongs to a patch of the image. K-means on these codes groups the patches: edges by their
orientation and place, the tiles of a roof by their phase, faint ground by its brightness.

The images are crops of the two photographs that ship with scikit-learn, whitened: in their colours,
clusters would be of colour and brightness first.

Takes about two minutes on two cores. As a script, with a path to write the picture to::

    python examples/plot_patch_clusters.py docs/images/patch_clusters.png
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from sklearn_vsc import SCVAE
from sklearn_vsc.datasets import load_natural_patches

SIZE = 32  # pixels of a crop
N_CLUSTERS = 32
N_SHOWN = 27  # patches of a cluster

# %%
# Learning from crops
# -------------------
#
# Three downsamplings make a grid of 4 by 4 codes from a crop of 32 by 32 pixels: one for each patch
# of 8 by 8.

crops = load_natural_patches(2000, patch_size=SIZE, random_state=0)
model = SCVAE(
    n_components=128,
    alpha=0.7,
    image_shape=(1, SIZE, SIZE),
    n_downsamplings=3,
    batch_size=32,
    max_iter=12,
    random_state=0,
).fit(crops)

# %%
# Codes of patches
# ----------------
#
# From other crops, the four positions in the middle of the grid, whose codes have seen what is
# around their patches. `windows` are the patches with a margin of half their size.

crops = load_natural_patches(6000, patch_size=SIZE, random_state=1)
grid = model.transform_grid(crops)
patch = SIZE // model.grid_shape_[0]
middle = [(i, j) for i in (1, 2) for j in (1, 2)]  # of 4 by 4


def window(images, i, j):
    """Return the pixels around a position of the grid."""
    top, left = i * patch - patch // 2, j * patch - patch // 2
    return images[:, top : top + 2 * patch, left : left + 2 * patch]


images = crops.reshape(-1, SIZE, SIZE)
codes = np.concatenate([grid[:, i, j] for i, j in middle])
windows = np.concatenate([window(images, i, j) for i, j in middle])

# %%
# Clusters
# --------
#
# A large part of the photographs is sky and blurred ground, whose whitened patches are next to
# nothing, and so are their codes: patches with less than two atoms are left out. Of the others what
# counts is which atoms are there, not how strong the contrast is: codes are scaled to unit length.

used = np.sum(codes != 0, axis=1) >= 2
print(f"{np.mean(codes != 0):.1%} of the codes are not zero; {model.n_dead_} atoms are never used")
print(f"{used.mean():.0%} of the patches have at least two codes that are not zero")
codes, windows = normalize(codes[used]), windows[used]
clusters = KMeans(N_CLUSTERS, n_init=4, random_state=0).fit(codes)
distances = clusters.transform(codes)

# %%
# Of each cluster, the patches nearest to its centre; all clusters are shown, the largest first.
# Each patch is drawn at its own contrast.


def nearest(cluster):
    """Return the patches of a cluster next to its centre, side by side in three rows."""
    members = np.flatnonzero(clusters.labels_ == cluster)
    members = members[np.argsort(distances[members, cluster])][:N_SHOWN]
    tiles = np.zeros((N_SHOWN, *windows.shape[1:]))
    tiles[: len(members)] = windows[members]
    tiles /= np.abs(tiles).max(axis=(1, 2), keepdims=True) + 1e-12
    tiles = np.pad(tiles, [(0, 0), (0, 1), (0, 1)], constant_values=1)
    height, width = tiles.shape[1:]
    return tiles.reshape(3, -1, height, width).swapaxes(1, 2).reshape(3 * height, -1)


sizes = np.bincount(clusters.labels_, minlength=N_CLUSTERS)
figure, axes = plt.subplots(N_CLUSTERS // 4, 4, figsize=(16, 12))
for ax, cluster in zip(axes.ravel(), np.argsort(-sizes), strict=True):
    ax.imshow(nearest(cluster), cmap="gray", vmin=-1, vmax=1)
    ax.set_title(f"{sizes[cluster]} patches", fontsize=8)
    ax.axis("off")
figure.tight_layout()
if sys.argv[1:]:
    figure.savefig(sys.argv[1], dpi=80)
plt.show()
