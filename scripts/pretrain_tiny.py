"""Pretrains `beit3_tiny` on the source domain of the scenes, and writes it to the package's assets.

    python scripts/pretrain_tiny.py
    python scripts/pretrain_tiny.py --train-tokenizer   # the tokenizer too: other ids, so another model

Three objectives: contrastive, as in retrieval; image-text matching on the fused sequence, whose wrong pictures are
those that the contrastive part takes for right; and masked words on the fused sequence. The heads of the last two are
thrown away. The result depends on the arguments only, and on the last bits of the machine's arithmetic, which the
number of threads changes too.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from mwa_lightning.backbones.checkpoints.assets import FOLDER as ASSETS
from mwa_lightning.backbones.checkpoints.families.beit3 import official_state
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.data.annotations.caption_json import read_caption_json
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.images.reader import ImageReader
from mwa_lightning.data.images.transforms import EvaluationTransform
from mwa_lightning.data.scenes.grammar import DOMAINS
from mwa_lightning.data.scenes.statements import sample_statement_group
from mwa_lightning.data.scenes.writing import picture_generator, write_scenes
from mwa_lightning.data.text.tokenizers import PAD, SentencePieceTokenizer
from mwa_lightning.metrics.recall import RetrievalRecall
from mwa_lightning.tasks.heads import RetrievalHeads
from mwa_lightning.tasks.losses.functions import clamp_logit_scale, contrastive_loss

# The same numbers as in configs/backbone/beit3_tiny.yaml.
ARCHITECTURE: dict[str, Any] = {
    "width": 128,
    "depth": 5,
    "heads": 4,
    "ffn_width": 512,
    "patch_size": 20,
    "image_size": 60,
    "text_positions": 66,
    "max_text_length": 32,
}
PIECES = 960  # of the tokenizer; ids and embedding rows are two more
MASKED_SHARE = 0.2  # of the words of a fused sequence

# Words that captions of either domain do not have, so that other people's captions do not fall to letters at once.
GENERAL_WORDS = """
the a an of and or in on at to from with without by for as is are was were be been being has have had do
does did not no yes this that these those there here it its they their he she his her you your we our i my
who what which where when how one two three four five six seven eight nine ten none some any all both each
every either neither other another same different only exactly least most more less many few several first
second third last left right top bottom middle centre side corner above below over under beside between
behind near far next inside outside around across through along up down north south east west before after
picture image photo photograph drawing painting scene view background foreground ground canvas sky wall
floor table frame paper man woman boy girl child people person dog cat bird horse cow sheep animal tree
flower grass plant house building street road car bus train boat bicycle plane ball hat shirt water food cup
plate book chair bed door window hand head face eye red orange yellow green cyan blue purple pink black
white grey brown gold silver crimson scarlet amber violet navy dark light bright pale colour coloured shape
object thing item circle square triangle star cross ring diamond crescent round large big small little tiny
huge long short tall wide thin thick old young new empty full open closed plain striped spotted see shows
contain contains find holds look looks make makes take sits stands lies runs walking playing standing
sitting holding wearing riding looking eating part piece group pair row line number true false statement
mr mrs amber golden turquoise rose kite spark plus rhombus block asterisk giant mini aqua azure olive scarlet
"""

logger = logging.getLogger("pretrain_tiny")


@dataclass(frozen=True)
class Captioned:
    """A split in memory: images uint8 (m, 3, s, s), ids (n, length) and mask of its captions, their images (n,)."""

    images: Tensor
    ids: Tensor
    mask: Tensor
    image_index: Tensor


class FusedHeads(nn.Module):
    """The throw-away heads: does the text match, from both first tokens; which word was masked, from its token."""

    def __init__(self, *, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.match = nn.Linear(2 * width, 2)
        self.word = nn.Linear(width, vocabulary_size)


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for domain in DOMAINS:
            write_scenes(
                work / domain,
                domain=domain,
                seed=arguments.seed + 1,  # the demo's pictures are those of seed 0
                train=arguments.pictures if domain == "source" else 2000,
                val=0,
                test=500,
            )
        logger.info("wrote the pictures")
        model_file = arguments.output / "beit3_tiny.spm"
        if arguments.train_tokenizer:
            train_tokenizer(model_file, work, seed=arguments.seed)
        elif arguments.output != ASSETS:
            shutil.copyfile(ASSETS / model_file.name, model_file)
        tokenizer = SentencePieceTokenizer(model_file, ARCHITECTURE["max_text_length"])
        train = read_split(work / "source", "train", tokenizer)
        tests = {domain: read_split(work / domain, "test", tokenizer) for domain in DOMAINS}
        logger.info("read the pictures; %d rows of token embedding", tokenizer.vocabulary_size)

    backbone = Multiway(name="beit3_tiny", vocabulary_size=tokenizer.vocabulary_size, **ARCHITECTURE)
    heads = RetrievalHeads(width=backbone.width)
    fused = FusedHeads(width=backbone.width, vocabulary_size=tokenizer.vocabulary_size)
    initialize(backbone, heads)
    pretrain(backbone, heads, fused, train, tokenizer=tokenizer, arguments=arguments)
    state = {name: tensor.contiguous().float() for name, tensor in official_state(backbone, heads).items()}
    save_file(state, arguments.output / "beit3_tiny.safetensors")
    for domain, split in tests.items():
        figures = zero_shot(backbone, heads, split)
        logger.info("zero-shot on %s test: %s", domain, "  ".join(f"{k} {v:.2f}" for k, v in figures.items()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder of the two files")
    parser.add_argument("--train-tokenizer", action="store_true", help="instead of taking the one that ships")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=20000, help="of the source domain, five captions each")
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=1, help="another number rounds otherwise: other weights")
    return parser.parse_args()


def train_tokenizer(path: Path, work: Path, *, seed: int) -> None:
    """Train the sentencepiece model on captions and statements of both domains and on general words.

    Its ids are laid out as in BEiT-3's file: <unk> 0, <s> 1, </s> 2. Case is folded, as a small vocabulary cannot hold
    every word twice.
    """
    texts = GENERAL_WORDS.strip().splitlines() * 30
    for domain in DOMAINS:
        split = read_caption_json(
            work / domain / "dataset_scenes.json", folder=work / domain, problems=Problems(), official=False
        )["train"]
        texts += [split.captions[index].text for index in range(10_000)]
        generator = picture_generator(seed, domain, "tokenizer", 0)
        for _ in range(500):
            texts += sample_statement_group(domain=domain, generator=generator)[1]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            model_type="bpe",
            vocab_size=PIECES,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )


def read_split(folder: Path, name: str, tokenizer: SentencePieceTokenizer) -> Captioned:
    split = read_caption_json(folder / "dataset_scenes.json", folder=folder, problems=Problems(), official=False)[name]
    reader = ImageReader(exif=False, scale_deep=False, background=None)
    transform = EvaluationTransform(image_size=ARCHITECTURE["image_size"])
    ids, mask = tokenizer([caption.text for caption in split.captions])
    return Captioned(
        images=torch.stack([transform(reader(picture.path)) for picture in split.pictures]),
        ids=ids,
        mask=mask,
        image_index=torch.tensor([caption.image_index for caption in split.captions]),
    )


def initialize(backbone: Multiway, heads: RetrievalHeads) -> None:
    """Draw wider linear layers and smaller positions than the official ones: these suit a small model and few steps."""
    for module in [*backbone.modules(), *heads.modules()]:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.7 * backbone.width**-0.5)
    for table in (
        backbone.vision_embedding.positions,
        backbone.text_embedding.positions,
        backbone.text_embedding.tokens.weight,
    ):
        nn.init.normal_(table, std=0.1)


def pretrain(
    backbone: Multiway,
    heads: RetrievalHeads,
    fused: FusedHeads,
    data: Captioned,
    *,
    tokenizer: SentencePieceTokenizer,
    arguments: argparse.Namespace,
) -> None:
    model = nn.ModuleDict({"backbone": backbone, "heads": heads, "fused": fused})
    optimizer = make_optimizer(model, arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    batches = epochs(len(data.ids), batch_size=arguments.batch_size, generator=generator)
    started = logged = time.monotonic()
    for step in range(arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments)
        chosen = next(batches)
        length = int(data.mask[chosen].sum(dim=1).max())
        images = data.images[data.image_index[chosen]]
        ids, mask = data.ids[chosen, :length], data.mask[chosen, :length]
        # On a CPU the flash kernel's backward is several times slower than plain matrix products at these sizes.
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.precision == "bf16"),
        ):
            image_vectors = heads.embed_image(backbone.encode_image(images))
            text_vectors = heads.embed_text(backbone.encode_text(ids, mask), mask)
            contrast = contrastive_loss(
                image_vectors,
                text_vectors,
                logit_scale=heads.logit_scale,
                image_ids=data.image_index[chosen],
                mask_same_image=True,
            )
            # Hard pairs teach nothing before easy ones are told apart: their share grows to all.
            hard = float(torch.rand((), generator=generator)) < 1.5 * step / arguments.steps
            with torch.no_grad():
                scale = heads.logit_scale.exp() if hard else torch.zeros(())
                similarity = scale * (text_vectors @ image_vectors.T)
            wrong = negatives(similarity, data.image_index[chosen], generator)
            match, word = fused_losses(
                backbone, fused, images, ids, mask, wrong=wrong, mask_id=tokenizer.mask_id, generator=generator
            )
            loss = contrast + match + 0.5 * word
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        clamp_logit_scale(heads.logit_scale, largest=100.0)
        now = time.monotonic()
        if now - logged > 20 or step + 1 == arguments.steps:
            logged = now
            losses = f"contrast {contrast.item():.3f}  match {match.item():.3f}  word {word.item():.3f}"
            logger.info("step %d of %d, %.0f s: %s", step + 1, arguments.steps, now - started, losses)


def negatives(similarity: Tensor, image_index: Tensor, generator: torch.Generator) -> Tensor:
    """For each text (n,) the row of another picture, drawn by how well it seems to fit; similarity is (n, n)."""
    chances = similarity.float().softmax(dim=1) + 1e-6
    chances[image_index[:, None] == image_index[None]] = 0
    return torch.multinomial(chances, 1, generator=generator).squeeze(1)


def fused_losses(
    backbone: Multiway,
    fused: FusedHeads,
    images: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    wrong: Tensor,
    mask_id: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Losses of matching and of masked words; every other pair gets a wrong picture."""
    rows = torch.arange(len(ids))
    right = rows % 2 == 0
    pictures = torch.where(right, rows, wrong)
    # Words are masked in pairs of both kinds: else the mask would tell them apart. <s>, <pad> and </s> stay.
    hidden = (torch.rand(ids.shape, generator=generator) < MASKED_SHARE) & (ids > PAD + 1)
    vision, text = backbone.fuse(images[pictures], ids.masked_fill(hidden, mask_id), mask)
    match = functional.cross_entropy(fused.match(torch.cat([vision[:, 0], text[:, 0]], dim=1)).float(), right.long())
    scored = hidden & right[:, None]
    return match, functional.cross_entropy(fused.word(text[scored]).float(), ids[scored])


def epochs(length: int, *, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Full batches of indices, epoch after epoch, each in a random order."""
    while True:
        order = torch.randperm(length, generator=generator)
        yield from order[: length - length % batch_size].split(batch_size)


def make_optimizer(model: nn.Module, arguments: argparse.Namespace) -> torch.optim.Optimizer:
    named = [(name, parameter) for name, parameter in model.named_parameters()]
    plain = [parameter for name, parameter in named if parameter.ndim < 2 or "positions" in name]
    decayed = [parameter for name, parameter in named if parameter.ndim >= 2 and "positions" not in name]
    groups = [{"params": decayed, "weight_decay": arguments.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=arguments.lr)


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warm = min(1.0, (step + 1) / arguments.warmup_steps)
    return arguments.lr * warm * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))


@torch.no_grad()
def zero_shot(backbone: Multiway, heads: RetrievalHeads, split: Captioned) -> dict[str, float]:
    """Recall@1/5/10 both ways and their mean, in percent, in fp32."""
    recall = RetrievalRecall()
    for rows in torch.arange(len(split.images)).split(250):
        recall.update_images(heads.embed_image(backbone.encode_image(split.images[rows])), rows)
    for rows in torch.arange(len(split.ids)).split(250):
        vectors = heads.embed_text(backbone.encode_text(split.ids[rows], split.mask[rows]), split.mask[rows])
        recall.update_texts(vectors, rows, split.image_index[rows])
    return {name: float(value) for name, value in recall.compute().items()}


if __name__ == "__main__":
    main()
