"""The run directory: its lock, checkpoints, console and provenance."""
