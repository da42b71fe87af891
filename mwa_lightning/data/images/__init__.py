"""Reading, augmenting and normalising images."""
