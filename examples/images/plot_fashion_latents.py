"""
Latents of Fashion-MNIST
========================

A variational autoencoder with a spike and slab prior describes each picture by a few numbers, and
by which of them are there at all. A network decodes them. What a latent stands for cannot be read
off the weights of a network, but there are ways to see it: linear dictionaries of its effect,
decoding while one latent moves, and its correlation with the classes, which the model has never
been told.

The pictures are those of Fashion-MNIST, clothes and shoes of ten kinds;
:func:`~sklearn_vsc.datasets.fetch_fashion_mnist` says where they come from.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.preprocessing import label_binarize

from sklearn_vsc import SparseVAE
from sklearn_vsc.datasets import fetch_fashion_mnist
from sklearn_vsc.inspection import DictionaryDisplay, LatentTraversalDisplay
from sklearn_vsc.metrics import attribute_correlation

# %%
# Learning
# --------
#
# `density` is the share of latents that a picture is expected to use. A picture pays for each
# latent that it uses, in nats, and latents that do not pay for themselves are off. Of so few most
# do.

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
print(f"{np.mean(codes != 0):.0%} of the latents of a picture are not zero")

# %%
# Pictures, and the same decoded from their codes
# -----------------------------------------------

shown = np.array([np.flatnonzero(target == kind)[0] for kind in range(10)])
pairs = np.concatenate([X_test[shown], model.inverse_transform(codes[shown])])
figure, axes = plt.subplots(2, 10, figsize=(10, 2.4), layout="constrained")
for ax, picture in zip(axes.ravel(), pairs, strict=True):
    ax.imshow(picture.reshape(28, 28), cmap="gray", vmin=0, vmax=1)
    ax.axis("off")
for ax, kind in zip(axes[0], test.target_names, strict=True):
    ax.set_title(kind, fontsize=8)

# %%
# The effective dictionary
# ------------------------
#
# `components_` of a model with a network for a decoder is the linear dictionary that decodes the
# codes of the training rows best. It says what a latent does on average: which light and dark it
# adds to a picture. The latents are in the order of their use.

_, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
DictionaryDisplay.from_estimator(model, cmap="RdBu_r", n_columns=6, ax=ax)

# %%
# Traversals
# ----------
#
# What a latent does to one picture is seen by decoding its code with this latent at other values.
# The latents that vary most over the pictures turn the same sneaker towards a boot, a bag or a
# dress, or change how bright it is. In the middle column the latent is zero.

first = np.flatnonzero(target == test.target_names.index("Sneaker"))[0]
rows = np.concatenate([X_test[[first]], X_test])
# sphinx_gallery_thumbnail_number = 3
LatentTraversalDisplay.from_estimator(model, rows, im_kw={"vmin": 0, "vmax": 1})

# %%
# Latents and classes
# -------------------
#
# The correlation of each latent with belonging to a class, over pictures that the model has not
# seen. No latent is a class, and yet some tell trousers or kinds of shoes from all else. Shirts,
# which look like pullovers and coats, have no latent that tells them.

correlation = attribute_correlation(codes, label_binarize(target, classes=range(10)))
order = np.argsort(-np.abs(correlation).max(axis=0))
figure, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
image = ax.imshow(correlation[:, order], cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
ax.set_yticks(range(10), test.target_names)
ax.set_xticks(range(len(order)), order, fontsize=7)
ax.set_xlabel("latent")
figure.colorbar(image, label="correlation")
plt.show()
