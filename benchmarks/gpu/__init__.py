"""Checks that need a GPU: ``python -m benchmarks.gpu.check`` runs them."""
