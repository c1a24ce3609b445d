"""A training run: steps, checkpoints, log and held-out figures."""
