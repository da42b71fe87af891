"""Tokenizers, and what is done to texts before them."""
