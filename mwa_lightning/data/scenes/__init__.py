"""The built-in data sets: how their images and sentences are made."""
