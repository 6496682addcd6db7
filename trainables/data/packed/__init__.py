"""The packed store: worker processes write it, and loaders memory-map it and augment in batches."""
