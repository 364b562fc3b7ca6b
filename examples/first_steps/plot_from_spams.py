"""
Coming from SPAMS
=================

SPAMS is the C++ toolbox of Mairal and others, with Python bindings: `spams.trainDL` learns a
dictionary, `spams.lasso` codes with it. :class:`~sklearn_vsc.FISTADictionaryLearner` solves the
same problem. This page says which parameter became which, and checks the solution by the conditions
that any solution of the lasso must meet. SPAMS is not needed to run it.
"""

# %%
# What became what
# ----------------
#
# A signal is a *column* in SPAMS, in Fortran order, and a *row* here: `X` of shape
# (n_samples, n_features) is SPAMS' ``np.asfortranarray(X.T)``. Dictionary and codes are transposed
# in the same way.
#
# .. list-table::
#    :header-rows: 1
#    :widths: 42 58
#
#    * - SPAMS
#      - here
#    * - ``D = spams.trainDL(X, K=..., lambda1=..., mode=2)``
#      - ``FISTADictionaryLearner(n_components=..., alpha=...).fit(X)``
#    * - ``D``, of shape (n_features, K)
#      - ``model.components_.T``
#    * - ``spams.lasso(X, D=D, lambda1=..., mode=2)``, a CSC matrix of shape (K, n)
#      - ``model.transform(X).T``; with ``sparse_output=True`` a CSR matrix, whose transpose is CSC
#    * - ``lambda1`` of ``mode=2``
#      - ``alpha``, the same number: both minimise
#        :math:`\tfrac12 \lVert x - D z \rVert^2 + \lambda \lVert z \rVert_1`
#    * - another ``lambda1`` in ``spams.lasso`` than in ``spams.trainDL``
#      - ``transform_alpha``
#    * - ``mode=0`` and ``mode=1``: a limit on the l1 norm, or on the error
#      - not there: take ``mode=2``, with ``alpha`` chosen by ``score``
#    * - ``spams.omp(X, D, L=...)``
#      - ``transform_algorithm="omp", transform_n_nonzero_coefs=...``
#    * - ``lambda2``, the elastic net
#      - not there
#    * - ``posAlpha=True`` (``pos=True`` in ``spams.lasso``), ``posD=True``
#      - ``positive_code=True``, ``positive_dict=True``
#    * - ``modeD=0``, atoms of norm at most one
#      - atoms of norm one; other ``modeD`` are not there
#    * - ``D=...``, a dictionary to start from
#      - ``dict_init``, transposed
#    * - ``batchsize``
#      - ``batch_size``; None, the default, keeps statistics of all rows, which is faster as long as
#        the rows fit in memory
#    * - ``iter``, mini-batches (below zero: seconds)
#      - ``max_iter``, passes over all rows
#    * - ``return_model=True``, ``model=...``: go on learning
#      - ``partial_fit``
#    * - ``spams.lassoMask(X, D, mask)``
#      - NaN in ``X``, in ``fit`` too
#    * - ``numThreads``
#      - ``torch.set_num_threads``
#
# In SPAMS one scales and centres rows oneself; so here too. `spams.trainDL` draws its first atoms
# from the rows; so does `fit`, by `random_state`.

# %%
# The same, as a program
# ----------------------
#
# With SPAMS it would be
#
# .. code-block:: python
#
#     signals = np.asfortranarray(X.T, dtype=np.float64)
#     D = spams.trainDL(signals, K=64, lambda1=0.5, mode=2, batchsize=256, iter=1000)
#     alpha = spams.lasso(signals, D=D, lambda1=0.5, mode=2)  # CSC, (64, 3000)
#
# and here it is

import matplotlib.pyplot as plt
import numpy as np

from sklearn_vsc import FISTADictionaryLearner
from sklearn_vsc.datasets import load_natural_patches
from sklearn_vsc.inspection import DictionaryDisplay

ALPHA = 0.5
X = load_natural_patches(3000, patch_size=8, random_state=0, dtype=np.float64)
model = FISTADictionaryLearner(
    n_components=64, alpha=ALPHA, max_iter=30, sparse_output=True, random_state=0
).fit(X)
codes = model.transform(X)  # CSR, (3000, 64)
print(f"{type(codes).__name__} of shape {codes.shape}, {codes.nnz / np.prod(codes.shape):.1%} kept")

# %%
# Is it solved?
# -------------
#
# Nobody needs to be believed. With :math:`r = x - z V` for the residual of a row, a code :math:`z`
# solves the lasso if and only if every atom correlates with the residual by at most
# :math:`\alpha`, and by exactly :math:`\alpha` times the sign of its code where that is not zero:
#
# .. math::
#
#    |v_k^\top r| \le \alpha, \qquad v_k^\top r = \alpha \operatorname{sign}(z_k)
#    \text{ where } z_k \ne 0 .
#
# And the duality gap bounds how far the objective of a row is from its minimum: scaled down until
# no atom exceeds :math:`\alpha`, the residual is a point :math:`\theta` of the dual problem,
# :math:`\max_\theta \tfrac12 \lVert x \rVert^2 - \tfrac12 \lVert x - \theta \rVert^2`. Rows here
# stop at a gap of `transform_tol` times their objective; SPAMS' LARS stops where its path ends.

codes = codes.toarray()
residuals = X - codes @ model.components_
correlations = residuals @ model.components_.T

largest = np.abs(correlations).max(axis=1, keepdims=True)
dual_points = residuals * np.minimum(1, ALPHA / largest)
primal = 0.5 * np.sum(residuals**2, axis=1) + ALPHA * np.abs(codes).sum(axis=1)
dual = 0.5 * np.sum(X**2, axis=1) - 0.5 * np.sum((X - dual_points) ** 2, axis=1)
gaps = (primal - dual) / primal
print(f"largest relative duality gap of a row: {gaps.max():.1e}")
print(f"largest |correlation| / alpha: {largest.max() / ALPHA:.6f}")

# %%
# On the left the dictionary, most used atoms first. In the middle a dot for each code of the first
# rows: codes that are not zero sit on the two dashed lines, the others between them. On the right
# the duality gaps of all rows: what is at the left border is zero to rounding.

figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
DictionaryDisplay.from_estimator(model, ax=axes[0])
axes[0].set_title("model.components_")

shown = slice(300)
axes[1].plot(codes[shown].ravel(), correlations[shown].ravel() / ALPHA, ".", markersize=2)
for sign in (-1, 1):
    axes[1].axhline(sign, color="black", linestyle="--", linewidth=0.8)
axes[1].set(
    xlabel="code", ylabel=r"correlation with the residual / $\alpha$", title="optimality conditions"
)

bins = np.logspace(-16, -4, 49)
axes[2].hist(gaps.clip(bins[0]), bins=bins)
axes[2].axvline(1e-6, color="black", linestyle="--", linewidth=0.8, label="transform_tol")
axes[2].set(xscale="log", xlabel="duality gap / objective", ylabel="rows", title="duality gaps")
axes[2].legend(loc="upper center")
plt.show()

# %%
# Speed beside SPAMS is measured, not claimed: :doc:`/guide/dictionary` has tables of both, in
# one run, and the commands that print them.
