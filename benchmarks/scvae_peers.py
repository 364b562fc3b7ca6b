"""Models that `scvae.py` compares with SCVAE: a VAE and a VQ-VAE with the same networks."""

import math
from dataclasses import fields

import numpy as np
import torch
from torch import nn
from torch.nn.functional import embedding, mse_loss, one_hot

from sklearn_vsc import SparseVAE
from sklearn_vsc._models.construction import VariationalDescription
from sklearn_vsc._models.latent_variable import Heads
from sklearn_vsc.networks import N_CHANNELS, residual_decoder, residual_encoder
from sklearn_vsc.networks._init import linear_layer


def grid_networks(task, generator):
    """Return the initial encoder (features at each position) and decoder of SCVAE."""
    encoder = residual_encoder(task.image_shape, task.n_downsamplings, generator)
    decoder = residual_decoder(task.image_shape, task.n_downsamplings, task.latent_size, generator)
    with torch.no_grad():
        [weight for weight in decoder.parameters() if weight.ndim > 1][-1].mul_(0.3)
    return encoder, decoder


class GridHeads(nn.Module):
    """Posterior parameters of a latent vector at each position, with weights shared."""

    def __init__(self, n_heads, latent_size, generator):
        super().__init__()
        self.heads = Heads(N_CHANNELS, n_heads, latent_size, generator)

    def forward(self, features):
        return self.heads(features.unflatten(1, (-1, N_CHANNELS))).transpose(1, 2).flatten(2)


class GridDescription(VariationalDescription):
    """A model whose posterior has a latent vector at each position."""

    def build(self, start, generator):
        model = super().build(start, generator)
        n_hidden = model.heads.linear.in_features
        latent_size = model.n_components * N_CHANNELS // n_hidden
        model.heads = GridHeads(model.family.n_heads, latent_size, generator)
        return model


class GridVAE(SparseVAE):
    """A SparseVAE with such a model."""

    def _describe(self):
        described = super()._describe()
        return GridDescription(**{f.name: getattr(described, f.name) for f in fields(described)})


def make_vae(task, is_grid, **parameters):
    """Return a plain VAE with a latent vector at each position, or one for the image."""
    generator = torch.Generator().manual_seed(parameters["random_state"])
    encoder, decoder = grid_networks(task, generator)
    n_numbers = task.n_positions * task.latent_size
    if not is_grid:
        first = linear_layer(task.bottleneck, n_numbers, generator, gain=0.5**0.5)
        decoder = nn.Sequential(first, decoder)
    return (GridVAE if is_grid else SparseVAE)(
        n_numbers if is_grid else task.bottleneck,
        prior="gaussian",
        encoder=nn.Sequential(encoder, nn.Flatten()),
        decoder=decoder,
        **parameters,
    )


class VQVAE(nn.Module):
    """Vector-quantised autoencoder: a codebook of moving averages, straight-through gradients.

    van den Oord, Vinyals and Kavukcuoglu (2017), Neural Discrete Representation Learning. Entries
    that are rarely the closest to any vector are reset to a random vector of the batch.
    """

    n_entries = 512
    decay = 0.99
    commitment = 0.25
    # An entry with a smaller average number of vectors per batch is reset.
    least_count = 0.1

    def __init__(self, task, *, max_iter, batch_size, learning_rate_init, random_state, device):
        super().__init__()
        self.max_iter, self.batch_size, self.learning_rate = (
            max_iter,
            batch_size,
            learning_rate_init,
        )
        self.device, self.size = device, task.latent_size
        self.generator = torch.Generator().manual_seed(random_state)
        encoder, self.decoder = grid_networks(task, self.generator)
        last = linear_layer(N_CHANNELS, self.size, self.generator, gain=0.5**0.5)
        self.encoder = nn.Sequential(encoder, last)
        self.register_buffer("codebook", torch.zeros(self.n_entries, self.size))
        self.register_buffer("sums", torch.zeros(self.n_entries, self.size))
        self.register_buffer("counts", torch.zeros(self.n_entries))

    def fit(self, X, clock):
        """Train on rows with SCVAE's schedule, and notify a clock of each epoch."""
        self.offset, self.unit = X.mean(0), float((X - X.mean(0)).std())
        rows = self.normalized(X)
        self.to(self.device).train()
        n_batches = math.ceil(len(X) / self.batch_size)
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=self.max_iter * n_batches,
            pct_start=0.05,
            cycle_momentum=False,
        )
        with torch.no_grad():
            vectors = self.encoder(rows[: self.batch_size]).flatten(0, 1)
        self.restart(vectors, torch.ones_like(self.counts, dtype=torch.bool))
        clock.on_train_begin()
        for _ in range(self.max_iter):
            order = torch.randperm(len(rows), generator=self.generator).to(self.device)
            for picked in order.split(self.batch_size):
                optimizer.zero_grad()
                self.loss(rows[picked]).backward()
                optimizer.step()
                schedule.step()
            clock.on_epoch_end()
        self.eval()
        return self

    def normalized(self, X):
        """Return rows in the units of the networks."""
        return torch.from_numpy((X - self.offset) / self.unit).to(self.device)

    def quantized(self, rows):
        """Return the encoder's vectors (n, P, L), and the indices of the closest entries."""
        vectors = self.encoder(rows)
        with torch.no_grad():
            entries = torch.cdist(vectors.flatten(0, 1), self.codebook).argmin(1)
        return vectors, entries.view(vectors.shape[:2])

    def loss(self, rows):
        """Return squared error plus commitment loss, and update the codebook."""
        vectors, entries = self.quantized(rows)
        chosen = embedding(entries, self.codebook)
        self.update(vectors.detach().flatten(0, 1), entries.flatten())
        decoded = self.decoder((vectors + (chosen - vectors).detach()).flatten(1))
        return mse_loss(decoded, rows) + self.commitment * mse_loss(vectors, chosen)

    @torch.no_grad()
    def update(self, vectors, entries):
        """Move each entry to the average of its vectors."""
        uses = one_hot(entries, self.n_entries).to(vectors)
        self.counts.lerp_(uses.sum(0), 1 - self.decay)
        self.sums.lerp_(uses.T @ vectors, 1 - self.decay)
        self.codebook = self.sums / self.counts.clamp_min(1e-5)[:, None]
        self.restart(vectors, self.counts < self.least_count)

    @torch.no_grad()
    def restart(self, vectors, are_dead):
        """Reset dead entries to random vectors of the batch."""
        n_dead = int(are_dead.sum())
        picked = torch.randint(len(vectors), (n_dead,), generator=self.generator)
        self.codebook[are_dead] = self.sums[are_dead] = vectors[picked.to(vectors.device)]
        self.counts[are_dead] = 1.0

    def decoded(self, X):
        """Return the reconstructions of rows, and the entries that they use."""
        parts = []
        with torch.no_grad():
            for rows in self.normalized(X).split(500):
                _, entries = self.quantized(rows)
                found = self.decoder(embedding(entries, self.codebook).flatten(1))
                parts.append((found.cpu().numpy(), entries.cpu().numpy()))
        X_hat, entries = map(np.concatenate, zip(*parts, strict=True))
        return X_hat * self.unit + self.offset, entries
