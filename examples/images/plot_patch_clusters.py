"""
Clusters of image patches by their sparse codes
===============================================

A sparse code says which of the learned atoms an image patch consists of, and patches of the same
atoms show the same thing. So k-means on codes groups patches by what is in them: here edges by
orientation and place, tiles of a roof, faint ground. The codes are those of an
:class:`~sklearn_vsc.SCVAE`, whose atoms are combinations of features that a network finds.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from sklearn_vsc import SCVAE
from sklearn_vsc.datasets import load_natural_patches

SIDE = 16  # pixels of a patch

# %%
# Codes of patches
# ----------------
#
# The patches come from the two photographs that ship with scikit-learn, whitened: with their
# colours, or as they are in grey, clusters would be of colour and brightness first.

patches = load_natural_patches(8_000, patch_size=SIDE, random_state=0)
model = SCVAE(n_components=128, alpha=1.0, max_iter=10, random_state=0)
codes = model.fit_transform(patches)
print(f"{np.mean(codes != 0):.1%} of the codes are not zero")

# %%
# Clusters
# --------
#
# A large part of the photographs is sky and blurred ground, whose whitened patches are next to
# nothing, and so are their codes: patches with fewer than two atoms are left out. Of the others
# what counts is which atoms are there, not how strong the contrast is: codes are scaled to unit
# length. Without that, patches of low contrast, of any kind, are one large cluster.

used = np.sum(codes != 0, axis=1) >= 2
print(f"{np.mean(used):.0%} of the patches have at least two atoms")
codes, patches = normalize(codes[used]), patches[used]
clusters = KMeans(n_clusters=24, n_init=4, random_state=0).fit(codes)
distances = clusters.transform(codes)
sizes = np.bincount(clusters.labels_)

# %%
# All clusters, the largest first; of each the patches nearest to its centre. Every patch is drawn
# at its own contrast. Patches of faint texture, which differ in little but their average, make the
# largest clusters. Leaves, no two of which are alike, have no cluster of their own and turn up in
# others.

N_ROWS, N_COLUMNS = 3, 9  # of the patches of a cluster


def nearest(cluster):
    """Return the patches of a cluster that are nearest to its centre, side by side."""
    members = np.flatnonzero(clusters.labels_ == cluster)
    members = members[np.argsort(distances[members, cluster])][: N_ROWS * N_COLUMNS]
    tiles = np.zeros((N_ROWS * N_COLUMNS, SIDE, SIDE))
    tiles[: len(members)] = patches[members].reshape(-1, SIDE, SIDE)
    tiles /= np.abs(tiles).max(axis=(1, 2), keepdims=True) + 1e-12
    tiles = np.pad(tiles, [(0, 0), (0, 1), (0, 1)], constant_values=1)  # gaps
    tiles = tiles.reshape(N_ROWS, N_COLUMNS, SIDE + 1, SIDE + 1).swapaxes(1, 2)
    return tiles.reshape(N_ROWS * (SIDE + 1), N_COLUMNS * (SIDE + 1))


figure, axes = plt.subplots(8, 3, figsize=(9, 10), layout="constrained")
for ax, cluster in zip(axes.ravel(), np.argsort(-sizes), strict=True):
    ax.imshow(nearest(cluster), cmap="gray", vmin=-1, vmax=1)
    ax.set_title(f"{sizes[cluster]} patches", fontsize=8)
    ax.axis("off")
plt.show()
