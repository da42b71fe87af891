"""Losses, and what they are made of: matching, queues, temperature."""
