"""Benchmarks of the project's speed and memory use.

``python -m benchmarks.run [NAME...]`` runs them and writes ``benchmarks/results/<name>.json``.
"""
