"""Adapter files: `adapter.safetensors`, what they say of themselves, and those of the released code."""
