"""
Sparse codes of digits as features for a classifier
===================================================

Labels are expensive, and images are cheap. In this example, codes are learned from all images of a
training set, without labels. A classifier is then trained on the codes of the few labelled images
(semi-supervised learning). For comparison, the same classifier is trained on raw pixels and on
principal components.
"""

# %%
# Features without labels
# -----------------------
#
# The data are scikit-learn's digits, 8 by 8 pixels. Each feature learner sees all training images.
# The fitted dictionaries and the PCA are then frozen (:class:`~sklearn.frozen.FrozenEstimator`), so
# the pipelines below fit only the classifier.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from sklearn_vsc import FISTADictionaryLearner, ThresholdedVSC
from sklearn_vsc.inspection import DictionaryDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X / 16, y, test_size=600, stratify=y, random_state=1
)
vsc = ThresholdedVSC(96, positive_code=True, noise_variance="learned", random_state=0).fit(X_train)
lasso = FISTADictionaryLearner(96, alpha=0.3, positive_code=True, max_iter=20, random_state=0).fit(
    X_train
)
pca = PCA(32, random_state=0).fit(X_train)
for name, coder in {"ThresholdedVSC": vsc, "FISTADictionaryLearner": lasso}.items():
    print(f"{name}: {np.mean(coder.transform(X_test) != 0):.1%} of the codes are non-zero")

# %%
# A classifier from few labels
# ----------------------------
#
# The features of each image are scaled to unit length, which keeps zeros at zero. For each number
# of labels, the labelled images are drawn five times, stratified by digit and identical for all
# pipelines.

pipelines = {
    "raw pixels": [],
    "PCA": [FrozenEstimator(pca)],
    "ThresholdedVSC": [FrozenEstimator(vsc)],
    "FISTADictionaryLearner": [FrozenEstimator(lasso)],
}
n_labels = [20, 50, 100, 200, 500]
accuracies = {}
for name, steps in pipelines.items():
    pipeline = make_pipeline(*steps, Normalizer(), LogisticRegression(C=10, max_iter=1000))
    accuracies[name] = np.array(
        [
            [
                pipeline.fit(X_train[labelled], y_train[labelled]).score(X_test, y_test)
                for labelled, _ in StratifiedShuffleSplit(
                    n_splits=5, train_size=size, random_state=0
                ).split(X_train, y_train)
            ]
            for size in n_labels
        ]
    )
    means = ", ".join(f"{mean:.1%}" for mean in accuracies[name].mean(axis=1))
    print(f"accuracy with {n_labels} labels, {name}: {means}")

# %%
# Left: lines are means, and bands are two standard errors. Right: atoms of the dictionary with
# non-negative lasso codes; they are parts of digits and whole digits.

figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(1.5, 1), layout="constrained")
for name, accuracy in accuracies.items():
    means = accuracy.mean(axis=1)
    errors = accuracy.std(axis=1, ddof=1) / np.sqrt(accuracy.shape[1])
    axes[0].plot(n_labels, means, "o-", label=name)
    axes[0].fill_between(n_labels, means - 2 * errors, means + 2 * errors, alpha=0.2)
axes[0].set(xscale="log", xlabel="labelled images", ylabel="test accuracy")
axes[0].set_xticks(n_labels, n_labels)
axes[0].minorticks_off()
axes[0].legend()
axes[0].set_title("A linear classifier on four kinds of features")
DictionaryDisplay.from_estimator(lasso, n_components=64, ax=axes[1], cmap="RdBu_r")
axes[1].set_title("Atoms of FISTADictionaryLearner")
plt.show()

# %%
# With two labels per digit, raw pixels and principal components are the better features, because
# the sparse codes of two images of a digit may have no atom in common. From a hundred labels on,
# the lasso codes of :class:`~sklearn_vsc.FISTADictionaryLearner` are better, and with five hundred
# labels they make about half as many errors as pixels. The codes of
# :class:`~sklearn_vsc.ThresholdedVSC`, which are about as sparse, are no better than pixels here:
# the model that describes images best, in nats, need not be the one that separates their classes
# best.
#
# The comparison is not entirely fair. The penalty of the lasso was chosen by accuracy, on another
# split of these images, while `ThresholdedVSC` has its default density.
