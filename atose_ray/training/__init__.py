"""The training loop, its evaluation, checkpoints and run folder. Knows nothing of Ray."""
