"""
How sure is a code?
===================

A posterior says for each code how probable it is that the code is not zero (`inclusion`), which
value it has (`mean`), and how uncertain that is (`std`). Are these to be trusted? On data made from
known codes it can be counted: of the codes that are said to be there with a probability of 70%,
seven in ten should be there, and 95% of the true values should lie within two standard deviations
of the mean.
"""

# %%
# Three worlds with known codes
# -----------------------------
#
# In each, every atom is in a row with a probability of a tenth, in 24 dimensions, with noise. In
# the first world there are half as many atoms as dimensions: there is room to tell them apart. In
# the second there are as many, in the third twice as many: several sets of atoms may explain a row
# about as well.

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from sklearn.calibration import calibration_curve

from sklearn_vsc import ThresholdedVSC
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.metrics import atom_recovery

N_FEATURES, N_LEARNED, N_TEST = 24, 2000, 2000


def learn(n_components):
    """Learn from rows with known codes; return true codes and posterior of other rows."""
    X, dictionary, codes = make_sparse_coded(
        N_LEARNED + N_TEST, n_components, N_FEATURES, noise=0.15, random_state=0
    )
    model = ThresholdedVSC(
        n_components, density=0.1, max_iter=25, learning_rate_init=4e-3, random_state=0
    ).fit(X[:N_LEARNED])

    # Atoms come in any order, sign and length; codes are brought to those of the true atoms.
    recovery = atom_recovery(model.components_, dictionary, threshold=0.95)
    print(
        f"{n_components} atoms: {recovery.recovered:.0%} found, noise variance "
        f"{model.noise_variance_:.4f} where the true one is {0.15**2:.4f}"
    )
    posterior = model.posterior(X[N_LEARNED:])
    scale = np.sum(model.components_[recovery.matches] * dictionary, axis=1)
    return {
        "codes": codes[N_LEARNED:],
        "mean": posterior.mean[:, recovery.matches] * scale,
        "std": posterior.std[:, recovery.matches] * np.abs(scale),
        "inclusion": posterior.inclusion[:, recovery.matches],
    }


worlds = {f"{n_components} atoms": learn(n_components) for n_components in (12, 24, 48)}

# %%
# One row
# -------
#
# Bars are the posterior's probability that a code is there; dots its mean, plus or minus two
# standard deviations; crosses the truth. It is, of the first and easiest world, the first row with
# two codes that are surely there and some in doubt.

world = worlds["12 atoms"]
doubtful = (world["inclusion"] > 0.2) & (world["inclusion"] < 0.8)
row = np.argmax(doubtful.any(axis=1) & (np.sum(world["inclusion"] > 0.8, axis=1) == 2))
atoms = np.arange(12)
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(9, 4.8), sharex=True, height_ratios=(1, 2), layout="constrained"
)
top.bar(atoms, world["inclusion"][row], color="tab:orange")
top.set(ylim=(0, 1), ylabel="inclusion", title="The posterior of one row, and the truth")
bottom.errorbar(
    atoms, world["mean"][row], 2 * world["std"][row], fmt="o", markersize=4, capsize=3,
    label="mean and two standard deviations",
)  # fmt: skip
bottom.plot(atoms, world["codes"][row], "kx", label="true code")
bottom.axhline(0, color="black", linewidth=0.5)
bottom.set(xlabel="atom", ylabel="code")
bottom.legend()
plt.show()

# %%
# All rows
# --------
#
# On the left a reliability curve: codes are sorted by their inclusion into bins, and in each bin
# it is counted how many are really there. On the right, the share of true values within two
# standard deviations of the mean, for codes of about the same inclusion.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
edges = np.array([0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1])
for name, world in worlds.items():
    inclusion = world["inclusion"].ravel()
    there, stated = calibration_curve(world["codes"].ravel() != 0, inclusion, n_bins=10)
    left.plot(stated, there, "o-", label=name)

    inside = np.abs(world["codes"] - world["mean"]) <= 2 * world["std"]
    bins = np.digitize(inclusion, edges[1:-1])
    counts = np.bincount(bins, minlength=len(edges) - 1)
    coverage = np.bincount(bins, weights=inside.ravel(), minlength=len(edges) - 1) / counts
    right.plot(np.arange(len(counts)), coverage, "o-", label=name)
    surely = inclusion > 0.98
    print(
        f"{name}: {inside.mean():.1%} of all true codes lie within two standard deviations, "
        f"{inside.ravel()[surely].mean():.1%} of those with an inclusion above 0.98"
    )
left.plot([0, 1], [0, 1], "k--", linewidth=0.8, label="calibrated")
left.set(xlabel="stated probability", ylabel="share that is there", title="Is the code there?")
left.legend()
right.axhline(0.95, color="black", linestyle="--", linewidth=0.8)
labels = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
right.set_xticks(np.arange(len(labels)), labels, rotation=30, ha="right")
right.set(ylim=(0, 1.02), xlabel="inclusion", ylabel="share within two standard deviations")
right.set_title("Is the value within its error bar?")
right.legend()
plt.show()

# %%
# Where atoms are few, stated probabilities are about right, and so are error bars. With more of
# them the posterior is overconfident, already where there are as many as dimensions and more so
# beyond: of the codes that it is sure of, some are not there, and too many values lie outside of
# their bars. The share over all codes does not show it: most of them are zero, and known to be.
#
# That is what this kind of posterior does. Its codes are independent of each other ("mean field").
# Where two sets of atoms explain a row, it settles for one of them and does not mention the other;
# nor does it know that the dictionary itself was learned, with errors of its own. There, read
# inclusion as an order: on the whole, the higher it is, the more often a code is there. Before you
# rely on the numbers, look at curves like these for rows of
# :func:`~sklearn_vsc.datasets.make_sparse_coded` with as many atoms, features and codes that are on
# as your own data have, and as much noise.
