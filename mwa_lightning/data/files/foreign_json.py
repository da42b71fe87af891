"""What a JSON of annotations is where it is not what was asked for, for messages: sets of other tasks, most of all."""

from __future__ import annotations

from typing import Any

VQA = (
    "questions and answers (VQA), which is no task here; what has few answers, such as yes and no, can be learned as "
    "labelled statements: give a table of image, question and answer, with data=statements "
    "'data.columns={text: question, label: answer}'"
)
_BOXES = "boxes and masks of objects, without captions: take captions_train2017.json or the like"


def what_it_is(data: Any) -> str | None:
    """What the first entries of a JSON tell, and what to do; None where nothing tells that it is something else."""
    if isinstance(data, list):
        return _listed(_first(data))
    if not isinstance(data, dict):
        return None
    if _first(data.get("questions")) is not None:
        return VQA
    annotation, image = _first(data.get("annotations")), _first(data.get("images"))
    if annotation is not None:
        return _annotated(annotation)
    if image is not None and not image.keys() & {"sentences", "split", "filename"} and image.keys() & {"file_name"}:
        return "a list of images without captions: take captions_train2017.json or the like"
    if "images" not in data and all(isinstance(value, dict) for value in list(data.values())[:2]):
        first = next(iter(data.values()), None)
        if isinstance(first, dict) and "question" in first:  # GQA
            return VQA
    return None


def captions_of(data: Any) -> str | None:
    """Which form of captions a JSON is in that is no table, and what reads it."""
    image = _first(data.get("images")) if isinstance(data, dict) else None
    if image is None:
        return None
    if isinstance(data.get("annotations"), list):
        return "COCO's form of captions: take data=karpathy, or data=coco if it is of COCO itself"
    return "Karpathy's form of captions: take data=karpathy" if "sentences" in image else None


def _annotated(annotation: dict[str, Any]) -> str | None:
    keys = annotation.keys()
    if "caption" in keys:
        return None
    if keys & {"question_id", "question", "answers", "multiple_choice_answer"}:
        return VQA
    if keys & {"bbox", "segmentation", "keypoints", "segments_info", "category_id"}:
        return _BOXES
    return None


def _listed(record: dict[str, Any] | None) -> str | None:
    if record is None:
        return None
    keys = record.keys()
    if "question" in keys and keys & {"answer", "answers", "question_id", "label"}:
        return VQA
    if "qas" in keys:  # Visual Genome
        return VQA
    if keys & {"regions", "objects", "relationships"} and not keys & {"caption", "sentence", "text"}:
        return "descriptions of parts of images (Visual Genome), not of images: write captions (data=pairs)"
    if keys & {"refs", "ref_id", "sent_ids", "bbox"}:
        return "texts about parts of images (RefCOCO), which are no task here: write captions (data=pairs)"
    if "conversations" in keys:
        return "conversations (LLaVA), which are no task here: write captions (data=pairs)"
    if "image_id" in keys and "caption" in keys and not keys & {"image", "images", "file_name"}:
        return (
            "captions without the names of images, as a model's results have them: add the path of each image as image"
        )
    return None


def _first(values: Any) -> dict[str, Any] | None:
    return values[0] if isinstance(values, list) and values and isinstance(values[0], dict) else None
