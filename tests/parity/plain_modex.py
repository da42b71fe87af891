"""The released ModeX code in plain tensor operations, on the names of its own files.

Written from a description of that code's insertion points and losses; it shares nothing with the package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

WIDTH, HEADS, FFN, MID, CLASSES, PROJECTED = 16, 4, 24, 5, 2, 6
DEPTH, IMAGE, PATCH, VOCABULARY, LENGTH, MERGE_FROM = 4, 16, 8, 30, 12, 2
# Layers of text, and the lowest that sees the image.
LAYERS = {("blip", False): (4, 0), ("blip", True): (4, 0), ("albef", False): (4, 2), ("albef", True): (6, 2)}
FORMS = sorted(LAYERS)


class PlainReleased:
    """The released code's forward passes on tensors by its names."""

    def __init__(self, family: str, *, pair: bool, seed: int = 0) -> None:
        self.family, self.pair = family, pair
        self.layers, self.first_fusion = LAYERS[family, pair]
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}
        self._draw()

    def _linear(self, name: str, width_in: int, width_out: int) -> None:
        self.state[f"{name}.weight"] = 0.2 * torch.randn(width_out, width_in, generator=self.generator)
        self.state[f"{name}.bias"] = 0.2 * torch.randn(width_out, generator=self.generator)

    def _norm(self, name: str) -> None:
        self.state[f"{name}.weight"] = 1 + 0.2 * torch.randn(WIDTH, generator=self.generator)
        self.state[f"{name}.bias"] = 0.2 * torch.randn(WIDTH, generator=self.generator)

    def _draw(self) -> None:
        patches = (IMAGE // PATCH) ** 2
        tables = {"visual_encoder.cls_token": (1, 1, WIDTH), "visual_encoder.pos_embed": (1, 1 + patches, WIDTH)}
        tables |= {"visual_encoder.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH)}
        tables |= {"visual_encoder.patch_embed.proj.bias": (WIDTH,)}
        tables |= {"text_encoder.embeddings.word_embeddings.weight": (VOCABULARY, WIDTH)}
        tables |= {"text_encoder.embeddings.position_embeddings.weight": (LENGTH, WIDTH)}
        for name, shape in tables.items():
            self.state[name] = 0.2 * torch.randn(shape, generator=self.generator)
        self.state["text_encoder.embeddings.position_ids"] = torch.arange(LENGTH)[None]
        self._norm("visual_encoder.norm")
        self._norm("text_encoder.embeddings.LayerNorm")
        for layer in range(DEPTH):
            block = f"visual_encoder.blocks.{layer}"
            self._norm(f"{block}.norm1")
            self._norm(f"{block}.norm2")
            self._linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH)
            self._linear(f"{block}.attn.proj", WIDTH, WIDTH)
            self._linear(f"{block}.mlp.fc1", WIDTH, FFN)
            self._linear(f"{block}.mlp.fc2", FFN, WIDTH)
        for layer in range(self.layers):
            self._draw_text_layer(layer)
        if self.pair:
            self._linear("cls_head.0", WIDTH, WIDTH)
            self._linear("cls_head.2", WIDTH, CLASSES)
        else:
            self._linear("vision_proj", WIDTH, PROJECTED)
            self._linear("text_proj", WIDTH, PROJECTED)
            self._linear("itm_head", WIDTH, 2)
            self.state["temp"] = torch.tensor(0.05)
        for layer in range(max(DEPTH, self.layers)):
            self._draw_modex(layer)
        # A momentum copy lags behind; queues are of training only.
        momentum = {
            f"{part}_m.{rest}": tensor + 1
            for key, tensor in self.state.items()
            for part, _, rest in [key.partition(".")]
            if part in ("visual_encoder", "text_encoder", "cls_head", "vision_proj")
        }
        self.state |= momentum | {"image_queue": torch.zeros(2, 3), "queue_ptr": torch.zeros(1)}

    def _draw_text_layer(self, layer: int) -> None:
        here = f"text_encoder.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            self._linear(f"{here}.attention.self.{part}", WIDTH, WIDTH)
        self._linear(f"{here}.attention.output.dense", WIDTH, WIDTH)
        self._norm(f"{here}.attention.output.LayerNorm")
        if layer >= self.first_fusion:
            for number in ("0", "1") if self.pair and self.family == "blip" else ("",):
                for part in ("query", "key", "value"):
                    self._linear(f"{here}.crossattention.self{number}.{part}", WIDTH, WIDTH)
                self._linear(f"{here}.crossattention.output.dense{number}", WIDTH, WIDTH)
            self._norm(f"{here}.crossattention.output.LayerNorm")
            if self.pair and self.family == "blip" and layer >= MERGE_FROM:
                self._linear(f"{here}.crossattention.output.merge_layer", 2 * WIDTH, WIDTH)
            if self.pair and self.family == "albef" and (layer - self.first_fusion) % 2:
                for part in ("key", "value"):  # neighbours share these
                    for kind in ("weight", "bias"):
                        name = f"crossattention.self.{part}.{kind}"
                        lower = f"text_encoder.encoder.layer.{layer - 1}.{name}"
                        self.state[f"{here}.{name}"] = self.state[lower].clone()
        self._linear(f"{here}.intermediate.dense", WIDTH, FFN)
        self._linear(f"{here}.output.dense", FFN, WIDTH)
        self._norm(f"{here}.output.LayerNorm")

    def _draw_modex(self, layer: int) -> None:
        """One object a layer, saved under the name of each module that calls it."""
        modules = ["visual_msa", "visual_ffn"] if layer < DEPTH else []
        if self.family == "blip":
            modules.append("cross_msa")
        else:
            modules += ["textual_msa", *(["cross_msa", "cross_ffn"] if layer >= self.first_fusion else ["textual_ffn"])]
        holders = [f"visual_encoder.blocks.{layer}"] if layer < DEPTH else []
        if layer < self.layers:
            here = f"text_encoder.encoder.layer.{layer}"
            holders += [here, f"{here}.attention.output", f"{here}.output"]
            holders += [f"{here}.crossattention.output"] if layer >= self.first_fusion else []
        for module in modules:
            kept = dict(self.state)
            if module.startswith("cross"):
                self._linear(f"{module}.down_proj", WIDTH, MID)
                for up in ("up_proj", "visual_up_proj", "multi_up_proj"):
                    self._linear(f"{module}.{up}", MID, WIDTH)
                self._linear(f"{module}.expert_weights", WIDTH, 3)
                # Else a temperature of 10 leaves the weights near a third each.
                self.state[f"{module}.expert_weights.weight"] *= 20
            else:
                self._linear(f"{module}.D_fc1", WIDTH, MID)
                self._linear(f"{module}.D_fc2", MID, WIDTH)
            made = {name: tensor for name, tensor in self.state.items() if name not in kept}
            self.state = kept
            for holder in holders:
                self.state |= {f"{holder}.modex.{name}": tensor for name, tensor in made.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], HEADS, -1).permute(0, 2, 1, 3)

        scores = heads(q) @ heads(k).mT / math.sqrt(WIDTH / HEADS)
        if mask is not None:
            scores = scores - 10000.0 * (~mask)[:, None, None, :].float()
        return (scores.softmax(dim=-1) @ heads(v)).permute(0, 2, 1, 3).reshape(q.shape)

    def modex(self, holder: str, module: str, x: Tensor) -> Tensor:
        """The adapter of a module; where the object has none of the kind, the identity."""
        name = f"{holder}.modex.{module}"
        if f"{name}.D_fc1.weight" in self.state:
            return x + self.linear(f"{name}.D_fc2", self.linear(f"{name}.D_fc1", x).clamp(min=0))
        if f"{name}.down_proj.weight" not in self.state:
            return x
        weights = (self.linear(f"{name}.expert_weights", x) / 10).softmax(dim=-1)
        hidden = self.linear(f"{name}.down_proj", x).clamp(min=0)
        for number, up in enumerate(("up_proj", "visual_up_proj", "multi_up_proj")):
            x = x + weights[..., number : number + 1] * self.linear(f"{name}.{up}", hidden)
        return x

    def image(self, images: Tensor) -> Tensor:
        weight, bias = (self.state[f"visual_encoder.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
        x = functional.conv2d(images, weight, bias, stride=PATCH).flatten(2).mT
        x = torch.cat([self.state["visual_encoder.cls_token"].expand(len(x), -1, -1), x], dim=1)
        x = x + self.state["visual_encoder.pos_embed"]
        for layer in range(DEPTH):
            block = f"visual_encoder.blocks.{layer}"
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
            x = x + self.modex(block, "visual_msa", self.linear(f"{block}.attn.proj", self.attend(q, k, v, None)))
            hidden = functional.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.modex(block, "visual_ffn", self.linear(f"{block}.mlp.fc2", hidden))
        return self.norm("visual_encoder.norm", x, 1e-6)

    def embed(self, ids: Tensor) -> Tensor:
        words = self.state["text_encoder.embeddings.word_embeddings.weight"][ids]
        positions = self.state["text_encoder.embeddings.position_embeddings.weight"][: ids.shape[1]]
        return self.norm("text_encoder.embeddings.LayerNorm", words + positions, 1e-12)

    def text_layer(self, layer: int, x: Tensor, mask: Tensor, memory: Sequence[Tensor], *, text_mode: bool) -> Tensor:
        here = f"text_encoder.encoder.layer.{layer}"
        crosses = not text_mode and layer >= self.first_fusion
        x = self.modex(here, "cross_msa" if crosses else "textual_msa", x)

        def project(name: str, part: str, of: Tensor) -> Tensor:
            return self.linear(f"{here}.{name}.{part}", of)

        mixed = self.attend(*(project("attention.self", part, x) for part in ("query", "key", "value")), mask)
        branch = self.modex(f"{here}.attention.output", "textual_msa", project("attention.output", "dense", mixed))
        x = self.norm(f"{here}.attention.output.LayerNorm", branch + x, 1e-12)
        if crosses:
            branch = self.modex(f"{here}.crossattention.output", "cross_msa", self.cross(layer, here, x, memory))
            x = self.norm(f"{here}.crossattention.output.LayerNorm", branch + x, 1e-12)
        hidden = functional.gelu(project("intermediate", "dense", x))
        kind = "textual_ffn" if text_mode else "cross_ffn"
        branch = self.modex(f"{here}.output", kind, project("output", "dense", hidden))
        return self.norm(f"{here}.output.LayerNorm", branch + x, 1e-12)

    def cross(self, layer: int, here: str, x: Tensor, memory: Sequence[Tensor]) -> Tensor:
        name = f"{here}.crossattention"

        def one(number: str, image: Tensor) -> Tensor:
            q = self.linear(f"{name}.self{number}.query", x)
            k, v = (self.linear(f"{name}.self{number}.{part}", image) for part in ("key", "value"))
            return self.linear(f"{name}.output.dense{number}", self.attend(q, k, v, None))

        if not (self.pair and self.family == "blip"):
            return one("", memory[(layer - self.first_fusion) % len(memory)])
        both = [one("0", memory[0]), one("1", memory[1])]
        if layer < MERGE_FROM:
            return (both[0] + both[1]) / 2
        return self.linear(f"{name}.output.merge_layer", torch.cat(both, dim=-1))

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Mode "text": ALBEF stops below the fusion layers."""
        x = self.embed(ids)
        for layer in range(self.first_fusion or self.layers):
            x = self.text_layer(layer, x, mask, (), text_mode=True)
        return x

    def fused(self, memory: Sequence[Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        """Mode "multimodal", from the ids."""
        if self.family == "blip":
            ids = torch.cat([torch.full_like(ids[:, :1], VOCABULARY - 1), ids[:, 1:]], dim=1)
        x = self.embed(ids)
        for layer in range(self.layers):
            x = self.text_layer(layer, x, mask, memory, text_mode=False)
        return x

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor once, in double precision, with a gradient; the aliases of an adapter become one tensor."""
        found: dict[str, Tensor] = {}
        for name, tensor in self.state.items():
            if tensor.is_floating_point() and not re.match(r"\w+_m\.|image_queue|queue_ptr", name):
                key = re.sub(r".*?\.(\d+)\.(?:.*\.)?modex\.", r"\1.modex.", name)
                self.state[name] = found.setdefault(key, tensor.double().requires_grad_())
        return found

    def training_loss(
        self, images: Tensor, ids: Tensor, mask: Tensor, image_ids: Tensor, *, distillation: float
    ) -> Tensor:
        """ALBEF's loss for retrieval on a first batch, when the momentum model is the model and the queue is empty.

        The hardest negative is taken where theirs draws one.
        """
        state, count = self.state, len(images)
        seen, text = self.image(images), self.text(ids, mask)
        image_features = functional.normalize(self.linear("vision_proj", seen[:, 0]), dim=-1)
        text_features = functional.normalize(self.linear("text_proj", text[:, 0]), dim=-1)
        same = image_ids[:, None] == image_ids
        scores = [own @ other.detach().T / state["temp"] for own, other in (
            (image_features, text_features), (text_features, image_features)
        )]  # fmt: skip
        contrast = torch.zeros((), dtype=images.dtype)
        for side in scores:
            target = (1 - distillation) * same / same.sum(dim=1, keepdim=True) + distillation * side.detach().softmax(1)
            contrast = contrast - (side.log_softmax(dim=1) * target).sum(dim=1).mean() / 2
        hard_text, hard_image = (side.detach().softmax(dim=1).masked_fill(same, 0).argmax(dim=1) for side in scores)

        def match(texts: Tensor, rows: Tensor, memory: Tensor) -> Tensor:
            """Mode "fusion": the upper layers go on from the states of mode "text"."""
            for layer in range(self.first_fusion, self.layers):
                texts = self.text_layer(layer, texts, rows, [memory], text_mode=False)
            return self.linear("itm_head", texts[:, 0])

        right = match(text, mask, seen)
        wrong = match(
            torch.cat([text, text[hard_text]]), torch.cat([mask, mask[hard_text]]), torch.cat([seen[hard_image], seen])
        )
        labels = torch.tensor([1] * count + [0] * 2 * count)
        return contrast + functional.cross_entropy(torch.cat([right, wrong]), labels)
