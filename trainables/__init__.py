"""What one trial does: data, recipes, the training loop, and the two executors it runs under."""
