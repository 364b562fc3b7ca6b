"""One fit, from rows to a fitted model."""
