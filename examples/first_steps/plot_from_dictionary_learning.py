"""
Coming from scikit-learn's DictionaryLearning
=============================================

:class:`~sklearn_vsc.FISTADictionaryLearner` takes the parameters of
:class:`sklearn.decomposition.DictionaryLearning` under the same names and with the same meaning,
and minimises the same objective. Here both learn from the same rows: does ours reach as low a
value, what is the same, and what is not?
"""

# %%
# One set of parameters for both
# ------------------------------
#
# Patches of 6 by 6 pixels of photographs, whitened. For a fair race both start from the same
# dictionary, rows of the data scaled to unit norm.

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
    "transform_max_iter": 10_000,  # of the coder, in fit too
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
# iteration, in `error_`. It is not convex: two learners need not end in the same minimum. So the
# objective of new rows is computed too, from the two dictionaries and codes that solve the lasso.


def objective(X, codes, model):
    """Return the objective of a row, on average."""
    error = 0.5 * np.sum((X - codes @ model.components_) ** 2)
    return (error + model.alpha * np.abs(codes).sum()) / len(X)


for name, model in models.items():
    learned, new = model.error_[-1] / len(X), objective(X_new, model.transform(X_new), model)
    print(f"{name}: objective {learned:.4f} a row learned from, {new:.4f} a new row")

# %%
# What differs
# ------------
#
# `fit_transform` of scikit-learn returns the codes of the last iteration, from before the last
# change of the dictionary; `transform` solves anew. Here they are the same, so that a
# :class:`~sklearn.pipeline.Pipeline` sees the same codes in training as later.

for name, model in models.items():
    difference = np.abs(codes[name] - model.transform(X)).max()
    print(f"{name}: fit_transform(X) and transform(X) differ by at most {difference:.1e}")

# %%
# Besides, `transform_algorithm` is `'omp'` by default in scikit-learn, not a solver of the problem
# that `fit` solved. Here both defaults, `'auto'`, solve the lasso, and each row is done when its
# duality gap says so. Atoms have norm one, not at most one. NaN means missing.
#
# Choosing alpha
# --------------
#
# A smaller :math:`\alpha` always reconstructs better, and the objective itself changes with it:
# neither can choose. `score` can. It is a lower bound on the log likelihood of rows in nats, and
# pays for each code that is not zero. scikit-learn's class has no score, and
# :class:`~sklearn.model_selection.GridSearchCV` refuses it.

alphas = np.geomspace(0.03, 3, 7)
search = GridSearchCV(
    FISTADictionaryLearner(48, max_iter=10, random_state=0), {"alpha": alphas}, cv=2
).fit(X)
print(f"best alpha: {search.best_params_['alpha']:.3f}")

# %%
# On the left the objective after each iteration, on the right the held-out score for each
# :math:`\alpha`.

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, model in models.items():
    axes[0].plot(np.arange(1, len(model.error_) + 1), np.array(model.error_) / len(X), label=name)
axes[0].set(
    xlabel="iteration", ylabel="objective a row", title="The same objective, from the same start"
)
axes[0].set_ylim(top=1.4 * models["scikit-learn"].error_[-1] / len(X))  # the rest of the descent
axes[0].legend()

axes[1].plot(alphas, search.cv_results_["mean_test_score"], "o-")
axes[1].axvline(search.best_params_["alpha"], color="black", linestyle="--", linewidth=0.8)
axes[1].set(
    xscale="log", xlabel=r"$\alpha$", ylabel="score, nats a row", title="Choosing alpha by score"
)
plt.show()

# %%
# From the same start the objective falls faster here, and after as many iterations it is lower; on
# new rows the two dictionaries are nearly as good as each other. Neither has ended: the objective
# still falls.
