"""Solvers of the lasso with a fixed dictionary: pure functions of tensors."""
