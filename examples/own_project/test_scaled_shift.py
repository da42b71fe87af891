"""A fresh adapter changes nothing, a changed one does."""

import torch
from scaled_shift import ScaledShiftTuning

import mwa_lightning


def test_scaled_shift__is_the_identity_when_freshly_made() -> None:
    """On the text side, from the feed-forward networks."""
    model, tokenizer, _ = mwa_lightning.load("beit3_tiny")
    ids, mask = tokenizer(["a red circle left of a blue square"])
    with torch.inference_mode():
        before = model.encode_text(ids, mask)
    method = ScaledShiftTuning()
    method.attach(model.backbone, model.heads, streams=("vision", "text"))
    with torch.no_grad():
        assert torch.equal(model.encode_text(ids, mask), before)
        for shift in method.shifts:
            shift.scale += 1
        assert not torch.allclose(model.encode_text(ids, mask), before)
