"""What the project costs, measured: ``python -m benchmarks.run [NAME...]`` writes ``benchmarks/results/<name>.json``."""
