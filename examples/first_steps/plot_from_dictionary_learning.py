"""
Moving from scikit-learn's DictionaryLearning
=============================================

:class:`~sklearn_vsc.FISTADictionaryLearner` takes the parameters of
:class:`sklearn.decomposition.DictionaryLearning`, with the same names and the same meanings, and
minimises the same objective. This example trains both on the same rows and compares the objective
that they reach, what is the same and what differs.
"""

# %%
# One set of parameters for both
# ------------------------------
#
# The data are whitened patches of photographs, 6 by 6 pixels. For a fair comparison, both start
# from the same dictionary: rows of the data scaled to unit norm.

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import DictionaryLearning
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import normalize

from sklearn_vsc import FISTADictionaryLearner
from sklearn_vsc.datasets import load_natural_patches

X = load_natural_patches(1500, patch_size=6, subset="train", random_state=0, dtype=np.float64)
X_new = load_natural_patches(1000, patch_size=6, subset="test", random_state=0, dtype=np.float64)

parameters = {
    "n_components": 48,
    "alpha": 0.5,
    "max_iter": 40,
    "fit_algorithm": "cd",
    "transform_algorithm": "lasso_cd",
    "transform_max_iter": 10_000,  # also applies to the coder in fit
    "dict_init": normalize(X[:48]),
    "random_state": 0,
}
models = {
    "scikit-learn": DictionaryLearning(**parameters),
    "FISTADictionaryLearner": FISTADictionaryLearner(**parameters),
}
codes = {}
for name, model in models.items():
    start = time.process_time()
    codes[name] = model.fit_transform(X)
    print(f"{name}: {time.process_time() - start:.2f} CPU seconds, {model.n_iter_} iterations")

# %%
# The same objective
# ------------------
#
# Both record :math:`\tfrac12 \lVert X - U V \rVert_F^2 + \alpha \lVert U \rVert_1` after each
# iteration, in `error_`. The objective is not convex, so two learners need not reach the same
# minimum. We therefore also compute the objective on new rows, from the two dictionaries and codes
# that solve the lasso.


def objective(X, codes, model):
    """Return the mean objective per row."""
    error = 0.5 * np.sum((X - codes @ model.components_) ** 2)
    return (error + model.alpha * np.abs(codes).sum()) / len(X)


for name, model in models.items():
    learned, new = model.error_[-1] / len(X), objective(X_new, model.transform(X_new), model)
    print(f"{name}: objective {learned:.4f} per training row, {new:.4f} per new row")

# %%
# What differs
# ------------
#
# scikit-learn's `fit_transform` returns the codes of the last iteration, computed before the last
# update of the dictionary; its `transform` solves again. Here the two agree, so a
# :class:`~sklearn.pipeline.Pipeline` sees the same codes during training and later.

for name, model in models.items():
    difference = np.abs(codes[name] - model.transform(X)).max()
    print(f"{name}: fit_transform(X) and transform(X) differ by at most {difference:.1e}")

# %%
# Also, scikit-learn's default `transform_algorithm` is `'omp'`, which does not solve the problem
# that `fit` solves. Here both defaults, `'auto'`, solve the lasso, and the solver stops for each
# row when its duality gap is small enough. Atoms have norm one, not at most one. NaN marks a
# missing entry.
#
# Choosing alpha
# --------------
#
# A smaller :math:`\alpha` always reconstructs better, and the value of the objective itself depends
# on :math:`\alpha`, so neither can be used to choose it. `score` can. It is a lower bound on the
# log likelihood of the rows, in nats, and penalises each non-zero code. scikit-learn's class has no
# score, and :class:`~sklearn.model_selection.GridSearchCV` rejects it.

alphas = np.geomspace(0.03, 3, 7)
search = GridSearchCV(
    FISTADictionaryLearner(48, max_iter=10, random_state=0), {"alpha": alphas}, cv=2
).fit(X)
print(f"best alpha: {search.best_params_['alpha']:.3f}")

# %%
# Left: the objective after each iteration. Right: the held-out score for each :math:`\alpha`.

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, model in models.items():
    axes[0].plot(np.arange(1, len(model.error_) + 1), np.array(model.error_) / len(X), label=name)
axes[0].set(
    xlabel="iteration", ylabel="objective per row", title="The same objective, from the same start"
)
axes[0].set_ylim(top=1.4 * models["scikit-learn"].error_[-1] / len(X))  # the rest of the descent
axes[0].legend()

axes[1].plot(alphas, search.cv_results_["mean_test_score"], "o-")
axes[1].axvline(search.best_params_["alpha"], color="black", linestyle="--", linewidth=0.8)
axes[1].set(
    xscale="log", xlabel=r"$\alpha$", ylabel="score, nats per row", title="Choosing alpha by score"
)
plt.show()

# %%
# From the same start, the objective of FISTADictionaryLearner falls faster, and it is lower after
# the same number of iterations. On new rows the two dictionaries are almost equally good. Neither
# has converged: the objective is still falling.
