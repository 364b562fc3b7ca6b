"""Class docstrings: parameters in groups, shared entries in the same words.

scikit-learn's ``assert_docstring_consistency`` is not enough: it skips entries that one of the
classes lacks, compares whole descriptions, and in version 1.6 cannot ignore a type. Most of our
entries that differ do so in a default or in one sentence, and the rest must not diverge. So
classes are compared pair by pair and sentence by sentence.
"""

import inspect
import re
from itertools import combinations
from typing import NamedTuple

import pytest

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC

CLASSES = {"V": ThresholdedVSC, "S": SparseVAE, "C": SCVAE, "F": FISTADictionaryLearner}
GROUPS = ["Most used", "Model", "Training", "Inference", "Published settings", "Running"]

# Parameters whose group differs in one class, and why.
MOVED = {"n_draws": "SCVAE trains without draws: they are only used to choose a code"}


class Entry(NamedTuple):
    """A parameter or an attribute in a docstring."""

    type: str
    sentences: list[str]

    def without(self, what):
        """The entry without the sentences, type or default that may differ."""
        type_, _, default = self.type.partition(", default=")
        left = "type" in what or type_, "default" in what or default
        return *left, [s for s in self.sentences if not s.startswith(tuple(what))]


class Own(NamedTuple):
    """What may differ in an entry.

    ``camps`` names the classes by letter. Classes in the same word must agree; classes in
    different words may differ in ``what``: the openings of sentences, "type" (the text before the
    default) or "default".
    """

    camps: str
    what: tuple[str, ...]
    why: str

    def separates(self, one, other):
        places = [[key in camp for camp in self.camps.split()] for key in (one, other)]
        return all(map(any, places)) and places[0] != places[1]


OWN = {
    "n_components": [Own("VSC F", ("None:",), "dict_init sets the number of atoms")],
    "alpha": [
        Own(
            "C F",
            ("It is also", "Latent vectors", "It has the unit", "With ``alpha=0``", "See"),
            "SCVAE has a network before the codes; codes of the learner have the unit of X",
        )
    ],
    "prior": [
        Own(
            "V S",
            ("type", "A name stands", "With an object"),
            "other priors, and other parameters that describe them",
        )
    ],
    "density": [
        Own("V S", ("Used ",), "another parameter decides whether it applies"),
        Own(
            "VS F",
            (
                *("type", "default", "Prior", "'learned'", "'per_component'", "Both", "With a"),
                *("'auto'", "Share", "``alpha``", "Used"),
            ),
            "the lasso has no prior probability of a code",
        ),
    ],
    "encoder": [
        Own("V S C", ("'auto':",), "defaults were measured for each class"),
        Own("VS C", ("type", "'lista':", "A linear layer", "Residual"), "grids of latent vectors"),
    ],
    "decoder": [
        Own("V S", ("default",), "the published models"),
        Own(
            "VS C",
            ("type", "default", "Network", "A module", "'auto':"),
            "it decodes sums of atoms",
        ),
    ],
    "max_iter": [
        Own("V SC F", ("default",), "closed forms and the lasso learn at different speeds")
    ],
    "prior_scale": [Own("V S", ("It is the scale",), "SparseVAE has more priors")],
    "noise_variance": [
        Own(
            "VS C",
            (
                "type",
                "default",
                "'learned':",
                "'per_feature'",
                "An array",
                "The last",
                "A learned",
                "'auto':",
            ),
            "closed forms learn more",
        )
    ],
    "positive_code": [Own("VS F", ("Whether", "Needs"), "the prior has no negative codes")],
    "n_unrolled": [Own("VS C", ("Used by",), "SCVAE always unrolls")],
    "image_shape": [Own("VS C", ("No other", "With it"), "SCVAE takes images with their axes")],
    "gradient": [
        Own(
            "V S",
            (
                *("It does not apply", "It applies", "The others"),
                *("'gumbel_softmax'", "'straight_through'", "'subgradient'", "'reinforce'"),
            ),
            "thresholds and gates have other estimators",
        )
    ],
    "n_draws": [Own("VS C", ("Each training step", "Training decodes"), MOVED["n_draws"])],
    "objective": [Own("V S", ("Unbiased gradients",), "SparseVAE alone has such gradients")],
    "batch_size": [
        Own(
            "VSC F",
            ("type", "default", "'auto':", "What a mini", "None:"),
            "full batches by default",
        ),
        Own("VS CF", ("With ``solver",), "closed forms take larger batches"),
    ],
    "n_iter_no_change": [Own("VS C", ("With ``solver",), "closed forms stop by their own rule")],
    "learning_rate_init": [Own("VS C", ("default",), "measured for each class")],
    "tol": [
        Own("VSC F", ("Smallest", "A number", "With zero", "When ``max"), "different rules"),
        Own("VS C F", ("'auto':",), "different rules"),
        Own("VSF C", ("type", "default"), "closed forms and the lasso have a rule of their own"),
        Own("VS CF", ("With ``solver",), "closed forms"),
        Own("VS C", ("Smallest",), "closed forms"),
    ],
    "n_refine": [Own("V S", ("Sweeps need",), "each has its own gates")],
    "transform_method": [
        Own("V S C", ("'map'", "With ", "It then", "Other posteriors"), "each has its own rule"),
        Own("VS C", ("'mean':",), "the mean of SCVAE's posterior is its code"),
    ],
    "score_method": [Own("VC S", ("type", "'collapsed_elbo'", "It needs"), "Gaussian slabs")],
    "random_state": [Own("VSC F", ("The rows that",), "unused atoms are replaced")],
    "verbose": [Own("VSC F", ("The bar",), "skorch has its own bar")],
    "device": [Own("VSC F", ("'accelerate':",), "the learner does not share its rows")],
    "components_": [
        Own(
            "VSC F",
            ("Where the", "Its atoms", "With ``partial"),
            "other decoders; the learner's norm",
        ),
        Own("VSF C", ("It shows", "Codes on a grid"), "the atoms of SCVAE are not rows"),
    ],
    "component_usage_": [
        Own("VSC F", ("A row uses", "After an interrupted"), "counted during the fit")
    ],
    "noise_variance_": [
        Own("VSC F", ("NaN", "It is s2", "After"), "the lasso has one likelihood"),
        Own("VS CF", ("type",), "closed forms learn one for each feature"),
    ],
    "history_": [
        Own("VSC F", ("``loss``", "The other", "These values"), "different objectives"),
        Own("VS C F", ("The loss", "``log_likelihood``", "``kl`` is", "With"), "different parts"),
        Own("VS CF", ("``density``",), "the codes of the others are not random"),
        Own("V S CF", ("``kl`` belongs", "It is recorded"), "thresholds; priors without gates"),
    ],
}


def sections(key):
    """The text of a class docstring before its sections, and its sections by name."""
    text = inspect.getdoc(CLASSES[key])
    parts = re.split(r"^(\w[\w ]*)\n-+$", text, flags=re.MULTILINE)
    return parts[0], dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(key, section):
    """Entries of "Parameters" or "Attributes" in their order, by name."""
    text = sections(key)[1][section]
    found = {}
    # A name and a type at the margin, then an indented description.
    for match in re.finditer(r"^(\w+) : (.+)\n((?:(?:    .*)?(?:\n|\Z))+)", text, re.MULTILINE):
        name, type_, description = match.groups()
        assert name not in found, name
        found[name] = Entry(
            " ".join(type_.split()), re.split(r"(?<=\.) ", " ".join(description.split()))
        )
    n_at_margin = len(re.findall(r"^\S", text, re.MULTILINE))
    assert len(found) == n_at_margin, "a line at the margin is not an entry"
    return found


def groups(key):
    """Parameters of each group that is listed before the sections, by the name of the group."""
    items = re.findall(r"^\* \*\*(.+?)\*\*(.*?)\.$", sections(key)[0], re.MULTILINE | re.DOTALL)
    return {group: re.findall(r"``(\w+)``", names) for group, names in items}


def group_of_each(key):
    """The group of each parameter whose group is the same in all classes, in order."""
    listed = groups(key).items()
    return {name: group for group, names in listed for name in names if name not in MOVED}


def all_entries(key):
    return entries(key, "Parameters") | entries(key, "Attributes")


ENTRIES = {key: all_entries(key) for key in CLASSES}
SHARED = {
    name: [key for key in CLASSES if name in ENTRIES[key]]
    for name in dict.fromkeys(name for key in CLASSES for name in ENTRIES[key])
}
SHARED = {name: keys for name, keys in SHARED.items() if len(keys) > 1}
each_class = pytest.mark.parametrize("key", CLASSES)
each_pair = pytest.mark.parametrize(("one", "other"), list(combinations(CLASSES, 2)))


@each_class
def test_every_parameter_is_in_one_group_and_listed_in_its_order(key):
    listed = groups(key)
    names = [name for group in listed.values() for name in group]
    assert names == list(entries(key, "Parameters"))
    assert sorted(names) == sorted(CLASSES[key]().get_params())
    assert list(listed) == [group for group in GROUPS if group in listed]


@each_class
def test_every_entry_has_a_type_and_whole_sentences(key):
    for name, entry in ENTRIES[key].items():
        assert entry.type, name
        assert all(sentence.endswith(".") for sentence in entry.sentences), name


@each_pair
def test_groups_and_their_order_are_the_same_in_all_classes(one, other):
    group_of_one, group_of_other = group_of_each(one), group_of_each(other)
    shared = [name for name in group_of_one if name in group_of_other]
    assert shared == [name for name in group_of_other if name in group_of_one]
    assert [group_of_one[name] for name in shared] == [group_of_other[name] for name in shared]


@pytest.mark.parametrize("name", MOVED)
def test_moved_parameters_are_still_in_different_groups(name):
    found = {group for key in CLASSES for group, names in groups(key).items() if name in names}
    assert len(found) > 1


@pytest.mark.parametrize("name", SHARED)
def test_shared_entries_are_the_same(name):
    for one, other in combinations(SHARED[name], 2):
        what = [w for own in OWN.get(name, []) if own.separates(one, other) for w in own.what]
        assert ENTRIES[one][name].without(what) == ENTRIES[other][name].without(what)


@pytest.mark.parametrize(("name", "own"), [(name, own) for name in OWN for own in OWN[name]])
def test_every_exception_is_needed(name, own):
    """Everything that may differ does, and so does every pair of camps."""
    camps = own.camps.split()
    found = {key: ENTRIES[key][name] for camp in camps for key in camp}

    def part(key, what):
        type_, _, default = found[key].type.partition(", default=")
        if what in ("type", "default"):
            return type_ if what == "type" else default
        return [s for s in found[key].sentences if s.startswith(what)]

    for what in own.what:
        values = [part(key, what) for key in found]
        assert any(values) and any(value != values[0] for value in values), what
    for one, other in combinations([camp[0] for camp in camps], 2):
        assert [part(one, w) for w in own.what] != [part(other, w) for w in own.what], (one, other)
