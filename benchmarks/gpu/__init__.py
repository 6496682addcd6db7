"""Checks for whenever a GPU is at hand: ``python -m benchmarks.gpu.check``."""
