"""The sparse linear model with Gaussian noise: its posterior, its bound, and its closed forms."""
