"""Training of one trial: data, recipes, the training loop, and the two executors that run it."""
