"""
A sparse autoencoder for embeddings, with error bars
====================================================

An embedding packs the content of a text into a few dozen numbers, none of which has a meaning by
itself. A sparse autoencoder unpacks them into interpretable features: it learns more features than
there are dimensions, only a few of which are active at a time, and these can often be named.
:class:`~sklearn_vsc.ThresholdedVSC` is a sparse autoencoder with error bars. For each feature of
each text it gives the probability that the feature is present, its strength, and the uncertainty of
the strength.

The texts in this example are the docstrings of NumPy, SciPy and scikit-learn, whose content is
familiar to readers of this page. The results depend slightly on the installed versions. Instead of
embeddings you can use any matrix of activations, such as those of a layer of a network: one row per
input, one column per unit.
"""

# %%
# Texts and their embeddings
# --------------------------
#
# The docstring of each public function or class is a text. Its module is a label that the model
# never sees.

import importlib
import inspect

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import label_binarize, normalize

from sklearn_vsc import ThresholdedVSC
from sklearn_vsc.inspection import CodeDisplay
from sklearn_vsc.metrics import attribute_correlation

MODULES = [
    "numpy", "numpy.fft", "numpy.linalg", "numpy.random", "scipy.cluster.hierarchy",
    "scipy.fft", "scipy.integrate", "scipy.interpolate", "scipy.linalg", "scipy.ndimage",
    "scipy.optimize", "scipy.signal", "scipy.sparse", "scipy.sparse.linalg", "scipy.spatial",
    "scipy.spatial.distance", "scipy.special", "scipy.stats", "sklearn.cluster",
    "sklearn.covariance", "sklearn.datasets", "sklearn.decomposition", "sklearn.ensemble",
    "sklearn.feature_extraction", "sklearn.feature_selection", "sklearn.gaussian_process",
    "sklearn.linear_model", "sklearn.manifold", "sklearn.metrics", "sklearn.mixture",
    "sklearn.model_selection", "sklearn.neighbors", "sklearn.preprocessing", "sklearn.svm",
    "sklearn.tree",
]  # fmt: skip
texts = {}  # docstring -> the first function that has it
for module_name in MODULES:
    module = importlib.import_module(module_name)
    for name in sorted(module.__all__):
        member = vars(module).get(name)
        if callable(member) and len(text := inspect.getdoc(member) or "") > 300:
            texts.setdefault(text, f"{module_name}.{name}")
names = np.array(list(texts.values()))
modules = np.array([name.rpartition(".")[0] for name in names])

# %%
# The embeddings come from latent semantic analysis: TF-IDF word frequencies, projected to 64
# singular directions.

vectorizer = TfidfVectorizer(
    sublinear_tf=True, min_df=5, max_df=0.2, stop_words="english", token_pattern=r"[a-zA-Z]{3,}"
)
svd = TruncatedSVD(64, random_state=0)
embeddings = normalize(svd.fit_transform(vectorizer.fit_transform(texts)))
words = vectorizer.get_feature_names_out()
print(f"{len(names)} texts, {len(words)} words, embeddings of {embeddings.shape[1]} dimensions")

# %%
# Twice as many features as dimensions
# ------------------------------------
#
# `density` is the share of features that are active in a text. An atom of the dictionary is a
# direction in the embedding space. The singular directions map it to weights of words, which name
# it. The sign of an atom is arbitrary; here the more frequent sign of its code is made positive.

model = ThresholdedVSC(128, density=0.05, random_state=0).fit(embeddings)
codes = model.transform(embeddings)
signs = np.sign(codes.sum(axis=0))
codes, atoms = codes * signs, model.components_ * signs[:, None]
word_weights = atoms @ svd.components_
usage = np.sum(codes > 0, axis=0)
print(f"{np.mean(codes != 0):.1%} of the codes are non-zero; {model.n_dead_} atoms are never used")

# %%
# The figure shows the values of the codes, how often each feature is used, and the posterior
# probabilities that features are present. Most probabilities are near zero or near one.

CodeDisplay.from_estimator(model, embeddings)
plt.show()


# %%
# What the features mean
# ----------------------
#
# The figure shows every sixth feature in order of use, starting with the most used one, with the
# words of largest weight. Below each are the texts in which the feature is strongest. Nothing was
# chosen by hand.

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(2, 4, figsize=(15, 7.2), layout="constrained")
for ax, feature in zip(axes.flat, np.argsort(-usage)[::6], strict=False):
    heaviest = np.argsort(-word_weights[feature])[:7]
    ax.barh(words[heaviest], word_weights[feature, heaviest])
    ax.invert_yaxis()
    ax.set_xticks([])
    ax.set_title(f"active in {usage[feature]} texts", fontsize=10)
    strongest = np.argsort(-codes[:, feature])[:4]
    ax.set_xlabel("\n".join(names[strongest]), fontsize=8)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
plt.show()

# %%
# One text, with error bars
# -------------------------
#
# A sparse autoencoder gives a list of numbers for a text. A posterior also says which of them to
# trust. The figure shows the eight most probable features of a class that you may know. Left: the
# probability that a feature is present. Right: its strength, with error bars of two standard
# deviations. A negative strength corrects an excess of the other features. Another example, "How
# sure is a code?", measures how far such probabilities can be trusted.


def name_of(feature):
    """Return the three words of largest weight as the name of a feature."""
    return ", ".join(words[np.argsort(-word_weights[feature])[:3]])


text = np.flatnonzero(names == "sklearn.decomposition.DictionaryLearning")
posterior = model.posterior(embeddings[text])
inclusion, std = posterior.inclusion[0], posterior.std[0]
mean = posterior.mean[0] * signs
shown = np.argsort(-np.where(usage > 0, inclusion, 0))[:8]
figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 3.6), sharey=True, width_ratios=(1, 1.4), layout="constrained"
)
rows = np.arange(len(shown))
left.barh(rows, inclusion[shown], color="tab:orange")
left.set_yticks(rows, [name_of(feature) for feature in shown])
left.invert_yaxis()
left.set(xlim=(0, 1), xlabel="probability that it is present")
right.errorbar(mean[shown], rows, xerr=2 * std[shown], fmt="o", capsize=3)
right.axvline(0, color="black", linewidth=0.5)
right.set(xlabel="strength")
figure.suptitle(f"Features of the docstring of {names[text[0]]}")
plt.show()

# %%
# Do the features mean what they seem to?
# ---------------------------------------
#
# The model never saw the module of a function. For each module, we compute the largest
# point-biserial correlation (:func:`~sklearn_vsc.metrics.attribute_correlation`) of any single
# feature with it, and compare it with the largest correlation of any single dimension of the
# embedding. There are twice as many features as dimensions, which favours the features. We
# therefore also compare with the same number of random directions of the embedding.

labels = label_binarize(modules, classes=MODULES)
rng = np.random.default_rng(0)
coordinates = {
    "random directions": embeddings @ rng.normal(size=(64, 128)),
    "embedding": embeddings,
    "sparse features": codes,
}
correlations = {
    name: np.abs(attribute_correlation(columns, labels)).max(axis=1)
    for name, columns in coordinates.items()
}
for name, values in correlations.items():
    print(f"{name}: largest correlation with a module, median of modules: {np.median(values):.2f}")

rows = np.arange(len(MODULES))
order = np.argsort(correlations["sparse features"])
figure, ax = plt.subplots(figsize=(8, 7.5), layout="constrained")
for (name, values), color in zip(
    correlations.items(), ["lightgray", "dimgray", "tab:blue"], strict=True
):
    ax.plot(values[order], rows, "o", color=color, label=name)
ax.hlines(rows, 0, 1, color="lightgray", linewidth=0.4, zorder=0)
ax.set_yticks(rows, np.array(MODULES)[order])
ax.set(xlim=(0, 1), xlabel="largest correlation of one coordinate with the module")
ax.legend(loc="lower right")
plt.show()

# %%
# For most modules there is one feature that distinguishes it from the rest, while the embedding
# spreads this information over many dimensions. Some large modules are exceptions: they hold
# functions of many kinds, and features describe the kinds. The smallest modules are exceptions too,
# because they have too few texts for a separate feature.
