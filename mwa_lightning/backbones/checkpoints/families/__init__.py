"""One file a family of backbones: its kinds of checkpoint files and their key maps."""
