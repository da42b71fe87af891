from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from mwa_lightning.cli.config.groups import group_options
from mwa_lightning.errors import ConfigError, ExpectationMissed
from mwa_lightning.report.published_results import Facts, check, check_name, compare, names, published, warning
from mwa_lightning.report.tables import RECALLS

ROOT = Path(__file__).parents[2]
# What evaluating the official weights on the official data is.
OURS = Facts(
    model="beit3_base",
    backbone="beit3_base",
    weights="beit3_base_patch16_384_coco_retrieval.pth",
    data="coco",
    split="test (5,000 images)",
    our_split="test",
    images=5000,
    resolution=384,
    protocol="weights as they are, cosine scores",
    training=None,
    scores="cosine",
)


@pytest.mark.parametrize("name", names())
def test_published__every_entry_is_whole(name: str) -> None:
    entry = published(name)
    facts = entry.facts
    assert all((facts.model, facts.weights, facts.data, facts.split, facts.protocol, entry.source))
    assert facts.data in ("coco", "flickr30k", "nlvr2")
    assert facts.data in name
    assert facts.resolution in (None, 224, 336, 364, 384)
    assert facts.backbone in (None, "none", *group_options("backbone"))
    assert (facts.our_split is None) == (facts.split == "not stated")
    assert facts.images == {"coco": 5000, "flickr30k": 1000, "nlvr2": None}[facts.data]
    assert facts.training in ("zero-shot", "fine-tuned", "adapted")
    assert facts.scores in (None, "cosine", "re-ranked", "argmax")
    assert isinstance(entry.verified, bool)
    assert entry.tolerance in (0.5, 1.0)
    expected = {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)} if facts.data != "nlvr2" else {"accuracy"}
    assert set(entry.figures) in (expected, {"i2t_r1", "t2i_r1"})
    assert all(30 < value <= 100 for value in entry.figures.values())


def test_names__discovered() -> None:
    assert len(names()) == 69
    assert len(set(names())) == 69


def test_published__figures_as_printed_by_the_authors() -> None:
    assert published("beit3_large_flickr30k").figures == {"i2t_r1": 97.2, "t2i_r1": 88.1}
    assert published("beit3_base_indomain_nlvr2_test").figures == {"accuracy": 85.3}
    # One source prints the COCO row of this model again for Flickr30K.
    assert published("albef_flickr30k").figures["i2t_r1"] == 95.9
    clip = published("clip_l14_336_coco_zero_shot").figures
    assert list(clip.values()) == [57.9, 81.2, 87.9, 37.1, 61.6, 71.5]


def test_published__unknown_name_suggests_the_nearest() -> None:
    said = r"the nearest are beit3_base_coco, .*, and all \d+ are in .*published\.yaml"
    with pytest.raises(ConfigError, match=said) as raised:
        published("beit3-base-coco")
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="the nearest are"):
        published("")


class TestCompare:
    @pytest.mark.parametrize(
        ("distance", "within"), [(0.0, True), (0.5, True), (-0.5, True), (0.51, False), (-0.51, False)]
    )
    def test_compare__tolerance_either_way(self, distance: float, within: bool) -> None:
        metrics = {"test/i2t_r1": 79.1 + distance, "test/t2i_r1": 61.4, "test/i2t_r5": 0.0}
        comparison = compare("beit3_base_coco", metrics, OURS)
        assert [row.figure for row in comparison.rows] == ["i2t_r1", "t2i_r1"]
        assert comparison.rows[0].within is within
        assert comparison.rows[0].difference == pytest.approx(distance)
        assert comparison.rows[1].within
        if within:
            check(comparison)
        else:
            with pytest.raises(
                ExpectationMissed, match=r"1 of 2 metrics .* farthest i2t_r1, ours 7.*published 79\.10"
            ) as raised:
                check(comparison)
            assert raised.value.exit_code == 3
            assert "\n" not in str(raised.value)

    def test_check__names_the_farthest(self) -> None:
        metrics = {"val/i2t_r1": 78.0, "val/t2i_r1": 20.0}
        with pytest.raises(ExpectationMissed, match=r"2 of 2 .* farthest t2i_r1"):
            check(compare("beit3_base_coco", metrics, OURS, prefix="val/"))

    def test_compare__not_a_number_is_a_miss(self) -> None:
        metrics = {"test/i2t_r1": float("nan"), "test/t2i_r1": 61.4}
        with pytest.raises(ExpectationMissed):
            check(compare("beit3_base_coco", metrics, OURS))


class TestAgreement:
    METRICS = MappingProxyType({"test/i2t_r1": 79.1, "test/t2i_r1": 61.4})

    def test_agreement__official_weights_on_official_data(self) -> None:
        comparison = compare("beit3_base_coco", self.METRICS, OURS)
        assert set(comparison.agreement.values()) == {True}
        assert comparison.differing == []
        assert warning(comparison) is None

    @pytest.mark.parametrize(
        ("change", "differing"),
        [
            ({"backbone": "beit3_large"}, ["model"]),
            ({"weights": "beit3_base_itc_patch16_224.pth"}, ["weights"]),
            ({"weights": "random"}, ["weights"]),
            ({"data": "flickr30k"}, ["data"]),
            ({"our_split": "val"}, ["split"]),
            ({"images": 4999}, ["split"]),
            ({"resolution": 224}, ["resolution"]),
            ({"training": "adapted"}, ["protocol"]),
            ({"scores": "re-ranked"}, ["protocol"]),
            ({"training": "fine-tuned"}, []),
            ({"resolution": 224, "training": "adapted"}, ["resolution", "protocol"]),
        ],
    )
    def test_agreement__what_differs_is_named(self, change: dict, differing: list[str]) -> None:
        near = compare("beit3_base_coco", self.METRICS, replace(OURS, **change))
        far = compare("beit3_base_coco", {"test/i2t_r1": 50.0, "test/t2i_r1": 61.4}, replace(OURS, **change))
        assert near.differing == differing
        check(near)  # a warning, not a miss: the figures are what is expected
        line = warning(near)
        with pytest.raises(ExpectationMissed) as raised:
            check(far)
        if differing:
            named = " and ".join(differing)
            assert line is not None
            assert f"not of the same {named} as" in line
            assert str(raised.value).endswith(f"; not of the same {named}")
        else:
            assert line is None
            assert str(raised.value).endswith("; compare model, weights, data, split, resolution and protocol above")

    def test_agreement__what_is_not_stated_cannot_be_told(self) -> None:
        ours = replace(OURS, backbone="clip_b32", weights="model.safetensors", resolution=224)
        metrics = {f"test/{name}": 50.0 for name in published("clip_b32_coco_zero_shot").figures}
        told = compare("clip_b32_coco_zero_shot", metrics, ours).agreement
        assert told == dict.fromkeys(told, True) | {"weights": None}  # it says where they come from, no file
        told = compare("beit3_giant_coco", metrics, OURS).agreement
        assert (told["model"], told["resolution"], told["protocol"]) == (False, None, None)
        told = compare("clip_full_coco", metrics, OURS).agreement
        assert told["model"] is None


class TestName:
    def test_check_name__of_another_task(self) -> None:
        with pytest.raises(ConfigError, match="has accuracy of nlvr2, which task=retrieval does not give"):
            check_name("vilt_nlvr2_test", task="retrieval", gives=RECALLS)
        with pytest.raises(ConfigError, match="has i2t_r1 of coco, which task=reasoning does not give"):
            check_name("beit3_base_coco", task="reasoning", gives=["accuracy"])
        check_name("vilt_nlvr2_test", task="reasoning", gives=["accuracy"])
        check_name("beit3_base_coco", task="retrieval", gives=RECALLS)


def test_import__without_torch() -> None:
    script = (
        "import sys; from mwa_lightning.report import published_results, tables; published_results.names(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
