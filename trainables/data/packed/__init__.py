"""The packed store: written by worker processes, memory-mapped, read and augmented in batches."""
