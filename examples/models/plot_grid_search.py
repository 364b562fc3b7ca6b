"""
Hyperparameter search without labels
====================================

Variational sparse coding has hyperparameters such as the threshold, the number of samples and the
prior, which are usually chosen by looking at dictionaries. Here `score` is a lower bound on the log
likelihood of held-out rows. :class:`~sklearn.model_selection.GridSearchCV` can therefore choose
them by cross-validation, like the penalty of a classifier, but without labels.
"""

# %%
# Data with a known density
# -------------------------
#
# Each of 16 atoms is present in a row with a probability of one tenth, and its code then has a
# Laplace distribution. The correct answer is therefore known: a search should find a `density` of
# about 0.1.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from sklearn_vsc import ThresholdedVSC
from sklearn_vsc.datasets import make_sparse_coded

X = make_sparse_coded(600, 16, 16, density=0.1, noise=0.1, random_state=0)[0]

# %%
# The grid
# --------
#
# `density`, the share of codes that the prior expects to be active, sets the threshold. The
# published method (Fallah and Rozell, 2022) draws :math:`J` = `n_draws` samples for each row and
# step, and passes their gradients straight through a fixed threshold. The default of this library
# needs no samples, because the bound and its gradient have a closed form for a linear decoder, and
# its threshold has a Gamma distribution. The list of grids contains both.

densities = [0.025, 0.05, 0.1, 0.2, 0.4]
grids = [
    {
        "prior": ["laplace", "gaussian"],
        "threshold_prior": [None],
        "gradient": ["straight_through"],
        "n_draws": [1, 10],
        "density": densities,
    },
    {
        "prior": ["laplace"],
        "threshold_prior": ["gamma"],
        "gradient": ["exact"],
        "n_draws": [1],
        "density": densities,
    },
]
model = ThresholdedVSC(
    16, max_iter=12, n_iter_no_change=12, learning_rate_init=4e-3, random_state=0
)
search = GridSearchCV(model, grids, cv=2, refit=False).fit(X)
best = {name: value for name, value in search.best_params_.items() if len(grids[0][name]) > 1}
print(f"best: {search.best_params_['gradient']} gradient, {best}: {search.best_score_:.1f} nats")

# %%
# All scores
# ----------
#
# `cv_results_` has the score of each setting, in nats per row.


def row_of(parameters):
    """Return the name of a setting without its density."""
    prior = parameters["prior"].capitalize()
    if parameters["gradient"] == "exact":
        return f"{prior}, Gamma threshold,\nexact gradient"
    return f"{prior}, J = {parameters['n_draws']}"


settings = search.cv_results_["params"]
rows = sorted(set(map(row_of, settings)), key=lambda row: ("exact" not in row, row))
scores = np.empty((len(rows), len(densities)))
for parameters, score in zip(settings, search.cv_results_["mean_test_score"], strict=True):
    scores[rows.index(row_of(parameters)), densities.index(parameters["density"])] = score

figure, ax = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
image = ax.imshow(scores, aspect="auto", cmap="viridis")
for (i, j), score in np.ndenumerate(scores):
    dark = image.norm(score) < 0.6
    ax.text(j, i, f"{score:.1f}", ha="center", va="center", color="white" if dark else "black")
ax.set_xticks(range(len(densities)), [f"{density:g}" for density in densities])
ax.set_yticks(range(len(rows)), rows)
ax.set(xlabel="density", title="Score of held-out rows, nats")
figure.colorbar(image, ax=ax)
plt.show()

# %%
# The exact gradient is best at every density, and its best density is the true one. With
# straight-through gradients and a fixed threshold, the score keeps rising towards priors that are
# hardly sparse, away from the truth. The reason is that their posterior cannot express that a code
# is certainly active *and* precisely known, and this costs most where the prior is sparse. Ten
# samples instead of one make little difference. A search by score shows which hyperparameters to
# tune and which to leave alone.
