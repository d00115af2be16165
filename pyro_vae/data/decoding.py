"""Decompresses text files, and decodes them from the encodings that spreadsheets write."""

import gzip
import re
import zlib
from pathlib import Path

from .._warnings import warn

GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_COMPRESSED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_ACCENTED = re.compile(
    "[^\\W\\x00-\\x7f]{4,}|[^\\x00-\\x7f]{6,}"
    # The two bytes of a letter in UTF-8, read as Windows-1252: the file mixes both encodings.
    "|[\u00c2\u00c3][\u0080-\u00bf\u0152-\u0192\u02c6\u02dc\u2013-\u2122]"
)


def uncompressed(path: Path) -> bytes:
    """Reads the bytes of a file, and decompresses them if they are gzipped.

    Raises:
        ValueError: If the file is damaged.
    """
    content = path.read_bytes()
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"'{path}' is truncated or damaged ({error}; {len(content):,} bytes were found): "
            "download the file again"
        ) from error


def decoded(path: Path) -> str:
    """Reads the text of a file, and replaces all line endings by newline characters.

    Raises:
        ValueError: If the file is not text, or is compressed with a program other than gzip.
    """
    content = uncompressed(path)
    for magic, name in _COMPRESSED.items():
        if content.startswith(magic):
            raise ValueError(
                f"'{path}' is compressed with {name}: unpack the file, or compress it with gzip"
            )
    why = ""
    for encoding in _encodings(content):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            why = f", because of the byte {content[error.start]:#04x} in line {line}"
            continue
        if "\0" not in text:
            if encoding == "cp1252":
                _warn_of_letters(path, text)
            text = text.replace("\r\n", "\n").replace("\r", "\n")
            return text.removesuffix("\x1a")  # which marks the end of a file in DOS
        line = text.count("\n", 0, text.index("\0")) + 1
        why = f", because of the byte 0x00 in line {line}"
    if content.startswith(_ZIP_MAGIC):
        why = ", because it is a workbook or an archive"
    raise ValueError(
        f"pyro_vae cannot read '{path}' as text{why}: save the table as csv, in UTF-8, UTF-16 "
        "or Windows-1252"
    )


def _encodings(content: bytes) -> list[str]:
    """Returns the encodings to try in turn, which depend on the first bytes of a file."""
    if content.startswith(_ZIP_MAGIC):
        return []
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return ["utf-32"]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ["utf-16"]
    if b"\0" in content[:2]:  # UTF-16 without a mark at its start
        return ["utf-16-le" if content[1:2] == b"\0" else "utf-16-be"]
    return ["utf-8-sig", "cp1252"]


def _warn_of_letters(path: Path, text: str) -> None:
    """Warns about words full of accented letters, as when Cyrillic or UTF-8 text is misread."""
    if found := _ACCENTED.search(text):
        line = text.count("\n", 0, found.start()) + 1
        warn(
            f"'{path}' is not in UTF-8, and is read as Windows-1252. This gives {found[0]!r} in "
            f"line {line}: if that is wrong, save the file in UTF-8"
        )
