"""BLIP and ALBEF once more, as plain functions over the official names: for the forms that no installable code has.

Written from the papers and from the behaviour of salesforce/BLIP, salesforce/ALBEF and LAVIS, with nothing of the
package: linear layers as matrix products, softmax written out, loops over layers, heads and samples; padding is cut off
rather than masked. Why trust it: where transformers has the form (BLIP with one image), the same functions equal
transformers (test_blip.py); in every form they equal LAVIS on its own weights and outputs (test_golden.py); and ALBEF
and the forms for two images differ from BLIP in a line or two each, marked [albef] and [two images] below. LAVIS has no
token types: that line alone rests on the original ALBEF's code (models/xbert.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

State = dict[str, Tensor]
Kind = Literal["blip", "albef"]


class Plain:
    """An official state dict, and what its parts compute for one sample; tokens are (n, d)."""

    def __init__(self, state: State, *, vision_heads: int, text_heads: int) -> None:
        self.state = state
        self.vision_heads = vision_heads
        self.text_heads = text_heads
        layers = [key.split(".")[3] for key in state if key.startswith("text_encoder.encoder.layer.")]
        self.text_layers = 1 + max(map(int, layers))
        # The lowest layer with cross-attention: 0 in BLIP, 6 in ALBEF.
        crossing = [key.split(".")[3] for key in state if key.startswith("text_encoder.") and ".crossattention." in key]
        self.fusion_layer = min(map(int, crossing))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        deviation = (centred.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()
        return centred / deviation * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    @staticmethod
    def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Each head for itself, side by side."""
        size = query.shape[-1] // heads
        mixed = []
        for head in range(heads):
            channels = slice(head * size, (head + 1) * size)
            scores = query[:, channels] @ key[:, channels].T / math.sqrt(size)
            weights = (scores - scores.max(dim=-1, keepdim=True).values).exp()
            mixed.append(weights / weights.sum(dim=-1, keepdim=True) @ value[:, channels])
        return torch.cat(mixed, dim=-1)

    def image(self, pixels: Tensor) -> Tensor:
        """Vision tokens of one normalised image (3, s, s); norms before the branches, one more at the end."""
        weight = self.state["visual_encoder.patch_embed.proj.weight"]
        patch = weight.shape[-1]
        rows = [
            (weight * pixels[:, top : top + patch, left : left + patch]).sum(dim=(1, 2, 3))
            + self.state["visual_encoder.patch_embed.proj.bias"]
            for top in range(0, pixels.shape[1], patch)
            for left in range(0, pixels.shape[2], patch)
        ]
        x = torch.cat([self.state["visual_encoder.cls_token"][0], torch.stack(rows)])
        x = x + self.state["visual_encoder.pos_embed"][0]
        layer = 0
        while f"visual_encoder.blocks.{layer}.norm1.weight" in self.state:
            name = f"visual_encoder.blocks.{layer}"
            query, key, value = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x, 1e-6)).chunk(3, dim=-1)
            x = x + self.linear(f"{name}.attn.proj", self.attend(query, key, value, self.vision_heads))
            hidden = self.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x, 1e-6)))
            x = x + self.linear(f"{name}.mlp.fc2", hidden)
            layer += 1
        return self.norm("visual_encoder.norm", x, 1e-6)

    def embed(self, ids: Tensor) -> Tensor:
        name = "text_encoder.embeddings"
        x = (
            self.state[f"{name}.word_embeddings.weight"][ids]
            + self.state[f"{name}.position_embeddings.weight"][: len(ids)]
        )
        if f"{name}.token_type_embeddings.weight" in self.state:  # [albef] a text is all of type 0
            x = x + self.state[f"{name}.token_type_embeddings.weight"][0]
        return self.norm(f"{name}.LayerNorm", x, 1e-12)

    def projected(self, name: str, x: Tensor, seen: Tensor) -> Tensor:
        parts = (self.linear(f"{name}.query", x), self.linear(f"{name}.key", seen), self.linear(f"{name}.value", seen))
        return self.attend(*parts, self.text_heads)

    def cross(self, layer: int, x: Tensor, images: Sequence[Tensor]) -> Tensor:
        name = f"text_encoder.encoder.layer.{layer}.crossattention"
        if f"{name}.self0.query.weight" in self.state:  # [two images] BLIP: two branches, averaged or merged
            seen = [self.projected(f"{name}.self{place}", x, image) for place, image in enumerate(images)]
            outputs = [self.linear(f"{name}.output.dense{place}", one) for place, one in enumerate(seen)]
            if f"{name}.output.merge_layer.weight" in self.state:
                return self.linear(f"{name}.output.merge_layer", torch.cat(outputs, dim=-1))
            return (outputs[0] + outputs[1]) / 2
        image = images[(layer - self.fusion_layer) % len(images)]  # [two images] ALBEF: in turn
        return self.linear(f"{name}.output.dense", self.projected(f"{name}.self", x, image))

    def layer(self, layer: int, x: Tensor, images: Sequence[Tensor]) -> Tensor:
        """Norms after the residual adds; cross-attention where there are images and the layer has one."""
        name = f"text_encoder.encoder.layer.{layer}"
        attended = self.linear(f"{name}.attention.output.dense", self.projected(f"{name}.attention.self", x, x))
        x = self.norm(f"{name}.attention.output.LayerNorm", x + attended, 1e-12)
        if images and layer >= self.fusion_layer:
            x = self.norm(f"{name}.crossattention.output.LayerNorm", x + self.cross(layer, x, images), 1e-12)
        hidden = self.gelu(self.linear(f"{name}.intermediate.dense", x))
        return self.norm(f"{name}.output.LayerNorm", x + self.linear(f"{name}.output.dense", hidden), 1e-12)

    def text(self, ids: Tensor) -> Tensor:
        """A text alone: all layers of BLIP, those below the fusion layers of ALBEF."""
        x = self.embed(ids)
        for layer in range(self.fusion_layer or self.text_layers):  # [albef]
            x = self.layer(layer, x, ())
        return x

    def fused(self, ids: Tensor, images: Sequence[Tensor], *, encoder_token: int | None) -> Tensor:
        """A text that sees images; BLIP's begins with [ENC]."""
        if encoder_token is not None:
            ids = torch.cat([torch.tensor([encoder_token]), ids[1:]])
        x = self.embed(ids)
        for layer in range(self.text_layers):
            x = self.layer(layer, x, images)
        return x

    def classify(self, tokens: Tensor) -> Tensor:
        """The head of NLVR2 on the first token."""
        return self.linear("cls_head.2", self.linear("cls_head.0", tokens[0]).clamp(min=0))


def official_state(
    kind: Kind, *, pair: bool, width: int, text_width: int, depth: int, layers: int, vocabulary: int, patch: int,
    grid: int, positions: int, embedding: int, merge_from: int = 0, token_types: bool = False, seed: int = 0,
) -> State:  # fmt: skip
    """A file of BLIP or ALBEF, its names and shapes as the official code has them, every tensor drawn at random.

    Gains from N(1, 0.2), the rest from N(0, 0.2); weights of linear layers shrink beyond width 64 as in conftest.py.
    ALBEF's upper half of `layers` are fusion layers, twice as many where there are two images. Momentum copies and a
    queue are there too.
    """
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def draw(name: str, *shape: int, mean: float = 0.0, shrunk: bool = False) -> None:
        factor = min(1.0, (64 / shape[1]) ** 0.5) if shrunk else 1.0
        state[name] = mean + 0.2 * factor * torch.randn(shape, generator=generator)

    def linear(name: str, into: int, out: int) -> None:
        draw(f"{name}.weight", out, into, shrunk=True)
        draw(f"{name}.bias", out)

    def norm(name: str, size: int) -> None:
        draw(f"{name}.weight", size, mean=1.0)
        draw(f"{name}.bias", size)

    draw("visual_encoder.cls_token", 1, 1, width)
    draw("visual_encoder.pos_embed", 1, 1 + grid**2, width)
    draw("visual_encoder.patch_embed.proj.weight", width, 3, patch, patch)
    state["visual_encoder.patch_embed.proj.weight"] *= min(1.0, (64 / width) ** 0.5)
    draw("visual_encoder.patch_embed.proj.bias", width)
    for layer in range(depth):
        name = f"visual_encoder.blocks.{layer}"
        norm(f"{name}.norm1", width)
        linear(f"{name}.attn.qkv", width, 3 * width)
        linear(f"{name}.attn.proj", width, width)
        norm(f"{name}.norm2", width)
        linear(f"{name}.mlp.fc1", width, 4 * width)
        linear(f"{name}.mlp.fc2", 4 * width, width)
    norm("visual_encoder.norm", width)

    name = "text_encoder.embeddings"
    state[f"{name}.position_ids"] = torch.arange(positions)[None]
    draw(f"{name}.word_embeddings.weight", vocabulary, text_width)
    draw(f"{name}.position_embeddings.weight", positions, text_width)
    if token_types:
        draw(f"{name}.token_type_embeddings.weight", 2, text_width)
    norm(f"{name}.LayerNorm", text_width)
    fusion_layer = 0 if kind == "blip" else layers // 2
    count = layers + (layers - fusion_layer if pair and kind == "albef" else 0)
    for layer in range(count):
        name = f"text_encoder.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{name}.attention.self.{part}", text_width, text_width)
        linear(f"{name}.attention.output.dense", text_width, text_width)
        norm(f"{name}.attention.output.LayerNorm", text_width)
        if layer >= fusion_layer:
            for image in ("0", "1") if pair and kind == "blip" else ("",):
                linear(f"{name}.crossattention.self{image}.query", text_width, text_width)
                linear(f"{name}.crossattention.self{image}.key", width, text_width)
                linear(f"{name}.crossattention.self{image}.value", width, text_width)
                linear(f"{name}.crossattention.output.dense{image}", text_width, text_width)
            if pair and kind == "blip" and layer >= merge_from:
                linear(f"{name}.crossattention.output.merge_layer", 2 * text_width, text_width)
            norm(f"{name}.crossattention.output.LayerNorm", text_width)
        linear(f"{name}.intermediate.dense", text_width, 4 * text_width)
        linear(f"{name}.output.dense", 4 * text_width, text_width)
        norm(f"{name}.output.LayerNorm", text_width)
    if pair and kind == "albef":  # neighbours share keys and values; a file has them under both names
        for layer in range(fusion_layer, count, 2):
            for rest in ("key.weight", "key.bias", "value.weight", "value.bias"):
                shared = state[f"text_encoder.encoder.layer.{layer + 1}.crossattention.self.{rest}"]
                state[f"text_encoder.encoder.layer.{layer}.crossattention.self.{rest}"] = shared.clone()

    if pair:
        linear("cls_head.0", text_width, text_width)
        linear("cls_head.2", text_width, 2)
    else:
        linear("vision_proj", width, embedding)
        linear("text_proj", text_width, embedding)
        linear("itm_head", text_width, 2)
        state["temp"] = torch.tensor(0.05)
        draw("image_queue", embedding, 8)
        state["queue_ptr"] = torch.zeros(1, dtype=torch.int64)
        draw("vision_proj_m.weight", embedding, width)
    draw("visual_encoder_m.cls_token", 1, 1, width)
    return state
