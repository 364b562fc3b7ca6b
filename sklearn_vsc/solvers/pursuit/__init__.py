"""Orthogonal matching pursuit, and least squares on a support that is given."""
