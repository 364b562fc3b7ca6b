"""
Latent variables of Fashion-MNIST
=================================

A variational autoencoder with a spike-and-slab prior describes each image by a few numbers, and by
which of them are non-zero. A network decodes them. The meaning of a latent variable cannot be seen
from the weights of a network, but there are other ways to interpret it: a linear dictionary of its
effect, latent traversals that vary one latent and decode the result, and its correlation with the
classes, which the model has never seen.

The images come from Fashion-MNIST, which has ten classes of clothes and shoes; see
:func:`~sklearn_vsc.datasets.fetch_fashion_mnist` for their source.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.preprocessing import label_binarize

from sklearn_vsc import SparseVAE
from sklearn_vsc.datasets import fetch_fashion_mnist
from sklearn_vsc.inspection import DictionaryDisplay, LatentTraversalDisplay
from sklearn_vsc.metrics import attribute_correlation

# %%
# Training
# --------
#
# `density` is the share of latents that an image is expected to use. Each used latent has a cost in
# nats, and latents whose benefit does not exceed their cost are zero. With only 12 latents, most
# are worth their cost.

clothes = fetch_fashion_mnist(subset="train")
X = clothes.data[:8_000]
test = fetch_fashion_mnist(subset="test")
X_test, target = test.data[:3_000], test.target[:3_000]

model = SparseVAE(
    n_components=12,
    prior="spike_slab",
    density=0.3,
    output_activation="sigmoid",
    kl_warmup=0.5,
    max_iter=12,
    random_state=0,
).fit(X)
codes = model.transform(X_test)
print(f"{np.mean(codes != 0):.0%} of the latents of an image are non-zero")

# %%
# Images and their reconstructions
# --------------------------------

shown = np.array([np.flatnonzero(target == label)[0] for label in range(10)])
pairs = np.concatenate([X_test[shown], model.inverse_transform(codes[shown])])
figure, axes = plt.subplots(2, 10, figsize=(10, 2.4), layout="constrained")
for ax, image in zip(axes.ravel(), pairs, strict=True):
    ax.imshow(image.reshape(28, 28), cmap="gray", vmin=0, vmax=1)
    ax.axis("off")
for ax, name in zip(axes[0], test.target_names, strict=True):
    ax.set_title(name, fontsize=8)

# %%
# The effective dictionary
# ------------------------
#
# If the decoder is a network, `components_` is the linear dictionary that best decodes the codes of
# the training rows. It shows the average effect of each latent: where it makes an image lighter or
# darker. The latents are shown in order of use.

_, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
DictionaryDisplay.from_estimator(model, cmap="RdBu_r", n_columns=6, ax=ax)

# %%
# Latent traversals
# -----------------
#
# To see the effect of a latent on one image, decode the code of the image with other values for
# this latent. The latents that vary most over the images turn the same sneaker into something like
# a boot, a bag or a dress, or change its brightness. In the middle column the latent is zero.

first = np.flatnonzero(target == test.target_names.index("Sneaker"))[0]
rows = np.concatenate([X_test[[first]], X_test])
# sphinx_gallery_thumbnail_number = 3
LatentTraversalDisplay.from_estimator(model, rows, im_kw={"vmin": 0, "vmax": 1})

# %%
# Latents and classes
# -------------------
#
# The figure shows the correlation of each latent with class membership, on images that the model
# has not seen. No latent corresponds to a class exactly, but some distinguish trousers or types of
# shoes from everything else. Shirts, which look like pullovers and coats, have no latent that
# identifies them.

correlation = attribute_correlation(codes, label_binarize(target, classes=range(10)))
order = np.argsort(-np.abs(correlation).max(axis=0))
figure, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
image = ax.imshow(correlation[:, order], cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
ax.set_yticks(range(10), test.target_names)
ax.set_xticks(range(len(order)), order, fontsize=7)
ax.set_xlabel("latent")
figure.colorbar(image, label="correlation")
plt.show()
