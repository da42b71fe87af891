"""What a data set is in memory, and what is checked of its samples."""
