"""A data set as a few tar files: reading them."""
