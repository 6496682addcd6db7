"""The driver of a search: its trials on Tune, what follows from their results, failed trials again."""
