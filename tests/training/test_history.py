"""What `history_` records of each epoch besides the loss: the parts of the loss, and sparsity."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from skorch.callbacks import Callback

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc._models.objectives import Objective
from sklearn_vsc.datasets import make_sparse_coded

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

X = make_sparse_coded(n_samples=110, n_components=8, noise=0.1, random_state=0)[0]
INCOMPLETE = X.copy()
INCOMPLETE[::3, 1] = np.nan
# The last batch of an epoch is smaller than the others.
TINY = {"max_iter": 2, "batch_size": 50, "random_state": 0}
SMALL = TINY | {"hidden_layer_sizes": (8,)}
DRAWS = {"encoder": "mlp", "n_draws": 3, "kl_weight": 0.5}

# Settings whose loss is kl_weight * kl - log_likelihood.
PLAIN = {
    "refined": ThresholdedVSC(8, kl_weight=0.5, **TINY),
    "exact": ThresholdedVSC(8, n_refine=0, encoder="mlp", kl_weight=0.5, **SMALL),
    "drawn": ThresholdedVSC(8, gradient="straight_through", **DRAWS, **SMALL),
    "drawn thresholds": ThresholdedVSC(
        8, prior="gaussian", threshold_prior="gamma", gradient="straight_through", **DRAWS, **SMALL
    ),
    "best draw": ThresholdedVSC(8, gradient="subgradient", objective="max_elbo", **DRAWS, **SMALL),
    "continuous": SparseVAE(8, kl_weight=0.5, **SMALL),
    "held out": SparseVAE(8, kl_weight=0.5, early_stopping=True, **SMALL),
    "cauchy": SparseVAE(
        8, prior="cauchy", posterior_family="gaussian", objective="max_elbo", **DRAWS, **SMALL
    ),
    "relaxed gates": SparseVAE(8, prior="spike_slab", gradient="gumbel_softmax", **DRAWS, **SMALL),
    "reinforce": SparseVAE(8, prior="spike_slab", gradient="reinforce", **DRAWS, **SMALL),
    "nvil": SparseVAE(8, prior="spike_slab", gradient="nvil", **DRAWS, **SMALL),
    "muprop": SparseVAE(8, prior="spike_slab", gradient="muprop", **DRAWS, **SMALL),
    "rebar": SparseVAE(8, prior="spike_slab", gradient="rebar", **DRAWS, **SMALL),
}


def column(model, name):
    return np.array([record[name] for record in model.history_])


@pytest.mark.parametrize("estimator", PLAIN.values(), ids=PLAIN)
def test_parts_of_a_bound_add_up_to_the_loss(estimator):
    model = estimator.fit(INCOMPLETE if estimator.n_draws == 1 else X)
    log_likelihood, kl = column(model, "log_likelihood"), column(model, "kl")
    scale = np.abs(log_likelihood) + np.abs(kl)
    assert (np.abs(column(model, "loss") - (0.5 * kl - log_likelihood)) < 1e-5 * scale).all()
    assert (kl > 0).all()
    sparse = isinstance(model, ThresholdedVSC) or model.prior == "spike_slab"
    assert ("density" in model.history_[0]) == sparse
    if sparse:
        assert ((column(model, "density") > 0) & (column(model, "density") < 1)).all()


def test_penalised_parts_add_up_to_the_loss():
    model = SCVAE(8, **SMALL).fit(INCOMPLETE)
    parts = column(model, "penalty") - column(model, "log_likelihood")
    assert_allclose(column(model, "loss"), parts, rtol=1e-5)
    assert "kl" not in model.history_[0]


@pytest.mark.parametrize("batch_size", [None, 30])
def test_parts_of_the_lasso_add_up_to_the_loss(batch_size):
    model = FISTADictionaryLearner(8, alpha=0.1, max_iter=4, batch_size=batch_size, random_state=0)
    model.fit(INCOMPLETE).partial_fit(X)
    assert len(model.history_) == model.n_iter_ > 1
    parts = column(model, "reconstruction") + column(model, "penalty")
    assert_allclose(column(model, "loss"), parts, rtol=1e-12)
    # The record is of codes of the same dictionary, solved less accurately than these.
    before = FISTADictionaryLearner(8, alpha=0.1, max_iter=3, random_state=0).fit(X)
    codes = before.transform(X)
    last = before.partial_fit(X).history_[-1]
    assert last["density"] == pytest.approx((codes != 0).mean(), abs=0.02)
    assert last["penalty"] == pytest.approx(0.1 * np.abs(codes).sum(1).mean(), rel=0.02)


def test_means_are_over_rows_and_not_over_batches():
    model = ThresholdedVSC(8, n_refine=0, encoder="mlp", **SMALL).fit(X)
    rows = model._units.to_model(X, torch.device("cpu")).float()
    with torch.no_grad():
        module = model.module_.float()
        posterior = module.posterior(rows)
        expected = {
            "log_likelihood": module.expected_log_likelihood(rows, posterior),
            "kl": posterior.kl().sum(-1),
            "density": posterior.inclusion.mean(-1),
        }
    # With steps this short, all batches see the same model.
    model.set_params(learning_rate_init=1e-30).partial_fit(X)
    for name, by_row in expected.items():
        assert model.history_[-1][name] == pytest.approx(float(by_row.mean()), rel=1e-4)


@pytest.mark.parametrize("bound", ["elbo", "max_elbo", "iwae"])
def test_parts_of_drawn_bounds(bound):
    model = ThresholdedVSC(8, gradient="straight_through", encoder="mlp", **SMALL).fit(X).module_
    rows = torch.from_numpy(X)

    def generator():
        return torch.Generator().manual_seed(0)

    step = model.training_step(rows, Objective(bound, 5), generator(), kl_weight=0.7)
    value, parts = step.bound, step.parts
    assert not any(part.requires_grad for part in parts.values())
    posterior = model.posterior(rows)
    draws = posterior.rsample(posterior.noise(5, generator()))
    log_likelihood = model.log_likelihood(rows, draws.code)
    # The published KL compares distributions before thresholding; importance weights do not.
    kl = (posterior.kl() if bound == "iwae" else posterior.training_kl()).sum(-1)
    expected = log_likelihood.amax(0) if bound == "max_elbo" else log_likelihood.mean(0)
    torch.testing.assert_close(parts["log_likelihood"], expected.detach())
    torch.testing.assert_close(parts["kl"], kl.detach())
    torch.testing.assert_close(parts["density"], (draws.code != 0).double().mean((0, 2)))
    if bound != "iwae":
        torch.testing.assert_close(value.detach(), parts["log_likelihood"] - 0.7 * parts["kl"])


@pytest.mark.parametrize("prior", ["laplace", "spike_slab"])
def test_importance_weighted_bound_exceeds_its_elbo(prior):
    model = SparseVAE(8, prior=prior, objective="iwae", n_draws=20, **SMALL).fit(X)
    elbo = column(model, "log_likelihood") - column(model, "kl")
    assert (-column(model, "loss") > elbo).all()


def test_warm_up_does_not_change_the_recorded_parts():
    warm = SparseVAE(8, kl_warmup=1.0, **SMALL).fit(X).history_[0]
    # Half of the weight is reached in the middle of the run.
    assert warm["log_likelihood"] - warm["kl"] < -warm["loss"]
    assert warm["kl"] > 0


def test_every_record_has_the_same_entries():
    model = SparseVAE(8, prior="spike_slab", warm_start=True, **SMALL)
    model.fit(X).fit(X).partial_fit(X)
    assert len(model.history_) == 5
    assert {frozenset(record) for record in model.history_} == {
        frozenset({"epoch", "loss", "duration", "log_likelihood", "kl", "density"})
    }


class Interruption(Callback):
    def on_batch_end(self, net, training=False, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


def test_an_interrupted_epoch_leaves_no_record():
    whole = SparseVAE(8, **SMALL).fit(X)
    cut = SparseVAE(8, callbacks=[Interruption()], **SMALL)
    with pytest.warns(UserWarning, match="interrupted"):
        cut.fit(X)
    assert len(cut.history_) == cut.n_iter_ == 1
    for name in ("loss", "log_likelihood", "kl"):
        assert cut.history_[0][name] == whole.history_[0][name]
