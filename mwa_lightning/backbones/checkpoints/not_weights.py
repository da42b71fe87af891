"""What people have in place of weights, told from its first bytes, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

from mwa_lightning.system.file_kinds import kind_of

HEAD = 1024  # bytes that suffice

_AGAIN = "download it again"
_HUB = "the same model's safetensors on Hugging Face"

# What a file begins with, what it is, and what to do, before the kinds of any file. The first that fits counts.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"(<\?xml[^>]*>|<!--.*?-->|\s)*<(!doctype html|html|head|body)", "an HTML page, not weights", "{html}"),
    (rb"\s*<\?xml|\s*<Error>", "an XML answer of a server{code}, not weights", "the link may have expired: {again}"),
    (rb"\x89HDF\r\n\x1a\n", "weights of TensorFlow or Keras (HDF5)", "give {hub}"),
    (rb"GGUF", "quantized weights of llama.cpp (GGUF)", "give {hub}"),
    (rb"....TFL3", "a model of TensorFlow Lite", "give {hub}"),
    (rb"\x08[\x01-\x10].{0,4}(\x12.(pytorch|tf2onnx|onnx|skl2onnx|keras2onnx)|:)", "a model of ONNX", "give {hub}"),
    (rb"([\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]", "weights of Flax (msgpack)", "give {hub}"),
    (rb"\x93NUMPY", "one array of NumPy", "give {hub}"),
)
_PATTERNS = tuple((re.compile(start, re.DOTALL | re.IGNORECASE), what, advice) for start, what, advice in _KINDS)
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2", ".download", ".tmp")
_LFS = re.compile(rb"version https://git-lfs[^\n]*\n(?:.*\n)*size (\d+)")
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def described(path: Path, head: bytes) -> str | None:
    """What a file is that begins so, and what to do about it; None where nothing tells.

    Args:
        path: For its name alone.
        head: The first `HEAD` bytes, or as many as there are.
    """
    if head.startswith(b"version https://git-lfs"):
        size = _LFS.match(head)
        weight = f" to {int(size[1]) / 1e6:,.0f} MB" if size else ""
        return (
            f"a Git LFS pointer{weight}, not the weights; run `git lfs pull` in its repository, or download the file "
            "itself"
        )
    if path.suffix in _UNFINISHED:
        return "by its name a download that has not ended; give the file that it becomes"
    if head and not head.strip(b"\0"):
        return f"begins with zeros only, as a download that has not ended; {_AGAIN}"
    for pattern, what, advice in _PATTERNS:
        if pattern.match(head):
            code = re.search(rb"<Code>(\w+)</Code>", head)
            shown = what.format(code=f" ({code[1].decode()})" if code else "")
            html = f"the link wants a login or leads to a page about the file: {_AGAIN} by its own address"
            return f"{shown}; {advice.format(again=_AGAIN, hub=_HUB, html=html)}"
    if (found := kind_of(head)) is not None and found[0] != "text":
        what, advice = found
        helps = advice.startswith(("unpack", "git"))
        return f"{what}; {advice}" if helps else f"{what}, not weights; give the checkpoint file"
    if head.lstrip().startswith((b"{", b"[")) and not _NO_TEXT.search(head):
        error = re.search(rb'"(?:error|message|detail)"\s*:\s*"([^"\n]{1,80})', head)
        if error:
            return f"an answer of a server in JSON ({error[1].decode(errors='replace')}), not weights; {_AGAIN}"
        return "a JSON file, not weights; give the checkpoint file beside it, or the folder of both"
    if head and not _NO_TEXT.search(head):
        begin = " ".join(head[:40].decode(errors="replace").split())
        return f"a text that begins with {begin!r}, not weights; give the checkpoint file, or {_AGAIN}"
    return None


def folder_described(folder: Path, wanted: str) -> str:
    """What a folder is that holds no weights by their usual names, and what to do about it."""
    there = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in there:
        return (
            "a folder of a PEFT adapter, not of a whole model; merge it into its model (merge_and_unload, then "
            "save_pretrained) and give that folder"
        )
    if "adapter.safetensors" in there and "config.yaml" in there:
        return "a run directory of mwa-train: adapter.checkpoint takes it, backbone.checkpoint wants pretrained weights"
    if any(name.endswith(".distcp") for name in there):
        return (
            "a checkpoint in the parts of several processes; `python -m torch.distributed.checkpoint.format_utils "
            "dcp_to_torch FOLDER FILE.pth` makes one file of it"
        )
    if any(name.startswith("zero_pp_rank") or name == "zero_to_fp32.py" for name in there):
        return "a checkpoint of DeepSpeed in parts; `python zero_to_fp32.py . FOLDER` in it makes files to give"
    endings = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    files = [path.relative_to(folder) for path in sorted(folder.glob("*")) if path.name.endswith(endings)]
    files += [path.relative_to(folder) for path in sorted(folder.glob("*/**/*")) if path.name.endswith(endings)][:9]
    if files:
        shown = ", ".join(map(str, files[:3])) + (" ..." if len(files) > 3 else "")
        return f"a folder without {wanted} or its like; give a file in it ({shown})"
    of_others = [name for name in there if name.endswith((".h5", ".msgpack", ".onnx", ".gguf", ".npz", ".pb"))]
    if of_others:
        return f"a folder with weights of another library ({of_others[0]}); give {_HUB}"
    return f"a folder without {wanted} or its like; give the checkpoint file, or the folder that it is in"
