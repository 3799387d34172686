"""Little pictures for the tests: noise in a colour of its class, in folders as ImageNet's are laid out."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"cat": (200, 60, 40), "dog": (40, 60, 200), "hen": (60, 200, 60)}


def noise(
    seed: int, height: int = 8, width: int = 8, colour: tuple[int, int, int] = (128, 128, 128)
) -> np.ndarray:
    """(h, w, 3) uint8 about a colour."""
    chance = np.random.default_rng(seed)
    return np.clip(chance.normal(colour, 25, (height, width, 3)), 0, 255).astype(np.uint8)


def file_of(values: np.ndarray, form: str = "PNG", **keys: object) -> bytes:
    """The file of (h, w, 3) or (h, w) values."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, form, **keys)
    return file.getvalue()


def folder(root: Path, per_class: int = 12, classes: tuple[str, ...] = ("cat", "dog", "hen"), size: int = 8,
           first: int = 0) -> Path:  # fmt: skip
    """`per_class` PNG files in a folder for each class; other numbers from `first` on, other pictures."""
    for at, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + per_class):
            values = noise(1000 * at + number, size, size, COLOURS[name])
            (root / name / f"{number}.png").write_bytes(file_of(values))
    return root


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int = 20_000, height: int = 20_000) -> bytes:
    """A PNG of some bytes whose header says so many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
