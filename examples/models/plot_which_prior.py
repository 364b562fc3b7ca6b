"""
Choosing a prior by cross-validation
====================================

Which prior distribution should codes have: sparse or not, with or without exact zeros? In every
class of this library, `score` is a lower bound on the log likelihood of rows, in nats.
:func:`~sklearn.model_selection.cross_val_score` can therefore answer the question for your data,
without labels.

The baseline is scikit-learn's :class:`~sklearn.decomposition.PCA`. Its `score` is the exact log
likelihood of a Gaussian model, probabilistic PCA. It shows what is possible without sparsity, and
without a bound.
"""

# %%
# Data and non-overlapping folds
# ------------------------------
#
# The data are whitened patches of 6 by 6 pixels from the two photographs that ship with
# scikit-learn. Random patches from one photograph overlap, and folds that overlap reward
# overfitting. We therefore use the left halves of the photographs as one fold and the right halves
# as the other.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.model_selection import PredefinedSplit, cross_val_score

from sklearn_vsc import FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.datasets import load_natural_patches

N_ROWS = 1000  # per half
halves = [
    load_natural_patches(N_ROWS, patch_size=6, subset=subset, random_state=0)
    for subset in ("train", "test")
]
X = np.concatenate(halves)
folds = PredefinedSplit(np.repeat([0, 1], N_ROWS))
n_features = X.shape[1]

# %%
# The baseline
# ------------
#
# The baseline is probabilistic PCA with its best number of components.

pca_scores = [
    cross_val_score(PCA(n_components), X, cv=folds) for n_components in range(2, n_features, 2)
]
baseline = max(pca_scores, key=np.mean)
print(f"probabilistic PCA: {baseline.mean():.1f} nats per patch")

# %%
# The priors
# ----------
#
# All models have a linear decoder, which is a dictionary, with as many atoms as pixels, and
# Gaussian noise with a learned variance. They differ in the distribution of the codes, and in how
# the codes of a patch are inferred. Two priors describe separately whether a code is non-zero and
# which value it has: the spike and slab, and the thresholded Laplace distribution with a
# Gamma-distributed threshold. With a fixed threshold, the two are tied to each other.
#
# The models with these two priors learn by closed forms, without a network. The others have a plain
# network, which needs more epochs.

closed = {"n_components": n_features, "density": 0.1, "noise_variance": "learned"}
network = {"n_components": n_features, "max_iter": 45, "learning_rate_init": 4e-3}
models = {
    "Gaussian": SparseVAE(prior="gaussian", decoder="linear", **network),
    "Laplace": SparseVAE(prior="laplace", decoder="linear", **network),
    "spike and slab": SparseVAE(prior="spike_slab", decoder="linear", **closed),
    "thresholded Laplace": ThresholdedVSC(threshold_prior=None, solver="gradient", **network),
    "thresholded Laplace,\nGamma threshold": ThresholdedVSC(**closed),
    "Laplace, lasso codes\n(FISTADictionaryLearner)": FISTADictionaryLearner(
        n_features, alpha=0.1, max_iter=10
    ),
}
scores = {
    name: cross_val_score(model.set_params(random_state=0), X, cv=folds)
    for name, model in models.items()
}
for name, values in scores.items():
    print(f"{' '.join(name.split())}: {values.mean():.1f} nats per patch")

# %%
# Gains and losses
# ----------------
#
# Bars start at the baseline. A bar to the right shows the gain of a prior over a Gaussian model
# with exact likelihood, and a bar to the left shows its loss. Dots are the two folds. One nat more
# means that a held-out patch is, on average, more probable by a factor of *e*.

order = sorted(scores, key=lambda name: scores[name].mean())
gains = np.array([scores[name] - baseline for name in order])
means = gains.mean(axis=1)
figure, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
ax.barh(order, means, color=np.where(means > 0, "tab:blue", "tab:orange"), alpha=0.75)
ax.plot(gains, np.arange(len(order)), "k.", markersize=5)
ax.axvline(0, color="black", linewidth=1)
ax.set_xlabel("nats per patch, above or below probabilistic PCA")
ax.set_title("Which distribution of codes describes patches of photographs?")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# A sparse prior pays off if its posterior can be accurate. The two priors that separate *whether* a
# code is non-zero from *how large* it is are far above the baseline. A Laplace prior without zeros
# is about equal to the baseline, both with an encoder and with lasso codes. A Gaussian prior with a
# linear decoder *is* probabilistic PCA; it falls short of the exact likelihood because of its
# independent codes and its encoder. A fixed threshold is even lower.
#
# These are lower bounds from a small training budget: a model with a low bound may be a good model
# with a poor posterior. They also depend on the data: on digits, of which there are few, the
# baseline is above all of them. :doc:`/guide/priors` shows both data sets, with more priors and
# longer training.
