"""A fitted model and what it answers: codes, posteriors, bounds, samples."""
