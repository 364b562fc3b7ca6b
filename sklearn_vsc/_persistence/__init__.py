"""Saving without pickle: plain data, the folder of a model, and what a class keeps."""
