"""Optimizers on flat parameter buffers, the moving average of weights, and optimizer state."""
