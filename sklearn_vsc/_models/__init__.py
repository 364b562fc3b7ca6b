"""Latent-variable models, their bounds and their training objectives, torch only."""
