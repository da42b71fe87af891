"""Text and JSON files, and the problems that readers report of them."""
