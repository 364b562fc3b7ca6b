"""
Which programmes made these counts?
===================================

Single-cell RNA sequencing counts molecules: each row is a cell, each column a gene. Cells run a few
*programmes*, each of which multiplies the rates of some genes. Counts are small and mostly zero,
they vary more than Poisson counts, and some cells are sequenced ten times as deeply as others. Can
the programmes be found? On simulated cells it can be said how well. :doc:`/guide/counts` has the
likelihoods for counts and what `exposure` is.
"""

# %%
# Simulated cells
# ---------------
#
# Five programmes, each of which multiplies the rates of about a seventh of 80 genes. A cell runs
# each programme with a probability of a quarter. Its depth, by which all its rates are multiplied,
# is log-normal, and counts are negative binomial with a variance of :math:`\mu + \mu^2 / 2`.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import NMF, PCA

from sklearn_vsc import SparseVAE
from sklearn_vsc.likelihoods import NegativeBinomialLikelihood
from sklearn_vsc.metrics import atom_recovery

N_CELLS, N_GENES, N_PROGRAMMES, INVERSE_DISPERSION = 2500, 80, 5, 2.0

rng = np.random.default_rng(0)
shape = N_PROGRAMMES, N_GENES
programmes = rng.uniform(0.8, 1.6, shape) * (rng.random(shape) < 0.15)
shape = N_CELLS, N_PROGRAMMES
activity = rng.gamma(2.0, 0.6, shape) * (rng.random(shape) < 0.25)
log_rates = rng.normal(-1.5, 1.0, N_GENES) + activity @ programmes
depth = np.exp(0.8 * rng.normal(size=(N_CELLS, 1)))
noise = rng.gamma(INVERSE_DISPERSION, 1 / INVERSE_DISPERSION, log_rates.shape)
X = rng.poisson(depth * np.exp(log_rates) * noise)
X = X[X.sum(axis=1) > 0]
totals = X.sum(axis=1)
print(f"{np.mean(X == 0):.0%} of the counts are zero; the largest is {X.max()}")
low, high = np.quantile(totals, [0.1, 0.9])
print(f"counts in a cell: {low:.0f} to {high:.0f} (10% and 90% quantile)")

# %%
# A model of counts
# -----------------
#
# A linear decoder gives log rates, as in the simulation, and codes can be zero. The depth of a cell
# is unknown: its row sum says much about it, but depends on the programmes too.
# ``exposure='learned'`` multiplies the rates of a cell by a power of its relative row sum.

X_train, X_new = X[:2000], X[2000:]
model = SparseVAE(
    N_PROGRAMMES,
    prior="spike_slab",
    density=0.25,
    decoder="linear",
    likelihood=NegativeBinomialLikelihood(exposure="learned"),
    hidden_layer_sizes=(64,),
    max_iter=25,
    batch_size=64,
    learning_rate_init=0.02,
    random_state=0,
).fit(X_train)
likelihood = model.module_.likelihood
print(f"score of new cells, given their size factors: {model.score(X_new):.1f} nats")
print(f"rates grow with the row sum to the power of {likelihood.exponent.item():.2f}")
found = np.median(likelihood.inverse_dispersion.detach().numpy())
print(f"inverse dispersion: median {found:.1f}, in truth {INVERSE_DISPERSION:.1f}")

# %%
# Beside NMF and PCA
# ------------------
#
# The usual way divides counts by row sums, takes :math:`\log(1 + x)` and factorises that. A
# programme raises the row sum as well, so that all other genes seem to fall by the same amount: for
# all methods, the median is subtracted from each atom before it is compared with programmes. The
# measure is the absolute cosine of each programme and the atom matched to it.

relative = X_train / totals[:2000, None] * totals.mean()
logs = np.log1p(relative)
atoms = {
    "NMF of relative counts": NMF(N_PROGRAMMES, init="nndsvda", max_iter=400).fit(relative),
    "PCA of log(1 + x)": PCA(N_PROGRAMMES).fit(logs),
    "NMF of log(1 + x)": NMF(N_PROGRAMMES, init="nndsvda", max_iter=400).fit(logs),
    "SparseVAE of counts": model,
}
matched, cosines = {}, {}
for name, fitted in atoms.items():
    centred = fitted.components_ - np.median(fitted.components_, axis=1, keepdims=True)
    recovery = atom_recovery(centred, programmes)
    cosines[name] = recovery.cosines
    best = centred[recovery.matches]
    signs = np.sign(np.sum(best * programmes, axis=1, keepdims=True))
    matched[name] = signs * best / np.linalg.norm(best, axis=1, keepdims=True)
    print(f"{name}: mean cosine {recovery.mean_cosine:.2f}, lowest {recovery.cosines.min():.2f}")

# %%
# Programmes on top, and below each method's atom that was matched to it. Genes are sorted by the
# programme that they belong to most; those on the right belong to none.

strongest = np.where(programmes.any(axis=0), programmes.argmax(axis=0), N_PROGRAMMES)
order = np.lexsort((-programmes.max(axis=0), strongest))
truth = programmes / np.linalg.norm(programmes, axis=1, keepdims=True)
panels = {"simulated programmes": truth} | matched
figure, axes = plt.subplots(len(panels), 1, figsize=(9, 8), sharex=True, layout="constrained")
for axis, (name, rows) in zip(axes, panels.items(), strict=True):
    image = axis.imshow(rows[:, order], aspect="auto", cmap="RdBu_r", vmin=-0.5, vmax=0.5)
    title = name if name not in cosines else f"{name}: mean cosine {cosines[name].mean():.2f}"
    axis.set(title=title, yticks=range(N_PROGRAMMES), ylabel="programme")
axes[-1].set_xlabel("gene")
figure.colorbar(image, ax=axes, label="weight in an atom of length 1", shrink=0.5)
plt.show()

# %%
# The model of counts finds all five programmes; each of the others misses one. In relative counts a
# zero is a zero, whether the cell was sequenced deeply or not; the likelihood of counts knows the
# difference.
