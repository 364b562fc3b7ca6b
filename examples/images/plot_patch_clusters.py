"""
Clustering image patches by their sparse codes
==============================================

A sparse code says which of the learned atoms an image patch consists of, and patches with the same
atoms look alike. K-means clustering of codes therefore groups patches by their content: in this
example edges by orientation and position, roof tiles, and faint ground. The codes come from an
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
# The patches are whitened and come from the two photographs that ship with scikit-learn. With
# colours, or in grey without whitening, the clusters would mainly reflect colour and brightness.

patches = load_natural_patches(8_000, patch_size=SIDE, random_state=0)
model = SCVAE(n_components=128, alpha=1.0, max_iter=10, random_state=0)
codes = model.fit_transform(patches)
print(f"{np.mean(codes != 0):.1%} of the codes are non-zero")

# %%
# Clusters
# --------
#
# A large part of the photographs is sky and blurred ground. Their whitened patches are almost zero,
# and so are their codes, so we leave out patches with fewer than two atoms. For the others, we are
# interested in which atoms are used, not in the contrast, so we scale codes to unit length.
# Otherwise all patches of low contrast would form one large cluster.

used = np.sum(codes != 0, axis=1) >= 2
print(f"{np.mean(used):.0%} of the patches have at least two atoms")
codes, patches = normalize(codes[used]), patches[used]
clusters = KMeans(n_clusters=24, n_init=4, random_state=0).fit(codes)
distances = clusters.transform(codes)
sizes = np.bincount(clusters.labels_)

# %%
# The figure shows all clusters, the largest first, each with the patches nearest to its centre.
# Each patch is scaled to full contrast. Patches of faint texture, which differ in little except
# their average, form the largest clusters. Leaves, which all differ, have no cluster and appear in
# others.

N_ROWS, N_COLUMNS = 3, 9  # layout of the patches of one cluster


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
