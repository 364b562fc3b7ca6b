"""Lasso coders and dictionary updates: pure functions of tensors."""
