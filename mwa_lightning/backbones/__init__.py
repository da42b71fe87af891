"""Pretrained models, built from one transformer block with slots."""
