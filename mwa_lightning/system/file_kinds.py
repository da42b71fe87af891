"""What a file is that is not what was asked for, told from its first bytes, for messages."""

from __future__ import annotations

import re

HEAD = 512  # bytes that suffice

_AGAIN = "fetch it again"
_TO_JPEG = "convert it to JPEG or PNG"

# What a file begins with, what it is, and what to do where an image is wanted: nothing with those that are read. The
# first that fits counts.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer", "git lfs pull fetches what it stands for"),
    (rb"(\.\./)*(\.git/annex|/annex)/objects/", "a git-annex pointer", "git annex get fetches what it stands for"),
    (rb"(%!PS|\xc5\xd0\xd3\xc6)", "PostScript", _TO_JPEG),
    (rb"%PDF", "a PDF", _TO_JPEG),
    (rb"8BP[SB]", "a Photoshop file (PSD)", _TO_JPEG),
    (rb"(?i)(<\?xml[^>]*>|<!--.*?-->|\s)*(<!doctype svg|<svg)", "an SVG drawing", _TO_JPEG),
    (
        rb"(?i)(<\?xml[^>]*>|<!--.*?-->|\s)*<(!doctype html|html|head|body)",
        "an HTML page",
        f"{_AGAIN}, by its own address",
    ),
    (rb"<\?xml|<Error>", "XML, as servers answer with errors", _AGAIN),
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "a HEIC image of a phone", _TO_JPEG),
    (rb"\x00\x00\x00\x0cJXL \r\n\x87\n|\xff\x0a", "a JPEG XL image", _TO_JPEG),
    (rb"....ftyp(avif|avis)", "an AVIF image", ""),
    (rb"....ftyp(crx )", "a raw image of a camera", _TO_JPEG),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI |\x00\x00\x01[\xb3\xba]|FLV\x01", "a video", "take one image out of it"),
    (rb"ID3|OggS|fLaC|RIFF....WAVE", "a sound", "correct its name in the annotations"),
    (rb"\xff\xd8\xff", "a JPEG", ""),
    (rb"\x89PNG", "a PNG", ""),
    (rb"GIF8", "a GIF", ""),
    (rb"RIFF....WEBP", "a WebP image", ""),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image", ""),
    (rb"II[*+]\x00|MM\x00[*+]", "a TIFF", ""),
    (rb"/9j/|iVBORw0KGgo|data:image/", "an image as Base64 text", "decode it into a file of bytes"),
    (rb"DDS |BLP[12]|qoif|\x8aMNG|gimp xcf|FUJIFILM|AT&TFORM", "an image of a format that is not read", _TO_JPEG),
    (rb"\x93NUMPY", "an array of NumPy", _TO_JPEG),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed file", "unpack it"),
    (rb"PK\x03\x04", "a ZIP archive", "unpack it"),
    (rb".{257}ustar", "a tar archive", "unpack it"),
    (rb"PAR1", "a Parquet file", "correct its name in the annotations"),
)
_PATTERNS = tuple((re.compile(start, re.DOTALL), what, advice) for start, what, advice in _KINDS)
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def kind_of(head: bytes) -> tuple[str, str] | None:
    """What begins so, such as "an HTML page", and what to do about it, if it is no image; None where nothing tells.

    Args:
        head: The first `HEAD` bytes, or as many as there are.
    """
    for pattern, what, advice in _PATTERNS:
        if pattern.match(head):
            return what, advice
    if head and not _NO_TEXT.search(head):
        return "text", "correct its name in the annotations, or fetch it again"
    return None
