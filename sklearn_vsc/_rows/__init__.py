"""The door: arrays, frames and datasets become tensors, and come back as arrays."""
