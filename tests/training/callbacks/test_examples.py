"""Pictures of samples and of the coordinators, as TensorBoard gets them in a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.data.scenes.writing import write_scenes_nlvr2
from mwa_lightning.errors import DataError
from mwa_lightning.metrics.query_results import Found
from mwa_lightning.report.examples import GAP, LARGE
from mwa_lightning.training.callbacks import examples
from mwa_lightning.training.fit import fit

MakeConfig = Callable[..., DictConfig]


def pictures_of(run: Path) -> dict[str, list[tuple[int, Image.Image]]]:
    """Step and image, by tag."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return {
        tag: [(event.step, Image.open(io.BytesIO(event.encoded_image_string))) for event in events.Images(tag)]
        for tag in events.Tags()["images"]
    }


def test_evenly() -> None:
    assert examples.evenly(100, 4) == [12, 37, 62, 87]
    assert examples.evenly(3, 8) == [0, 1, 2]
    assert examples.evenly(0, 8) == []


def test_retrieval__the_same_queries_at_each_validation(
    make_config: MakeConfig, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Found]] = []
    for name in ("captions_found", "images_found"):
        find = getattr(examples, name)
        monkeypatch.setattr(examples, name, lambda *a, find=find, **o: (seen.append(find(*a, **o)), seen[-1])[1])
    fit(make_config("logger=tensorboard", "logger.examples=2"))
    pictures = pictures_of(tmp_path / "run")
    ways = ("image_to_text", "text_to_image")
    assert pictures.keys() == {f"examples/{way}/{number}" for way in ways for number in range(2)}
    assert all([step for step, _ in shown] == [2, 5] for shown in pictures.values())
    assert [[found.query for found in asked] for asked in seen] == [[1, 4], [3, 9]] * 2
    assert [sorted(found.right) for found in seen[0]] == [[2, 3], [8, 9]]
    assert [sorted(found.right) for found in seen[1]] == [[1], [4]]
    # The image that is asked about is the one of the data set: one colour, JPEG loses little of it.
    with Image.open(data_root / "val_1.jpg") as image:
        wanted = image.convert("RGB").getpixel((0, 0))
    shown = pictures["examples/image_to_text/0"][0][1].getpixel((GAP + LARGE // 2, GAP + LARGE // 2))
    assert shown == pytest.approx(wanted, abs=3)


def test_statements__and_heat_maps_of_the_coordinators(make_config: MakeConfig, tmp_path: Path) -> None:
    write_scenes_nlvr2(tmp_path / "scenes", domain="target", seed=3, train=24, dev=8, test=12)
    fit(
        make_config(
            "task=reasoning", "data=scenes_nlvr2", f"data.root={tmp_path / 'scenes'}", "adapter=modex",
            "logger=tensorboard", "logger.examples=3",
        )
    )  # fmt: skip
    pictures = pictures_of(tmp_path / "run")
    assert pictures.keys() == {*(f"examples/statements/{number}" for number in range(3)), "coordinator/heat_map"}
    for shown in pictures.values():
        assert len(shown) == 2
        assert shown[0][0] < shown[1][0]
    with Image.open(tmp_path / "run" / "coordinator.png") as last:
        assert pictures["coordinator/heat_map"][-1][1].convert("RGB").tobytes() == last.convert("RGB").tobytes()


def test_examples__what_cannot_be_drawn_is_told_once_and_ends_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: object, split: str, place: int) -> None:
        raise DataError("image 1.jpg is missing: put the file there")

    monkeypatch.setattr(SplitDataModule, "picture", gone)
    figures = fit(make_config("logger=tensorboard"))
    assert "test/mean_recall" in figures
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("WARNING no more examples are drawn (image 1.jpg is missing: put the file there)") == 1
    assert pictures_of(tmp_path / "run") == {}


@pytest.mark.parametrize("logger", ["logger=csv", "logger.examples=0"])
def test_examples__none_unless_somebody_looks(
    make_config: MakeConfig, logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "_drawings", lambda *arguments: pytest.fail("draws"))
    more = [] if logger == "logger=csv" else ["logger=tensorboard"]
    fit(make_config(*more, logger, "trainer.max_epochs=1"))
