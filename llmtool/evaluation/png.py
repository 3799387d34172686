"""Pictures as PNG inside of a page, written with the standard library alone (https://www.w3.org/TR/png-3/)."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

LARGEST = 256  # pixels of a side; a larger picture is made smaller by leaving lines out


def png(pixels: np.ndarray) -> bytes:
    """(h, w, 3) bytes of red, green and blue -> the bytes of a file."""
    height, width, _ = pixels.shape
    lines = np.ascontiguousarray(pixels, np.uint8).reshape(height, width * 3)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), lines], axis=1)  # filter 0: lines as they are
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(filtered.tobytes(), 9)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def data_uri(pixels: np.ndarray) -> str:
    """The same as an address that a page can show."""
    step = -(-max(pixels.shape[:2]) // LARGEST)
    return "data:image/png;base64," + base64.b64encode(png(pixels[::step, ::step])).decode()


def picture(planes: np.ndarray) -> np.ndarray:
    """(c, h, w) of 0 to 255 -> (h, w, 3) bytes; one channel is grey, a fourth is left out."""
    shown = planes[:3] if len(planes) >= 3 else np.repeat(planes[:1], 3, axis=0)
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def heat(planes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The picture in pale grey, and over it (h, w) values: red speaks for an answer, blue against it."""
    grey = 128 + planes.mean(axis=0)[:, :, None] / 3
    scale = float(np.quantile(np.abs(values), 0.99)) or float(np.abs(values).max()) or 1.0
    strength = np.clip(np.abs(values) / scale, 0, 1)[:, :, None]  # (h, w, 1)
    colour = np.where(values[:, :, None] > 0, np.array([200.0, 30, 30]), np.array([30.0, 60, 200]))
    return np.clip(np.rint(grey * (1 - strength) + colour * strength), 0, 255).astype(np.uint8)
