"""Training and evaluation: optimizer, guards, checkpoints, the run directory."""
