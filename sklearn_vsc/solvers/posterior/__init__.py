"""Posteriors of codes under a linear decoder with Gaussian noise."""
