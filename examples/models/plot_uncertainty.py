"""
How sure is a code?
===================

For each code, a posterior gives the probability that the code is non-zero (`inclusion`), its
expected value (`mean`), and its uncertainty (`std`). Can these be trusted, that is, are they
calibrated? Data generated from known codes answer the question. Of the codes with a stated
probability of 70%, seven in ten should be non-zero, and 95% of the true values should lie within
two standard deviations of the mean.
"""

# %%
# Three data sets with known codes
# --------------------------------
#
# In each data set, every atom is present in a row with a probability of one tenth, in 24
# dimensions, with noise. The first data set has half as many atoms as dimensions, so they are easy
# to distinguish. The second has as many atoms as dimensions, and the third twice as many, so
# several sets of atoms may explain a row about equally well.

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from sklearn.calibration import calibration_curve

from sklearn_vsc import ThresholdedVSC
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.metrics import atom_recovery

N_FEATURES, N_TRAIN, N_TEST = 24, 2000, 2000


def fit_and_infer(n_components):
    """Fit to rows with known codes; return the true codes and the posterior of test rows."""
    X, dictionary, codes = make_sparse_coded(
        N_TRAIN + N_TEST, n_components, N_FEATURES, noise=0.15, random_state=0
    )
    model = ThresholdedVSC(n_components, density=0.1, noise_variance="learned", random_state=0).fit(
        X[:N_TRAIN]
    )

    # The order, sign and length of learned atoms are arbitrary; map codes to the true atoms.
    recovery = atom_recovery(model.components_, dictionary, threshold=0.95)
    print(
        f"{n_components} atoms: {recovery.recovered:.0%} recovered, noise variance "
        f"{model.noise_variance_:.4f} (true: {0.15**2:.4f})"
    )
    posterior = model.posterior(X[N_TRAIN:])
    scale = np.sum(model.components_[recovery.matches] * dictionary, axis=1)
    return {
        "codes": codes[N_TRAIN:],
        "mean": posterior.mean[:, recovery.matches] * scale,
        "std": posterior.std[:, recovery.matches] * np.abs(scale),
        "inclusion": posterior.inclusion[:, recovery.matches],
    }


results = {f"{n_components} atoms": fit_and_infer(n_components) for n_components in (12, 24, 48)}

# %%
# One row
# -------
#
# Bars show the posterior probability that a code is non-zero, dots its mean with error bars of two
# standard deviations, and crosses the true value. The row comes from the first, easiest data set:
# the first row with exactly two codes that are almost certainly active and some uncertain ones.

result = results["12 atoms"]
uncertain = (result["inclusion"] > 0.2) & (result["inclusion"] < 0.8)
row = np.argmax(uncertain.any(axis=1) & (np.sum(result["inclusion"] > 0.8, axis=1) == 2))
atoms = np.arange(12)
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(9, 4.8), sharex=True, height_ratios=(1, 2), layout="constrained"
)
top.bar(atoms, result["inclusion"][row], color="tab:orange")
top.set(ylim=(0, 1), ylabel="inclusion", title="The posterior of one row, and the truth")
bottom.errorbar(
    atoms, result["mean"][row], 2 * result["std"][row], fmt="o", markersize=4, capsize=3,
    label="mean and two standard deviations",
)  # fmt: skip
bottom.plot(atoms, result["codes"][row], "kx", label="true code")
bottom.axhline(0, color="black", linewidth=0.5)
bottom.set(xlabel="atom", ylabel="code")
bottom.legend()
plt.show()

# %%
# All rows
# --------
#
# Left: a calibration curve (reliability diagram). Codes are grouped into bins by their inclusion,
# and the curve shows the share in each bin that is really non-zero. Right: the share of true values
# within two standard deviations of the mean, for codes of similar inclusion.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
edges = np.array([0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1])
for name, result in results.items():
    inclusion = result["inclusion"].ravel()
    observed, stated = calibration_curve(result["codes"].ravel() != 0, inclusion, n_bins=10)
    left.plot(stated, observed, "o-", label=name)

    inside = np.abs(result["codes"] - result["mean"]) <= 2 * result["std"]
    bins = np.digitize(inclusion, edges[1:-1])
    counts = np.bincount(bins, minlength=len(edges) - 1)
    coverage = np.bincount(bins, weights=inside.ravel(), minlength=len(edges) - 1) / counts
    right.plot(np.arange(len(counts)), coverage, "o-", label=name)
    certain = inclusion > 0.98
    print(
        f"{name}: {inside.mean():.1%} of all true codes lie within two standard deviations, "
        f"{inside.ravel()[certain].mean():.1%} of those with an inclusion above 0.98"
    )
left.plot([0, 1], [0, 1], "k--", linewidth=0.8, label="calibrated")
left.set(xlabel="stated probability", ylabel="share non-zero", title="Is the code non-zero?")
left.legend()
right.axhline(0.95, color="black", linestyle="--", linewidth=0.8)
labels = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
right.set_xticks(np.arange(len(labels)), labels, rotation=30, ha="right")
right.set(ylim=(0, 1.02), xlabel="inclusion", ylabel="share within two standard deviations")
right.set_title("Is the value within its error bar?")
right.legend()
plt.show()

# %%
# With few atoms, the stated probabilities are about right, and so are the error bars. With as many
# atoms as dimensions the posterior is overconfident, and with more atoms even more so: some of the
# codes that it is certain about are zero, and too many values lie outside their error bars. The
# share over all codes does not show this, because most codes are zero and known to be zero.
#
# This is typical of this kind of posterior. Its codes are independent of each other ("mean field").
# If two sets of atoms explain a row, it chooses one of them and ignores the other. It also ignores
# that the dictionary itself was learned and has errors. In this situation, use inclusion only as a
# ranking: on the whole, the higher it is, the more often a code is non-zero. Before you rely on the
# numbers, look at curves like these for rows from :func:`~sklearn_vsc.datasets.make_sparse_coded`
# with the same number of atoms, features and active codes as your data, and the same amount of
# noise.
