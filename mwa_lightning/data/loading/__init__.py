"""Datasets, samplers and loading processes."""
