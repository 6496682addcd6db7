"""Optimizers over flat buffers of parameters, the average of weights, and their state in checkpoints."""
