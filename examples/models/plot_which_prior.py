"""
Which prior, by score
=====================

How should codes be distributed before anything is seen: sparse or not, with exact zeros or without?
`score` is a lower bound on the log likelihood of rows, in nats, for every class of this library. So
:func:`~sklearn.model_selection.cross_val_score` answers the question, for the data at hand and
without labels.

The yardstick is scikit-learn's :class:`~sklearn.decomposition.PCA`. Its `score` is the exact log
likelihood of a Gaussian model, probabilistic PCA: what can be had without any sparseness, and
without any bound.
"""

# %%
# Data, and folds that share nothing
# ----------------------------------
#
# Patches of 6 by 6 pixels of the two photographs that ship with scikit-learn, whitened. Patches
# drawn at random from one photograph overlap, and a fold that overlaps with the others flatters
# whoever remembers. So the left halves of the photographs are one fold and the right halves the
# other.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.model_selection import PredefinedSplit, cross_val_score

from sklearn_vsc import FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.datasets import load_natural_patches

N_ROWS = 1000  # of each half
halves = [
    load_natural_patches(N_ROWS, patch_size=6, subset=subset, random_state=0)
    for subset in ("train", "test")
]
X = np.concatenate(halves)
folds = PredefinedSplit(np.repeat([0, 1], N_ROWS))
n_features = X.shape[1]

# %%
# The yardstick
# -------------
#
# Probabilistic PCA with its best number of components.

yardsticks = [
    cross_val_score(PCA(n_components), X, cv=folds) for n_components in range(2, n_features, 2)
]
yardstick = max(yardsticks, key=np.mean)
print(f"probabilistic PCA: {yardstick.mean():.1f} nats a patch")

# %%
# The priors
# ----------
#
# All have a linear decoder, which is a dictionary, with as many atoms as there are pixels, and
# Gaussian noise of a learned variance. They differ in the law of the codes, and in how the codes of
# a patch are found. A spike and slab, and a thresholded Laplace law whose threshold is drawn from a
# Gamma law, say for each code whether it is there and which value it has.
# With a fixed threshold the two are tied to each other.
#
# Those that tell the two apart have an encoder that is unrolled from the dictionary, and posteriors
# that are refined; the others have a plain network, which needs more epochs.

unrolled = {"n_components": n_features, "max_iter": 15, "learning_rate_init": 4e-3}
network = {"n_components": n_features, "max_iter": 45, "learning_rate_init": 4e-3}
models = {
    "Gaussian": SparseVAE(prior="gaussian", decoder="linear", **network),
    "Laplace": SparseVAE(prior="laplace", decoder="linear", **network),
    "spike and slab": SparseVAE(prior="spike_slab", decoder="linear", **unrolled),
    "thresholded Laplace": ThresholdedVSC(threshold_prior=None, **network),
    "thresholded Laplace,\nGamma threshold": ThresholdedVSC(**unrolled),
    "Laplace, lasso codes\n(FISTADictionaryLearner)": FISTADictionaryLearner(
        n_features, alpha=0.1, max_iter=10
    ),
}
scores = {
    name: cross_val_score(model.set_params(random_state=0), X, cv=folds)
    for name, model in models.items()
}
for name, values in scores.items():
    print(f"{' '.join(name.split())}: {values.mean():.1f} nats a patch")

# %%
# Gains and losses
# ----------------
#
# Bars start at the yardstick: to the right is what a prior gains over a Gaussian model of exact
# likelihood, to the left what it loses. Dots are the two folds. One nat more means that a held-out
# patch is, on average, more probable by a factor of *e*.

order = sorted(scores, key=lambda name: scores[name].mean())
gains = np.array([scores[name] - yardstick for name in order])
means = gains.mean(axis=1)
figure, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
ax.barh(order, means, color=np.where(means > 0, "tab:blue", "tab:orange"), alpha=0.75)
ax.plot(gains, np.arange(len(order)), "k.", markersize=5)
ax.axvline(0, color="black", linewidth=1)
ax.set_xlabel("nats a patch, above or below probabilistic PCA")
ax.set_title("Which law of codes describes patches of photographs?")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# A sparse prior pays where its posterior can be right: the two that tell apart *whether* a code is
# there from *how large* it is are far above the yardstick. A Laplace prior without zeros is about
# level with it, by an encoder and by lasso codes. A Gaussian prior with a linear decoder *is*
# probabilistic PCA; it falls short of the exact likelihood by what its posterior of independent
# codes and its encoder cannot express. A fixed threshold falls shorter still.
#
# These are lower bounds at a small budget of training: a model whose bound is low may be a good
# model with a bad posterior. And they are about these data: on digits, of which there are few, the
# yardstick is above them all. :doc:`/guide/priors` has both, with more priors and longer trainings.
