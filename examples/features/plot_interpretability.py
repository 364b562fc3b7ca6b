"""
Interpretable features of embeddings, with error bars
=====================================================

An embedding packs what a text is about into a few dozen numbers, none of which means anything by
itself. A sparse autoencoder unpacks them: it learns more features than there are dimensions, of
which only some are on at a time, and these can often be named. :class:`~sklearn_vsc.ThresholdedVSC`
is a sparse autoencoder with error bars: for each feature of each text it says how probable it is
that the feature is there at all, how strong, and how uncertain that is.

The texts here are the docstrings of NumPy, SciPy and scikit-learn: everybody who reads this page
knows what they are about. What is found depends a little on the versions that are installed. In
place of embeddings there may be any matrix of activations, such as those of a layer of a network:
one row for each input, one column for each unit.
"""

# %%
# Texts and their embeddings
# --------------------------
#
# Each public function or class is a text, and its module is a label that the learner never sees.

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
texts = {}  # of each docstring, the first function that has it
for module_name in MODULES:
    module = importlib.import_module(module_name)
    for name in sorted(module.__all__):
        thing = vars(module).get(name)
        if callable(thing) and len(text := inspect.getdoc(thing) or "") > 300:
            texts.setdefault(text, f"{module_name}.{name}")
names = np.array(list(texts.values()))
modules = np.array([name.rpartition(".")[0] for name in names])

# %%
# Their embeddings are by latent semantic analysis: word frequencies, and of these 64 singular
# directions.

vectorizer = TfidfVectorizer(
    sublinear_tf=True, min_df=5, max_df=0.2, stop_words="english", token_pattern=r"[a-zA-Z]{3,}"
)
svd = TruncatedSVD(64, random_state=0)
embeddings = normalize(svd.fit_transform(vectorizer.fit_transform(texts)))
words = vectorizer.get_feature_names_out()
print(f"{len(names)} texts, {len(words)} words, embeddings of {embeddings.shape[1]} numbers")

# %%
# Twice as many features as numbers
# ---------------------------------
#
# `density` is the share of features that are on in a text. An atom of the dictionary is a direction
# in the space of embeddings; the singular directions turn it into weights of words, which name it.
# An atom may be learned with either sign: here the one that is more used is called positive.

model = ThresholdedVSC(128, density=0.05, max_iter=20, learning_rate_init=4e-3, random_state=0).fit(
    embeddings
)
codes = model.transform(embeddings)
signs = np.sign(codes.sum(axis=0))
codes, atoms = codes * signs, model.components_ * signs[:, None]
word_weights = atoms @ svd.components_
usage = np.sum(codes > 0, axis=0)
print(f"{np.mean(codes != 0):.1%} of the codes are not zero; {model.n_dead_} atoms are never used")

# %%
# How large the codes are, how often each feature is used, and how sure the posterior is of what is
# there: most probabilities are near zero or near one.

CodeDisplay.from_estimator(model, embeddings)
plt.show()


# %%
# What the features are
# ---------------------
#
# Every sixth of the features, from the most used ones on, with its heaviest words; below, the texts
# in which it is strongest. Nothing was chosen by hand.

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(2, 4, figsize=(15, 7.2), layout="constrained")
for ax, feature in zip(axes.flat, np.argsort(-usage)[::6], strict=False):
    heaviest = np.argsort(-word_weights[feature])[:7]
    ax.barh(words[heaviest], word_weights[feature, heaviest])
    ax.invert_yaxis()
    ax.set_xticks([])
    ax.set_title(f"on in {usage[feature]} texts", fontsize=10)
    strongest = np.argsort(-codes[:, feature])[:4]
    ax.set_xlabel("\n".join(names[strongest]), fontsize=8)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
plt.show()

# %%
# One text, with error bars
# -------------------------
#
# A sparse autoencoder gives a list of numbers for a text. A posterior also says which of them to
# believe: here for a class that the reader may know, the eight features that are most probably
# there. On the left the probability that a feature is there, on the right how strong it is, with
# two standard deviations. A strength below zero takes off what the other features say too much. How
# far such probabilities can be trusted is counted in another example, "How sure is a code?".


def name_of(feature):
    """Return the three words of largest weight."""
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
left.set(xlim=(0, 1), xlabel="probability that it is there")
right.errorbar(mean[shown], rows, xerr=2 * std[shown], fmt="o", capsize=3)
right.axvline(0, color="black", linewidth=0.5)
right.set(xlabel="strength")
figure.suptitle(f"Features of the docstring of {names[text[0]]}")
plt.show()

# %%
# Do they mean what they seem to?
# -------------------------------
#
# The module of a function was never shown. For each module, the largest point-biserial correlation
# (:func:`~sklearn_vsc.metrics.attribute_correlation`) that any single feature has with it, beside
# the largest of any single number of the embedding. There are twice as many features to take the
# largest of; so as many random directions of the embedding are there too.

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
# For most modules there is one feature that tells it from the rest, where the embedding spreads it
# over many numbers. Some large modules are exceptions: they hold functions of many kinds, and
# features are about the kinds. So are the smallest, with too few texts for a feature of their own.
