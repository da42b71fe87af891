from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.full import FullFineTuning
from mwa_lightning.adapters.head_only import HeadOnly
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.adapters.none import NoAdapter
from mwa_lightning.tasks.model import RetrievalModel, parameter_figures, parameter_table, trained_parameters

MakeModel = Callable[..., RetrievalModel]

# Width 16, two layers: an extractor of mid 4 has 16*4+4 + 4*16+16 = 148 parameters, an enhancer of 6 has 214.
ADDED = 2 * 2 * 148 + 2 * 214
HEADS = 2 * 16 * 16 + 1


def small_mwa() -> MultiWayAdapter:
    return MultiWayAdapter(mid_dim=4, enhancer_dim=6)


class TestEncoding:
    def test_encode__unit_length_and_own_rows(self, make_model: MakeModel) -> None:
        model = make_model(small_mwa()).eval()
        images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
        ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1], [0, 9, 8, 2]])
        vision, text = model.encode_image(images), model.encode_text(ids, ids != 1)
        assert vision.shape == text.shape == (3, 16)
        for embeddings in (vision, text):
            assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-6)
        # Padding and the company of other rows change nothing.
        alone = model.encode_text(ids[1:2, :3], torch.ones(1, 3, dtype=torch.bool))
        assert torch.allclose(alone, text[1:2], atol=1e-5)
        assert torch.allclose(model.encode_image(images[2:]), vision[2:], atol=1e-5)

    def test_encode__empty_batch_has_gradients_of_zero(self, make_model: MakeModel) -> None:
        model = make_model(small_mwa())
        images, ids = torch.empty(0, 3, 16, 16), torch.empty(0, 5, dtype=torch.int64)
        total = model.encode_image(images).sum() + model.encode_text(ids, ids != 1).sum()
        total.backward()
        for name, parameter in trained_parameters(model).items():
            assert name == "heads.logit_scale" or (parameter.grad is not None and not parameter.grad.any()), name


class TestModes:
    def test_train__frozen_stays_in_eval(self, make_model: MakeModel) -> None:
        model = make_model(small_mwa(), drop_path=0.5)
        for _ in range(2):
            assert not any(module.training for module in model.backbone.modules())
            assert all(module.training for module in (*model.adapter.modules(), *model.heads.modules()))
            assert model.training
            model.eval()
            assert not any(module.training for module in model.modules())
            nn.Sequential(model).train()

    def test_train__everything_with_full_fine_tuning(self, make_model: MakeModel) -> None:
        model = make_model(FullFineTuning(), drop_path=0.5)
        assert all(block.training for block in model.backbone.blocks)

    def test_train__nothing_without_adapter(self, make_model: MakeModel) -> None:
        assert not any(module.training for module in make_model(NoAdapter()).train().modules())

    def test_train__modules_without_parameters_follow_the_one_above(self, make_model: MakeModel) -> None:
        class WithDropout(HeadOnly):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout())

        model = make_model(WithDropout())
        assert model.adapter.layers[1].training
        model.adapter.layers.requires_grad_(False)
        assert not model.train().adapter.layers[1].training


class TestAccounts:
    def test_trained_parameters__names(self, make_model: MakeModel) -> None:
        heads = {"heads.vision.weight", "heads.text.weight", "heads.logit_scale"}
        assert trained_parameters(make_model(HeadOnly())).keys() == heads
        assert not trained_parameters(make_model(NoAdapter()))
        names = trained_parameters(make_model(small_mwa())).keys()
        assert names > heads
        assert all(name.startswith("adapter.") for name in names - heads)

    @pytest.mark.parametrize(
        ("adapter", "trainable", "added"),
        [(small_mwa, ADDED + HEADS, ADDED), (HeadOnly, HEADS, 0), (NoAdapter, 0, 0)],
    )
    def test_parameter_figures__counts(
        self, make_model: MakeModel, adapter: Callable[[], AdapterMethod], trainable: int, added: int
    ) -> None:
        model = make_model(adapter())
        backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
        assert parameter_figures(model) == {
            "params/trainable": trainable,
            "params/total": backbone + added + HEADS,
            "params/adapter_share": added / backbone,
        }

    def test_parameter_table__rows(self, make_model: MakeModel) -> None:
        model = make_model(small_mwa())
        rows = {row.part: row for row in parameter_table(model)}
        assert rows["adapter.extractors"][1:3] == (4 * 148, 4 * 148)
        assert rows["adapter.enhancers"][1:3] == (2 * 214, 2 * 214)
        assert rows["heads.vision"][1:3] == (256, 256)
        assert rows["heads.logit_scale"][1:3] == (1, 1)
        assert rows["backbone.blocks"].trainable == 0 < rows["backbone.blocks"].total
        figures = parameter_figures(model)
        assert sum(row.trainable for row in rows.values()) == figures["params/trainable"]
        assert sum(row.total for row in rows.values()) == figures["params/total"]
        share = sum(row.share for row in rows.values())
        assert share == pytest.approx(figures["params/trainable"] / figures["params/total"])
        assert all(row.unused == 0 for row in rows.values())

    def test_parameter_table__declared_unused(self, make_model: MakeModel) -> None:
        model = make_model(small_mwa())
        model.adapter.declared_unused = frozenset({"adapter.enhancers.0.inner.up.bias"})
        rows = {row.part: row.unused for row in parameter_table(model)}
        assert rows["adapter.enhancers"] == 16
        assert sum(rows.values()) == 16
