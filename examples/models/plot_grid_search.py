"""
Grid search without labels
==========================

Threshold, number of draws, prior: variational sparse coding has settings that are mostly chosen by
looking at dictionaries. `score` is a lower bound on the log likelihood of held-out rows, so
:class:`~sklearn.model_selection.GridSearchCV` chooses them as it would choose the penalty of a
classifier, only without labels.
"""

# %%
# Data of a known density
# -----------------------
#
# Each of 16 atoms is in a row with a probability of a tenth; where it is, its code has a Laplace
# law. So there is an answer: a search should come out at a `density` of about 0.1.

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
# `density`, the share of codes that the prior expects to be on, sets the threshold. The published
# method (Fallah and Rozell, 2022) draws :math:`J` codes for each row and step, `n_draws`, and
# passes their gradients straight through a fixed threshold. The default of this library needs no
# draws: with a linear decoder the bound and its gradient have a closed form; and its threshold has
# a Gamma law. A list of grids has both.

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
# `cv_results_` has the score of each setting, in nats a row.


def row_of(parameters):
    """Name a setting but for its density."""
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
# The exact gradient is ahead at every density, and its best density is the one that made the data.
# With gradients straight through a fixed threshold the score goes on rising towards priors that are
# hardly sparse, away from the truth: their posterior cannot say that a code is surely there *and*
# precisely known, and pays for it most where the prior is sparse. Ten draws in place of one
# change little. This is what a search by score is for: to learn which settings to turn, and which
# to leave alone.
