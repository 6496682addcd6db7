"""Final jobs: one network trained to its end, or a checkpoint evaluated."""
