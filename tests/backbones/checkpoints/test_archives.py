"""Archives of torch that are not as torch writes them are read rightly, or refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mwa_lightning.backbones.checkpoints import read_state
from mwa_lightning.errors import CheckpointError

STATE = {"a": torch.arange(1000.0), "b": torch.randn(100, 100, generator=torch.Generator().manual_seed(0))}
Members = dict[str, bytes]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    torch.save({"model": STATE}, tmp_path / "n.pth")
    return tmp_path / "n.pth"


def members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, content: Members, compressed: Callable[[str], bool]) -> Path:
    """Zipped anew: also without the alignment that torch gives to tensors."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if compressed(name) else zipfile.ZIP_STORED)
    return path


@pytest.mark.parametrize(
    "compressed",
    [lambda _: True, lambda _: False, lambda name: name.endswith("data/1"), lambda name: name.endswith("data.pkl")],
    ids=["all", "none", "one tensor", "the pickle"],
)
def test_read_state__zipped_anew(plain: Path, tmp_path: Path, compressed: Callable[[str], bool]) -> None:
    content = members(plain) | {"n/more": torch.randn(3000).numpy().tobytes()}
    read = read_state(packed(tmp_path / "z.pth", content, compressed))
    assert all(torch.equal(read[name], tensor) for name, tensor in STATE.items())


def test_read_state__bytes_after_the_archive_and_no_checksums(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "after.pth").write_bytes(plain.read_bytes() + b"more" * 50)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": STATE}, tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("after.pth", "without.pth"):
        read = read_state(tmp_path / name)
        assert all(torch.equal(read[name], tensor) for name, tensor in STATE.items())


def test_read_state__one_bit_of_a_tensor(plain: Path) -> None:
    content = bytearray(plain.read_bytes())
    content[content.index(STATE["a"].numpy().tobytes()) + 100] ^= 0x40
    plain.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"n\.pth: damaged \(n/data/0 is not what was packed\)"):
        read_state(plain)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_read_state__a_name_twice(plain: Path) -> None:
    with zipfile.ZipFile(plain, "a") as archive:
        archive.writestr("n/data/0", torch.zeros(1000).numpy().tobytes())
    with pytest.raises(CheckpointError, match="holds n/data/0 twice"):
        read_state(plain)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["params/img/kernel.npy", "params/txt/kernel.npy"], "arrays of NumPy, as big_vision saves them"),
        (["clip/model.safetensors", "clip/config.json"], r"other files \(clip/config.json, clip/model.safetensors\)"),
        ([], "an empty zip archive; copy or download it again"),
    ],
)
def test_read_state__archive_of_something_else(tmp_path: Path, names: list[str], said: str) -> None:
    path = packed(tmp_path / "w.npz", dict.fromkeys(names, b"data"), lambda _: False)
    with pytest.raises(CheckpointError, match=said):
        read_state(path)


def in_headers(content: bytes, at: dict[bytes, int], value: bytes) -> bytes:
    """An archive with a field of each header changed; `at` has its place in those of one kind."""
    changed = bytearray(content)
    for magic, offset in at.items():
        place = -1
        while (place := changed.find(magic, place + 1)) >= 0:
            changed[place + offset : place + offset + len(value)] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda content: in_headers(content, {b"PK\x03\x04": 8, b"PK\x01\x02": 10}, b"\x5d\0"),
            r"cannot be read \(That compression method is not supported\); save it again",
        ),
        (
            lambda content: in_headers(content, {b"PK\x03\x04": 6, b"PK\x01\x02": 8}, b"\x01"),
            r"cannot be read \(File .* is encrypted, .*\); save it again",
        ),
        (
            lambda content: in_headers(content, {b"PK\x01\x02": 0}, b"PKXX"),
            r"damaged \(Bad magic number for central directory\); copy or download",
        ),
        (
            lambda content: content[:-30],
            r"an archive that has no end \(cut short\); copy or download it again, [\d,]+ bytes",
        ),
    ],
    ids=["unknown compression", "password", "no list of its files", "cut short"],
)
def test_read_state__says_what_is_wrong_with_an_archive(
    plain: Path, tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    path = packed(tmp_path / "c.pth", members(plain), lambda _: False)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=said) as caught:
        read_state(path)
    assert "checksum" not in str(caught.value)
