"""
How to add a prior
==================

What if codes follow another law than those that are there? This example gives
:class:`~sklearn_vsc.SparseVAE` codes with the tails of Student's *t*, checks the new piece by
quadrature, and asks the data whether they want it. :doc:`/guide/adding_a_prior` has what a prior
must answer, method by method, one that is written from nothing, and how to make it a part of the
library.
"""

# %%
# The law
# -------
#
# Student's *t* with :math:`\nu` degrees of freedom lies between a Cauchy law (:math:`\nu = 1`) and
# a Gaussian one (:math:`\nu \to \infty`): mostly small codes, and now and then a very large one.
# The posterior of a code stays Gaussian. So a family that is there can be extended:
# :class:`~sklearn_vsc.latents.Continuous` knows posteriors of a location and a scale. Three things
# are new: the density of the prior, draws of it, and its variance. The KL of a Gaussian
# from it has no closed form and is taken from draws, as that from a Cauchy law is.

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import integrate, stats
from torch import distributions

from sklearn_vsc import SparseVAE
from sklearn_vsc.datasets import load_natural_patches
from sklearn_vsc.latents import Continuous


class StudentT(Continuous):
    """Student's t prior of a code, Gaussian posterior."""

    def __init__(self, df, *, prior_scale=1.0):
        # Any law whose KL is taken from draws; what is the Cauchy's own is replaced below.
        super().__init__("cauchy", "gaussian", prior_scale=prior_scale)
        self.df = df

    def prior(self, like):
        return distributions.StudentT(like.new_tensor(self.df), 0.0, self.prior_scale)

    def sample_prior(self, shape, generator, dtype):
        # A normal draw over the root of the mean square of df others.
        normal = torch.randn((self.df + 1, *shape), generator=generator, dtype=dtype)
        return self.prior_scale * normal[0] / normal[1:].square().mean(dim=0).sqrt()

    @property
    def prior_variance(self):
        return self.prior_scale**2 * self.df / (self.df - 2)


# %%
# Is it right?
# ------------
#
# A wrong density trains without complaint. So each piece is held against something that does not
# share its code: draws against SciPy's distribution function, and the KL from draws against an
# integral,
#
# .. math:: \mathrm{KL} = \int q(z) \log \frac{q(z)}{p(z)} \, dz .

family = StudentT(df=3)
draws = family.sample_prior((20_000,), torch.Generator().manual_seed(0), torch.float64)
distance = stats.kstest(draws.numpy(), stats.t(df=3).cdf).statistic
print(f"largest distance of 20,000 draws from the distribution function: {distance:.4f}")

# Heads are what a network would give: location and log of the scale of each posterior.
locations = np.linspace(-6, 6, 25)
log_scales = np.log([0.1, 0.5])
heads = np.array([[locations, np.full(len(locations), s)] for s in log_scales])
posterior = family.posterior(torch.from_numpy(heads))
codes = posterior.rsample(posterior.noise(5000, torch.Generator().manual_seed(0)))
by_draws = posterior.kl(codes).mean(dim=0).numpy()


def kl_by_quadrature(location, scale):
    """Integrate the divergence of a normal law from Student's t."""
    q, p = stats.norm(location, scale), stats.t(df=3)
    reach = location - 9 * scale, location + 9 * scale
    return integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), *reach)[0]


scales = posterior.scale[:, 0].numpy()
exactly = np.array([[kl_by_quadrature(m, scale) for m in locations] for scale in scales])
print(f"largest difference of the two KLs: {np.abs(by_draws - exactly).max():.3f} nats")

# %%
# Giving it to an estimator
# -------------------------
#
# An estimator picks its family in one method. As the KL has no closed form, neither has the bound,
# and `gradient='exact'` must know.


class StudentTVAE(SparseVAE):
    """SparseVAE with Student's t prior of three degrees of freedom."""

    def _make_family(self):
        return StudentT(df=3, prior_scale=self.prior_scale)

    def _obstacle_to_exact(self):
        return "a Student's t prior"


# %%
# Do the data want it?
# --------------------
#
# All priors get the same linear decoder and encoder, the same number of draws, and as much
# training. Scores are of patches from the other halves of the photographs. With a Laplace or
# Gaussian prior one could do without draws; here all take them, so that the prior is all that
# differs.

X = load_natural_patches(3000, patch_size=6, subset="train", random_state=0)
X_new = load_natural_patches(1000, patch_size=6, subset="test", random_state=0)
settings = {
    "n_components": X.shape[1],
    "decoder": "linear",
    "posterior_family": "gaussian",
    "n_draws": 4,
    "max_iter": 20,
    "learning_rate_init": 4e-3,
    "random_state": 0,
}
models = {
    "Gaussian": SparseVAE(prior="gaussian", **settings),
    "Laplace": SparseVAE(prior="laplace", **settings),
    "Cauchy": SparseVAE(prior="cauchy", **settings),
    "Student's t": StudentTVAE(**settings),
}
scores = {name: model.fit(X).score(X_new) for name, model in models.items()}
for name, score in scores.items():
    print(f"{name}: {score:.1f} nats a patch")

# %%
# On the left the densities, on a logarithmic axis: straight lines for Laplace, a parabola for
# Gauss. In the middle the check of the KL: dots are means of draws, lines are integrals. On the
# right what the data say.

figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
z = np.linspace(-8, 8, 400)
laws = {
    "Gaussian": stats.norm(),
    "Laplace": stats.laplace(),
    "Cauchy": stats.cauchy(),
    "Student's t": stats.t(df=3),
}
for name, law in laws.items():
    axes[0].plot(z, law.pdf(z), label=name, linewidth=3 if name == "Student's t" else 1)
axes[0].set(yscale="log", ylim=(1e-5, 1), xlabel="code", title="Densities of the priors")
axes[0].legend(loc="lower center")

for scale, dots, line in zip(scales, by_draws, exactly, strict=True):
    (curve,) = axes[1].plot(locations, line, label=f"standard deviation {scale:.1f}")
    axes[1].plot(locations, dots, "o", color=curve.get_color(), markersize=4)
axes[1].set(xlabel="location of the posterior", ylabel="KL, nats", title="KL: draws and integral")
axes[1].legend()

names = sorted(scores, key=scores.get)
colors = ["tab:red" if name == "Student's t" else "tab:gray" for name in names]
axes[2].barh(names, [scores[name] - scores["Gaussian"] for name in names], color=colors)
axes[2].set(xlabel="nats a patch above the Gaussian prior", title="Score of held-out patches")
plt.show()

# %%
# Tails heavier than a Gaussian's are worth much on these data. Which of the heavy ones it is
# matters little, with Student's *t* somewhat ahead. To make it a part of the library, go on with
# :doc:`/guide/adding_a_prior`: the contract test there asks what was asked here, and more.
