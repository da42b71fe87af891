"""From a configuration to a model with weights and a tokenizer; used by training, evaluation and `load`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

import mwa_lightning
from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.files import load_adapter
from mwa_lightning.adapters.none import NoAdapter
from mwa_lightning.backbones.checkpoints import load_backbone, locate
from mwa_lightning.backbones.checkpoints.fingerprint import fingerprint
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.data.tokenizers import SentencePieceTokenizer
from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.tasks.heads import RetrievalHeads
from mwa_lightning.tasks.model import RetrievalModel

log = logging.getLogger(__name__)

RANDOM = "random"

# Keys of a node that are for us, not for the class that it names.
OURS = frozenset({"_target_", "checkpoint", "tokenizer", "official"})


def instantiate(node: DictConfig, **further: Any) -> Any:
    """Make the object that a node's `_target_` names, from its other keys and `further`."""
    arguments = OmegaConf.to_container(node, resolve=True)
    assert isinstance(arguments, dict)
    known = {str(key): value for key, value in arguments.items() if key not in OURS}
    return get_class(node._target_)(**known, **further)


def build_model(config: DictConfig) -> tuple[RetrievalModel, SentencePieceTokenizer]:
    """The model of a configuration, weights read and adapter attached, and the tokenizer of its backbone.

    Raises CheckpointError if the backbone has no weights, or if a file does not fit; ConfigError if the
    tokenizer does not fit the backbone.
    """
    tokenizer = build_tokenizer(config)
    backbone, heads = build_backbone(config)
    return attach(config, backbone, heads), tokenizer


def build_tokenizer(config: DictConfig) -> SentencePieceTokenizer:
    """The tokenizer of `backbone.tokenizer`; reading it takes no weights, so it comes first."""
    node = config.backbone
    if node.tokenizer is None:
        raise CheckpointError(f"{node.name} has no tokenizer: set backbone.tokenizer to a file ({node.official})")
    tokenizer = SentencePieceTokenizer(locate(node.tokenizer), max_length=node.max_text_length)
    tokenizer.check_fits(node.vocabulary_size)
    return tokenizer


def build_backbone(config: DictConfig) -> tuple[Multiway, RetrievalHeads]:
    """The backbone and its heads with the weights of `backbone.checkpoint`; `random` draws from the seed."""
    node = config.backbone
    if node.checkpoint is None:
        raise CheckpointError(
            f"{node.name} has no weights: set backbone.checkpoint to a file ({node.official}), or to `random`"
        )
    torch.manual_seed(config.seed)
    backbone: Multiway = instantiate(node)
    heads = RetrievalHeads(width=backbone.width)
    if node.checkpoint == RANDOM:
        backbone.fingerprint = fingerprint(dict(backbone.named_parameters()))
        log.warning("%s has random weights, as asked for", node.name)
    else:
        log.info("%s", load_backbone(backbone, heads, node.checkpoint))
    return backbone, heads


def attach(config: DictConfig, backbone: Multiway, heads: RetrievalHeads) -> RetrievalModel:
    """Attach the adapter of a configuration, with the weights of `adapter.checkpoint` if there are any.

    Its initial values depend on the seed alone, not on what was done before.
    """
    torch.manual_seed(config.seed)
    adapter: AdapterMethod = instantiate(config.adapter)
    model = RetrievalModel(backbone=backbone, adapter=adapter, heads=heads)
    if config.adapter.checkpoint is not None:
        if isinstance(adapter, NoAdapter):
            raise ConfigError("adapter.checkpoint: adapter=none has nothing to load; choose the adapter of the file")
        load_adapter(Path(config.adapter.checkpoint), model, fingerprint=backbone.fingerprint)
    return model


def adapter_metadata(config: DictConfig, backbone: Multiway) -> dict[str, Any]:
    """What `adapter.safetensors` says of itself."""
    node = OmegaConf.to_container(config.adapter, resolve=True)
    assert isinstance(node, dict)
    return {
        "method": str(config.adapter._target_).rsplit(".", 1)[-1],
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "version": mwa_lightning.__version__,
        "config": {key: value for key, value in node.items() if key != "checkpoint"},
    }
