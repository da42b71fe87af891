"""The zip archives that torch.save writes: what is in one, and whether it is whole."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mwa_lightning.errors import CheckpointError, shorten


def check_archive(path: Path, *, checksums: bool = True) -> bool:
    """Look at an archive that torch shall read; returns whether its tensors can be mapped into memory as they lie.

    They cannot where anything in it is compressed: a map shows the compressed bytes. torch compares no checksums, so
    this does, unless the file has none or `checksums` is off. Raises CheckpointError if the archive is cut short,
    damaged, holds a name twice, or is none of torch.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            _check_kind(path, names)
            if len(set(names)) < len(names):
                raise CheckpointError(f"{path}: its archive holds {_twice(names)} twice; save it again with torch.save")
            if checksums and any(member.CRC for member in members) and (damaged := archive.testzip()) is not None:
                raise _damaged(path, f"{damaged} is not what was packed")
            return all(member.compress_type == zipfile.ZIP_STORED for member in members)
    except zipfile.BadZipFile as error:
        if zipfile.is_zipfile(path):
            raise _damaged(path, str(error)) from error
        raise CheckpointError(
            f"{path}: an archive that has no end (cut short); copy or download it again, {path.stat().st_size:,} bytes "
            "are here"
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # a way of packing that Python does not know, a password
        raise CheckpointError(
            f"{path}: its archive is packed so that it cannot be read ({error}); save it again with torch.save"
        ) from error
    except (EOFError, ValueError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged ({how}); copy or download it again")


def _twice(names: list[str]) -> str:
    return next(name for number, name in enumerate(names) if name in names[:number])


def _check_kind(path: Path, names: list[str]) -> None:
    """Raise CheckpointError for TorchScript, and for archives that are none of torch."""
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path}: a TorchScript archive, which cannot be read without running its code; give the "
            "safetensors of the same model (of OpenAI's CLIP: hf://openai/clip-vit-base-patch32 and its like)"
        )
    if any(name.endswith("data.pkl") and name.count("/") == 1 for name in names):
        return
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(
            f"{path}: arrays of NumPy, as big_vision saves them; give model.safetensors of the same model on Hugging "
            "Face (google/siglip-*, google/siglip2-*)"
        )
    if not names:
        raise CheckpointError(f"{path}: an empty zip archive; copy or download it again")
    holds = shorten(sorted(names), 3)
    raise CheckpointError(f"{path}: a zip archive of other files ({holds}), not of torch; unpack it and give the file")
