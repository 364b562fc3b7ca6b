"""What the estimators share: checks, tags, and calls on a fitted model."""
