"""
How to add a prior
==================

What if codes have another distribution than the priors of this package? This example gives
:class:`~sklearn_vsc.SparseVAE` codes with the tails of Student's *t*, checks the new prior by
quadrature, and compares it with the others on photographs. :doc:`/guide/adding_a_prior` lists what
a prior must answer, method by method, and writes one from scratch.
"""

# %%
# The distribution
# ----------------
#
# Student's *t* with :math:`\nu` degrees of freedom lies between a Cauchy distribution
# (:math:`\nu = 1`) and a Gaussian (:math:`\nu \to \infty`): most codes are small, and a few are
# very large. The posterior of a code stays Gaussian. So we can extend an existing family:
# :class:`~sklearn_vsc.latents.Continuous` has posteriors with a location and a scale. Three things
# are new: the density of the prior, draws from it, and its variance. The KL divergence of a
# Gaussian from it has no closed form and is taken from draws, as for a Cauchy prior.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import integrate, stats
from torch import distributions

from sklearn_vsc import SparseVAE, load
from sklearn_vsc.datasets import load_natural_patches
from sklearn_vsc.latents import Continuous


class StudentT(Continuous):
    """Student's t prior of a code, Gaussian posterior."""

    def __init__(self, df, *, prior_scale=1.0):
        # A prior whose KL is taken from draws; the methods below replace the Cauchy distribution.
        super().__init__("cauchy", "gaussian", prior_scale=prior_scale)
        self.df = df

    def prior(self, like):
        return distributions.StudentT(like.new_tensor(self.df), 0.0, self.prior_scale)

    def sample_prior(self, shape, generator, dtype):
        # A normal draw divided by the root mean square of df others.
        normal = torch.randn((self.df + 1, *shape), generator=generator, dtype=dtype)
        return self.prior_scale * normal[0] / normal[1:].square().mean(dim=0).sqrt()

    @property
    def prior_variance(self):
        return self.prior_scale**2 * self.df / (self.df - 2)


# %%
# Is it right?
# ------------
#
# A wrong density trains without complaint. So each piece is compared with something that does not
# share its code: draws with SciPy's distribution function, and the KL from draws with an integral,
#
# .. math:: \mathrm{KL} = \int q(z) \log \frac{q(z)}{p(z)} \, dz .

family = StudentT(df=3)
draws = family.sample_prior((20_000,), torch.Generator().manual_seed(0), torch.float64)
distance = stats.kstest(draws.numpy(), stats.t(df=3).cdf).statistic
print(f"largest distance of 20,000 draws from the distribution function: {distance:.4f}")

# Heads are the outputs of a network: location and log scale of each posterior.
locations = np.linspace(-6, 6, 25)
log_scales = np.log([0.1, 0.5])
heads = np.array([[locations, np.full(len(locations), s)] for s in log_scales])
posterior = family.posterior(torch.from_numpy(heads))
codes = posterior.rsample(posterior.noise(5000, torch.Generator().manual_seed(0)))
by_draws = posterior.kl(codes).mean(dim=0).numpy()


def kl_by_quadrature(location, scale):
    """Integrate the divergence of a normal distribution from Student's t."""
    q, p = stats.norm(location, scale), stats.t(df=3)
    reach = location - 9 * scale, location + 9 * scale
    return integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), *reach)[0]


scales = posterior.scale[:, 0].numpy()
exactly = np.array([[kl_by_quadrature(m, scale) for m in locations] for scale in scales])
print(f"largest difference of the two KLs: {np.abs(by_draws - exactly).max():.3f} nats")

# %%
# Does it suit the data?
# ----------------------
#
# An estimator takes the new prior as an object: `SparseVAE(prior=StudentT(df=3))`. All models have
# a linear decoder, Gaussian posteriors, the same number of draws and as much training, so that
# only the prior differs. (For a Laplace or Gaussian prior, `gradient='auto'` would train without
# draws if `n_draws` were 1.) The score is the ELBO of patches from the other halves of the
# photographs.

X = load_natural_patches(2000, patch_size=6, subset="train", random_state=0)
X_new = load_natural_patches(1000, patch_size=6, subset="test", random_state=0)
priors = {
    "Gaussian": Continuous("gaussian", "gaussian"),
    "Laplace": Continuous("laplace", "gaussian"),
    "Cauchy": Continuous("cauchy", "gaussian"),
    "Student's t": StudentT(df=3),
}
scores = {}
for name, prior in priors.items():
    model = SparseVAE(
        X.shape[1],
        prior=prior,
        decoder="linear",
        n_draws=2,
        max_iter=20,
        learning_rate_init=6e-3,
        random_state=0,
    )
    scores[name] = model.fit(X).score(X_new)
    print(f"{name}: {scores[name]:.1f} nats per patch")

gains = {name: score - scores["Gaussian"] for name, score in scores.items()}
print(
    "gain over the Gaussian prior, nats per patch: "
    + ", ".join(f"{name} {gain:.1f}" for name, gain in gains.items() if gain)
)

# %%
# On the left the densities, on a logarithmic axis: the Laplace density is made of straight lines,
# the Gaussian density is a parabola. In the middle the check of the KL: dots are means over draws,
# lines are integrals. On the right the gain in score over a Gaussian prior.

figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
z = np.linspace(-8, 8, 400)
densities = {
    "Gaussian": stats.norm(),
    "Laplace": stats.laplace(),
    "Cauchy": stats.cauchy(),
    "Student's t": stats.t(df=3),
}
for name, distribution in densities.items():
    width = 3 if name == "Student's t" else 1
    axes[0].plot(z, distribution.pdf(z), label=name, linewidth=width)
axes[0].set(yscale="log", ylim=(1e-5, 1), xlabel="code", title="Densities of the priors")
axes[0].legend(loc="lower center")

for scale, dots, line in zip(scales, by_draws, exactly, strict=True):
    (curve,) = axes[1].plot(locations, line, label=f"standard deviation {scale:.1f}")
    axes[1].plot(locations, dots, "o", color=curve.get_color(), markersize=4)
axes[1].set(xlabel="location of the posterior", ylabel="KL, nats", title="KL: draws and integral")
axes[1].legend()

names = sorted(gains, key=gains.get)
colors = ["tab:red" if name == "Student's t" else "tab:gray" for name in names]
axes[2].barh(names, [gains[name] for name in names], color=colors)
axes[2].set(xlabel="nats per patch above the Gaussian prior", title="Score of held-out patches")
plt.show()

# %%
# Tails heavier than Gaussian ones are worth a lot on these data. Which heavy-tailed prior it is
# matters less.
#
# Saving and loading
# ------------------
#
# A saved model does not hold classes of your own, so the prior is given to
# :func:`~sklearn_vsc.load` again. (The last model above is the one with Student's *t*.)

with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder) / "student")
    again = load(Path(folder) / "student", prior=StudentT(df=3))
print("same codes after loading:", np.array_equal(again.transform(X_new), model.transform(X_new)))
