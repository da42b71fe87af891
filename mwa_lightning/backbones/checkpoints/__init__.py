"""Checkpoint files: reading them safely, and bringing their names to ours."""

from mwa_lightning.backbones.checkpoints.assets import locate
from mwa_lightning.backbones.checkpoints.beit3 import LoadReport, load_backbone, official_state
from mwa_lightning.backbones.checkpoints.reading import read_state

__all__ = ["LoadReport", "load_backbone", "locate", "official_state", "read_state"]
