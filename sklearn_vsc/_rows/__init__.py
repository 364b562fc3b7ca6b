"""Input and output: arrays, frames and datasets become tensors, and results become arrays."""
