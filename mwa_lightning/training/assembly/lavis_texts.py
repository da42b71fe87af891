"""Files of the released ModeX code were made in LAVIS: texts are cleaned and truncated as there.

LAVIS has one cleaning for all models, that of BLIP, also for ALBEF, whose original code has another; and more words.
"""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from mwa_lightning.adapters.files.adapter_file import is_ours
from mwa_lightning.adapters.files.released_modex import holds_modex
from mwa_lightning.backbones.checkpoints import read_state
from mwa_lightning.tasks.rules import rules_of

log = logging.getLogger(__name__)

CLEANING, WORDS = "blip", 50
_OF_THE_FAMILY = {("albef", 30), ("blip", 30)}  # as the backbones are configured
_USUAL_LENGTH = 35
_LENGTH_OF_STATEMENTS = {True: 40, False: 64}  # of ALBEF; BLIP's statements are not truncated there


def settle_texts(config: DictConfig, *, always: bool = False) -> None:
    """Have texts treated as by the code that made `adapter.checkpoint`, in place, and say so.

    Only where the configuration has what is usual for the backbone, so that a user's own choice stands; `always`
    where there can be none.
    """
    backbone, file = config.backbone, config.adapter.checkpoint
    if file is None or "text_cleaning" not in backbone or is_ours(Path(file)) or not holds_modex(read_state(file)):
        return
    changed = {}
    if always or (backbone.text_cleaning, backbone.max_words) in _OF_THE_FAMILY:
        changed = {"text_cleaning": CLEANING, "max_words": WORDS}
    if rules_of(config).long_texts and backbone.max_text_length == _USUAL_LENGTH:
        changed["max_text_length"] = _LENGTH_OF_STATEMENTS[backbone.fusion_layers > 0]
    changed = {key: value for key, value in changed.items() if backbone[key] != value}
    for key, value in changed.items():
        backbone[key] = value
    if changed:
        settings = ", ".join(f"backbone.{key}={value}" for key, value in changed.items())
        log.info("%s was made in LAVIS, so texts are cleaned and truncated as there: %s", file, settings)
