"""
Moving from SPAMS
=================

SPAMS is the C++ toolbox of Mairal and others, with Python bindings: `spams.trainDL` learns a
dictionary, and `spams.lasso` computes codes with it. :class:`~sklearn_vsc.FISTADictionaryLearner`
solves the same problem. This page shows which parameters correspond, and checks the solution with
the conditions that any solution of the lasso must satisfy. You do not need SPAMS to run it.
"""

# %%
# Corresponding parameters
# ------------------------
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
#    * - a ``lambda1`` in ``spams.lasso`` that differs from the one in ``spams.trainDL``
#      - ``transform_alpha``
#    * - ``mode=0`` and ``mode=1``: a limit on the l1 norm, or on the error
#      - not available: use ``mode=2``, with ``alpha`` chosen by ``score``
#    * - ``spams.omp(X, D, L=...)``
#      - ``transform_algorithm="omp", transform_n_nonzero_coefs=...``
#    * - ``lambda2``, the elastic net
#      - not available
#    * - ``posAlpha=True`` (``pos=True`` in ``spams.lasso``), ``posD=True``
#      - ``positive_code=True``, ``positive_dict=True``
#    * - ``modeD=0``, atoms of norm at most one
#      - atoms of norm one; other values of ``modeD`` are not available
#    * - ``D=...``, a dictionary to start from
#      - ``dict_init``, transposed
#    * - ``batchsize``
#      - ``batch_size``; None, the default, keeps statistics of all rows, which is faster as long as
#        the rows fit in memory
#    * - ``iter``, mini-batches (below zero: seconds)
#      - ``max_iter``, passes over all rows
#    * - ``return_model=True``, ``model=...``: continue learning
#      - ``partial_fit``
#    * - ``spams.lassoMask(X, D, mask)``
#      - NaN in ``X``, in ``fit`` too
#    * - ``numThreads``
#      - ``torch.set_num_threads``
#
# As in SPAMS, you scale and centre the rows yourself. `spams.trainDL` draws its initial atoms from
# the rows; so does `fit`, using `random_state`.

# %%
# The same program in both libraries
# ----------------------------------
#
# With SPAMS, the program would be
#
# .. code-block:: python
#
#     signals = np.asfortranarray(X.T, dtype=np.float64)
#     D = spams.trainDL(signals, K=64, lambda1=0.5, mode=2, batchsize=256, iter=1000)
#     alpha = spams.lasso(signals, D=D, lambda1=0.5, mode=2)  # CSC, (64, 3000)
#
# and with this library it is

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
density = codes.nnz / np.prod(codes.shape)
print(f"{type(codes).__name__} of shape {codes.shape}, {density:.1%} of the codes are non-zero")

# %%
# Is it solved?
# -------------
#
# You can check this yourself. Let :math:`r = x - z V` be the residual of a row. A code :math:`z`
# solves the lasso if and only if the correlation of every atom with the residual is at most
# :math:`\alpha` in magnitude, and equals :math:`\alpha` times the sign of its code where the code
# is non-zero:
#
# .. math::
#
#    |v_k^\top r| \le \alpha, \qquad v_k^\top r = \alpha \operatorname{sign}(z_k)
#    \text{ where } z_k \ne 0 .
#
# The duality gap bounds how far the objective of a row is from its minimum. Scaled down until no
# correlation exceeds :math:`\alpha`, the residual is a feasible point :math:`\theta` of the dual
# problem, :math:`\max_\theta \tfrac12 \lVert x \rVert^2 - \tfrac12 \lVert x - \theta \rVert^2`. The
# solver here stops for a row at a gap of `transform_tol` times its objective; LARS in SPAMS stops
# at the end of its path.

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
# Left: the dictionary, most used atoms first. Middle: one dot for each code of the first rows.
# Non-zero codes lie on the two dashed lines, zero codes between them. Right: the duality gaps of
# all rows. Gaps at the left border are zero up to rounding.

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
# :doc:`/guide/dictionary` compares the speed of this library and of SPAMS, measured in the same
# run, and gives the commands that print the tables.
