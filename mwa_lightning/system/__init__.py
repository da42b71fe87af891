"""The machine below: files, locks, memory, signals, SLURM, the version of the code. Nothing here knows of models."""
