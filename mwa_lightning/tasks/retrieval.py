"""Image-text retrieval as a LightningModule: it wires model, loss and metrics, nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.data.samples.records import ImageBatch, TextBatch, TrainBatch
from mwa_lightning.errors import ConfigError
from mwa_lightning.metrics.recall import RetrievalRecall
from mwa_lightning.metrics.reranking import Ranking, reranked_figures
from mwa_lightning.report.predictions import write_predictions
from mwa_lightning.tasks.base import AdaptationTask, Stage
from mwa_lightning.tasks.heads import EmbeddingHeads, FusionRetrievalHeads, retrieval_heads
from mwa_lightning.tasks.losses.functions import (
    clamp_logit_scale,
    contrastive_loss,
    gather_rows,
    momentum_contrastive_loss,
    sigmoid_loss,
)
from mwa_lightning.tasks.losses.matching import Pairs, Similarity, gather_pairs, matching_logits, matching_loss
from mwa_lightning.tasks.losses.momentum import MomentumQueue
from mwa_lightning.tasks.losses.signs import (
    Mean,
    Signs,
    knowing_nothing_of_contrast,
    knowing_nothing_of_matching,
    variance,
)
from mwa_lightning.tasks.losses.temperature import Similarities, similarities, start_logits, start_matching
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.tasks.reranking import Reranker

if TYPE_CHECKING:
    from mwa_lightning.data.datamodule import RetrievalDataModule

log = logging.getLogger(__name__)

Loss = Literal["auto", "softmax", "sigmoid"]
MatchingNegatives = Literal["own", "all"]
USUAL_CANDIDATES = 128  # of ALBEF and BLIP on Flickr30K; 256 on COCO
SAMPLES_TO_FIT = 512  # of the training data, or one global batch of more
QUEUE = "momentum_queue"  # in checkpoints


class Encoded(NamedTuple):
    """A batch as the model has it: tokens (b, n_img, d_v) and (b, n_txt, d_t), embeddings (b, d) of unit length."""

    image_tokens: Tensor
    text_tokens: Tensor
    images: Tensor
    texts: Tensor


class RetrievalTask(AdaptationTask[RetrievalModel, RetrievalRecall]):
    """Trains with a contrastive loss over the global batch, evaluates with Recall@K.

    With a fusion encoder (BLIP, ALBEF) the loss has a second part: whether a text that sees an image belongs to it.
    What the head for this says decides among the best candidates in evaluation, too.

    Evaluation runs over two loaders, one of images and one of captions, in any order. It logs `val/...` and
    `test/...` figures in percent (`i2t_r1` and its kin, `mean_recall`); after re-ranking, those of the embeddings alone
    stand under `cosine/`.

    Args:
        model: What trains and what is evaluated.
        loss: `softmax` over the batch both ways, `sigmoid` of each pair (SigLIP's), or `auto`: the one that the
            backbone was pretrained with.
        logit_scale: The scale of the logits at the first step: `pretrained`, a number, or `fitted` to the embeddings of
            some training batches (see `temperature`), with the bias of the sigmoid loss and the matching head's scale
            and bias.
        logit_scale_max: The bound of the scale of the logits in the softmax loss; it is applied after each step of
            the optimizer.
        mask_same_image: Whether other pairs of the same image are left out of the loss; the official recipes
            take them as negatives.
        rerank: How many candidates of each query are scored by the matching head: 0 = none, `auto` = 128 where there is
            one.
        rerank_cosine: Whether the cosine is added to its score.
        matching_negatives: Whose pairs the wrong partners of matching come from: those of the same process (`own`), as
            in ALBEF and in BLIP on Flickr30K, or of all processes (`all`), as in BLIP on COCO. The contrastive loss has
            those of all either way.
        queue_size: Embeddings of earlier batches, by a slow copy of what trains, that are negatives too; None = off.
        momentum: How slow the copy is: its share of itself that it keeps at each batch.
        distillation: Share of the contrastive target that is the copy's opinion; it grows from 0 over the first
            `distillation_epochs`.
        one_k: Whether to report the 1K figure of COCO too, of the embeddings alone.
        keep_predictions: Whether the embeddings of a test run stay in `test_metric.embedded`, in file order.
        configure: Makes optimizer and schedule for this task; only training needs it.

    Raises:
        ConfigError: If `logit_scale_max` is not above 1, there is no such loss, or the heads lack what is asked for.
    """

    def __init__(
        self,
        *,
        model: RetrievalModel,
        loss: Loss = "auto",
        logit_scale: float | Literal["pretrained", "fitted"] = "pretrained",
        logit_scale_max: float = 100.0,
        mask_same_image: bool = True,
        rerank: int | Literal["auto"] = "auto",
        rerank_cosine: bool = True,
        matching_negatives: MatchingNegatives = "own",
        queue_size: int | None = None,
        momentum: float = 0.995,
        distillation: float = 0.4,
        distillation_epochs: float = 1.0,
        one_k: bool = False,
        keep_predictions: bool = False,
        configure: Callable[[RetrievalTask], OptimizerLRScheduler] | None = None,
    ) -> None:
        if not logit_scale_max > 1:
            raise ConfigError(f"task.logit_scale_max={logit_scale_max}: give a number above 1, such as 100")
        can_match = isinstance(model.heads, FusionRetrievalHeads)
        for key, value in (("rerank", rerank), ("queue_size", queue_size)):
            if value not in ("auto", 0, None) and not can_match:
                raise ConfigError(
                    f"task.{key}={value}: {model.backbone.name} has no head for image-text matching, where image and "
                    f"text meet; set task.{key}={'0' if key == 'rerank' else 'null'}, or take a BLIP or ALBEF backbone"
                )
        candidates = (USUAL_CANDIDATES if can_match else 0) if rerank == "auto" else rerank
        super().__init__(
            model=model,
            val_metric=RetrievalRecall(one_k=one_k, keep=candidates > 0),
            test_metric=RetrievalRecall(one_k=one_k, keep=keep_predictions or candidates > 0),
            configure=configure,
        )
        self.loss = self._own_loss(loss)
        self.logit_scale = logit_scale
        self.logit_scale_max = logit_scale_max
        self.mask_same_image = mask_same_image
        self.reranker = Reranker(k=candidates, add_cosine=rerank_cosine) if candidates else None
        self.ranking: Ranking | None = None
        if matching_negatives not in get_args(MatchingNegatives):
            choices = ", ".join(get_args(MatchingNegatives))
            raise ConfigError(f"task.matching_negatives={matching_negatives}: choose one of {choices}")
        self.matching_negatives = matching_negatives
        self.queue = None if queue_size is None else MomentumQueue(size=queue_size, decay=momentum)
        self.distillation = distillation
        self.distillation_epochs = distillation_epochs
        self._epochs = 0.0  # trained so far, parts of one included

    @classmethod
    def make_heads(cls, backbone: Backbone, shape: None = None, *, name: str) -> EmbeddingHeads:
        return retrieval_heads(backbone)

    @classmethod
    def make_model(cls, backbone: Backbone, adapter: AdapterMethod, heads: EmbeddingHeads) -> RetrievalModel:
        return RetrievalModel(backbone=backbone, adapter=adapter, heads=heads)

    @classmethod
    def untrained(cls, names: str) -> str | None:
        return None  # a file of the encoders alone may be wanted for its embeddings

    @classmethod
    def data_options(cls, data: Any) -> dict[str, Any]:
        return {"one_k": data.get("one_k", False)}

    def scoring(self) -> tuple[str, str]:
        if self.reranker is not None:
            return "re-ranked", f"the best {self.reranker.k} re-ranked by the matching head"
        return "cosine", "cosine scores"

    @property
    def contrasts_one_batch(self) -> bool:
        return self.queue is None

    @property
    def samples_to_fit(self) -> int:
        """Some batches, where the scale is to be fitted or set."""
        return 0 if self.logit_scale == "pretrained" else SAMPLES_TO_FIT

    def fit_start(self, batches: Sequence[TrainBatch]) -> None:
        """Fit the logits to batches of the training data, alike in all processes; frozen heads stay as they are."""
        heads = self.model.heads
        if not heads.logit_scale.requires_grad:
            log.warning("task.logit_scale=%s: the scale is frozen with this adapter, and stays", self.logit_scale)
            return
        found, matching = self.model.run(self._look, batches)
        logits = start_logits(heads, found, loss=self.loss, wanted=self.logit_scale, largest=self.logit_scale_max)
        log.info("%s", logits)
        if matching is not None:
            assert isinstance(heads, FusionRetrievalHeads)
            log.info("%s", start_matching(heads, *matching))

    def _look(self, batches: Sequence[TrainBatch]) -> tuple[list[Similarities], tuple[Tensor, Tensor] | None]:
        """The similarities in each global batch, and margins and labels of matching where its head is to be fitted."""
        heads, backbone = self.model.heads, self.model.backbone
        encoded = [self._encode(batch) for batch in batches]
        found = [
            similarities(
                *(gather_rows(part, batch.shares) for part in (each.images, each.texts, batch.image_ids)),
                mask_same_image=self.mask_same_image,
            )
            for each, batch in zip(encoded, batches, strict=True)
        ]
        if not isinstance(heads, FusionRetrievalHeads) or not heads.matching.weight.requires_grad:
            return found, None
        assert isinstance(backbone, FusionEncoder)
        parts = [
            matching_logits(backbone, heads, **self._to_match(batch, each))
            for each, batch in zip(encoded, batches, strict=True)
        ]
        margins = gather_rows(torch.cat([logits[:, 1] - logits[:, 0] for logits, _ in parts]))
        return found, (margins, gather_rows(torch.cat([labels for _, labels in parts])))

    def check_share(self, samples: int) -> None:
        """Raise ConfigError where matching would meet right pairs alone, and learn that all is one."""
        if samples < 2 and self.matching_negatives == "own" and isinstance(self.model.heads, FusionRetrievalHeads):
            raise ConfigError(
                "each process has one sample of a global batch, so that matching has no negatives and learns nothing; "
                "take fewer processes, task.matching_negatives=all or, where the run begins, a larger data.batch_size"
            )

    def model_step(self, batch: TrainBatch) -> Tensor:
        """The loss of a batch of pairs."""
        heads, backbone = self.model.heads, self.model.backbone
        encoded = self._encode(batch)
        images, texts = encoded.images, encoded.texts
        slow = None if self.queue is None else self.queue.embed(self.model, batch)
        guessing = self._knowing_nothing(batch, images)
        if slow is None:
            loss = self._contrast(images, texts, batch)
        else:
            loss = self._contrast_queue(images, texts, slow, batch)
        variances = {"images": variance(images), "texts": variance(texts)}
        self.signs = [Signs("contrast", loss.detach(), guessing, variances)]
        if isinstance(heads, FusionRetrievalHeads):
            assert isinstance(backbone, FusionEncoder)
            pairs = self._to_match(batch, encoded, slow)
            matching = matching_loss(backbone, heads, **pairs)
            guessing = knowing_nothing_of_matching(batch.image_ids, pairs["candidates"].image_ids)
            self.signs.append(Signs("matching", matching.detach(), guessing, {}))
            loss = loss + matching
        return loss

    def _encode(self, batch: TrainBatch) -> Encoded:
        heads, backbone = self.model.heads, self.model.backbone
        image_tokens = backbone.encode_image(batch.images)
        text_tokens = backbone.encode_text(batch.ids, batch.mask)
        images, texts = heads.embed_image(image_tokens), heads.embed_text(text_tokens, batch.mask)
        return Encoded(image_tokens, text_tokens, images, texts)

    def _to_match(
        self, batch: TrainBatch, encoded: Encoded, slow: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Any]:
        """What `matching_loss` takes of a batch; with a queue, `slow` are the embeddings that the slow copy gives."""
        backbone = self.model.backbone
        assert isinstance(backbone, FusionEncoder)
        own = Pairs(encoded.image_tokens, batch.ids, batch.mask, batch.image_ids)
        images, texts = encoded.images, encoded.texts
        if backbone.fusion_layers:
            # ALBEF's own code matches the texts as encoded for the contrast (its fusion layers go on from there),
            # and looks for hard negatives among the embeddings of the momentum encoder; BLIP's does neither.
            own = own._replace(text_tokens=encoded.text_tokens)
            images, texts = slow or (images, texts)
        candidates = own
        if self.matching_negatives == "all":
            candidates = gather_pairs(own, batch.shares)
            images, texts = gather_rows(torch.stack([images, texts], dim=1), batch.shares).unbind(dim=1)
        with torch.no_grad():
            scale = self.model.heads.logit_scale.exp()
            similarity = Similarity(scale * encoded.images @ texts.T, scale * encoded.texts @ images.T)
        return {"own": own, "candidates": candidates, "similarity": similarity}

    def _knowing_nothing(self, batch: TrainBatch, like: Tensor) -> Mean:
        """What the contrastive part of the loss is where all looks the same."""
        return knowing_nothing_of_contrast(
            batch.image_ids,
            mask_same_image=self.mask_same_image and self.queue is None,
            shares=batch.shares,
            further=0 if self.queue is None else len(self.queue.keys(like)[0]),
            sigmoid=self.loss == "sigmoid" and self.queue is None,
        )

    def _contrast(self, images: Tensor, texts: Tensor, batch: TrainBatch) -> Tensor:
        """The contrastive part of the loss, of embeddings (b, d)."""
        heads = self.model.heads
        options: dict[str, Any] = {
            "image_ids": batch.image_ids,
            "mask_same_image": self.mask_same_image,
            "shares": batch.shares,
        }
        if self.loss == "softmax":
            loss = contrastive_loss(images, texts, logit_scale=heads.logit_scale, **options)
            # A bias would move all logits alike: it stays as it is, by a gradient of zero rather than none.
            return loss if heads.logit_bias is None else loss + 0 * heads.logit_bias.sum()
        assert heads.logit_bias is not None
        return sigmoid_loss(images, texts, logit_scale=heads.logit_scale, logit_bias=heads.logit_bias, **options)

    def _contrast_queue(self, images: Tensor, texts: Tensor, slow: tuple[Tensor, Tensor], batch: TrainBatch) -> Tensor:
        """The contrastive part of the loss where there is a queue; the batch, as `slow` has it, then enters it."""
        assert self.queue is not None
        ramp = min(1.0, self._epochs / self.distillation_epochs) if self.distillation_epochs else 1.0
        loss = momentum_contrastive_loss(
            images,
            texts,
            slow=slow,
            queue=self.queue.keys(images),
            logit_scale=self.model.heads.logit_scale,
            image_ids=batch.image_ids,
            distillation=self.distillation * ramp,
            shares=batch.shares,
        )
        self.queue.extend(*slow, batch.image_ids, shares=batch.shares)
        return loss

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """One step; the logged loss is that of the global batch."""
        self._epochs = self.current_epoch + batch_idx / self.trainer.num_training_batches
        loss = super().training_step(batch, batch_idx)
        scale = self.model.heads.logit_scale.detach().exp()
        self.log("train/logit_scale", scale, batch_size=len(batch.sample_ids))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then bound the logit scale: before any callback sees the weights or writes a checkpoint."""
        super().optimizer_step(*args, **kwargs)
        if self.loss == "softmax":
            clamp_logit_scale(self.model.heads.logit_scale, largest=self.logit_scale_max)

    def update(self, batch: ImageBatch | TextBatch, metric: RetrievalRecall) -> None:
        """Embed a batch of images or captions."""
        if isinstance(batch, ImageBatch):
            tokens = self.model.backbone.encode_image(batch.images)
            metric.update_images(self.model.heads.embed_image(tokens), batch.image_index)
            if self.reranker is not None:
                self.reranker.add_images(tokens, batch.image_index)
        else:
            if self.reranker is not None:
                self.reranker.add_texts(batch.ids, batch.mask, batch.text_index)
            metric.update_texts(self.model.encode_text(batch.ids, batch.mask), batch.text_index, batch.image_index)

    def begin(self, metric: RetrievalRecall, stage: Stage) -> None:
        """Start with empty rows: a process that gets no batch takes part in the gathering all the same."""
        rows = torch.empty(0, self.model.heads.width, device=self.device)
        index = torch.empty(0, dtype=torch.int64, device=self.device)
        metric.update_images(rows, index)
        metric.update_texts(rows, index, index)
        if self.reranker is not None:
            self.reranker.reset()

    def figures(self, metric: RetrievalRecall) -> dict[str, Tensor]:
        """Those of the embeddings, or of what the matching head makes of them."""
        figures = super().figures(metric)
        if self.reranker is None:
            return figures
        assert metric.embedded is not None
        with self.trainer.precision_plugin.forward_context():
            self.ranking = self.model.run(self.reranker.rank, metric.embedded, self.model)
        self.reranker.reset()
        reranked = reranked_figures(self.ranking, metric.embedded)
        return {f"cosine/{name}": value for name, value in figures.items()} | {
            name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in reranked.items()
        }

    @property
    def scored_pairs(self) -> Tensor | None:
        """The pairs that were re-ranked, in the order in which they were scored (see `Reranker`); None without it."""
        return None if self.reranker is None else self.reranker.scored

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.queue is not None:
            checkpoint[QUEUE] = self.queue.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.queue is not None:
            self.queue.load_state_dict(checkpoint.get(QUEUE))

    def write_predictions(self, path: Path, data: RetrievalDataModule) -> None:
        """Write the embeddings of the split that was tested, and the re-ranked candidates where there are some."""
        embedded = self.test_metric.embedded
        assert embedded is not None, "make the task with keep_predictions"
        pictures = data.split(data.test_split).pictures
        write_predictions(
            path,
            images=embedded.images,
            texts=embedded.texts,
            text_image=embedded.text_image,
            image_ids=pictures.image_ids.tolist() if pictures.labels is None else list(pictures.labels),
            ranking=self.ranking,
        )

    def _own_loss(self, loss: Loss) -> Loss:
        """The loss that is meant. Raises ConfigError if there is no such loss, or none for these heads."""
        if loss not in get_args(Loss):
            raise ConfigError(f"task.loss={loss}: choose one of {', '.join(get_args(Loss))}")
        sigmoid = self.model.heads.logit_bias is not None
        if loss == "auto":
            return "sigmoid" if sigmoid else "softmax"
        if loss == "sigmoid" and not sigmoid:
            raise ConfigError(
                f"task.loss=sigmoid: it needs a logit bias, which {self.model.backbone.name} has not; take "
                "task.loss=softmax, or a SigLIP backbone"
            )
        return loss
