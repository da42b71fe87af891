"""Data sets, pictures, tokens, sampling."""
