"""One picture: from the bytes of a JPEG, PNG or WebP file to pixels of a fixed size, or why not."""

from __future__ import annotations

import io
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as pillow
from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.Image import Image, Resampling, Transpose

from llmtool.core.environment import processors

Fit = Literal["crop", "squash", "pad"]
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
MAX_FILE = 1 << 28  # bytes of one picture's file
MAX_PIXELS = 50_000_000
STRIP = 16  # times as long as wide, or as its recipe is
MOST_PIXELS = 89_000_000  # beyond, Pillow itself warns of a bomb
GREYED = "its colours were left out"
ORIENTATION = 0x0112  # EXIF's tag
OTHERS = {  # what else stands in files that are called pictures
    b"GIF8": "a GIF", b"BM": "a BMP", b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"%PDF": "a PDF",
    b"<svg": "an SVG", b"<?xml": "an SVG or XML", b"<!DOC": "a web page", b"<html": "a web page",
    b"\0\0\0\x0cjP": "a JPEG 2000", b"\x1f\x8b": "gzip data", b"PK\3\4": "a zip archive",
}  # fmt: skip
_BRANDS = {b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIC", b"avif": "an AVIF", b"avis": "an AVIF"}


class BadPicture(Exception):
    """Why a file gives no pixels."""


class Stored(str):
    """The name of a picture that is one of many in a file, `file:number`, and where it lies there."""

    path: Path
    number: int  # from 0
    labels: int | None  # bytes of labels before each picture of a CIFAR file; None: an IDX file

    @classmethod
    def at(cls, path: Path, number: int, labels: int | None = None) -> Stored:
        """The picture `number`, from 0, of a file; its name counts from 1."""
        made = cls(f"{path}:{number + 1}")
        made.path, made.number, made.labels = path, number, labels
        return made


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes `channels` planes of `height` x `width`.

    fit: crop cuts what stands out after scaling until both sides are covered, or, where `edge` is given,
    until the shorter side has so many pixels; squash scales each side by itself; pad leaves black where a
    picture of another shape ends. resample: Pillow's number of the filter (2 bilinear, 3 bicubic).
    """

    channels: int
    height: int
    width: int
    fit: Fit = "crop"
    edge: int | None = None
    resample: int = 2

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Pixels:
    """values: (c, h, w) uint8. said: what was done to it that a person should know; mostly nothing."""

    values: np.ndarray
    said: tuple[str, ...] = ()


def workers() -> int:
    """Threads that decode: one for each CPU of this process; Pillow lets go of the interpreter's lock."""
    return processors()


def read(path: Path) -> bytes:
    """The bytes of a picture's file. BadPicture where there is none, or it is larger than any picture."""
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # to open it would be to wait for somebody who writes
            raise BadPicture("a named pipe")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise BadPicture("no such file") from None
    except (OSError, ValueError) as error:
        raise BadPicture(f"not readable ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > MAX_FILE:
        raise BadPicture(f"a file of more than {MAX_FILE:,} bytes")
    return data


def kind_of(data: bytes) -> str:
    """JPEG, PNG or WEBP, by the first bytes and not by the name. BadPicture says what it is otherwise."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if not data:
        raise BadPicture("an empty file")
    start = data[:64].lstrip()
    found = next((name for magic, name in OTHERS.items() if start.startswith(magic)), "")
    found = found or (_BRANDS.get(data[8:12], "") if data[4:8] == b"ftyp" else "")
    found = found or ("text" if all(32 <= byte < 127 or byte in (9, 10, 13) for byte in start) else "")
    raise BadPicture("not a JPEG, PNG or WebP picture" + (f" but {found}" if found else ""))


def opened(data: bytes, most: int = MAX_PIXELS) -> Image:
    """The picture of these bytes, of which only the header is read so far. BadPicture: no picture, no pixels,
    or more than `most` of them."""
    kind = kind_of(data)
    if kind == "WEBP":  # its decoder takes memory for all pixels before it says how many they are
        _check_size(_webp_size(data), most)
    readers: dict[str, Any] = {
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    try:
        image: Image = readers[kind](io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow makes of a broken header
        raise BadPicture(_broken(kind, error)) from None
    _check_size(image.size, most)
    return image


def _check_size(size: tuple[int, int], most: int) -> None:
    if min(size) < 1:
        raise BadPicture("a picture without pixels")
    if size[0] * size[1] > most:
        raise BadPicture(f"more than {most:,} pixels (data.encode.max_pixels)")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header (https://developers.google.com/speed/webp/docs/riff_container)."""
    form, head = data[12:16], data[20:30]
    if len(head) < 10:
        raise BadPicture("a truncated or damaged WebP")
    if form == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if form == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def _broken(kind: str, error: Exception) -> str:
    name = {"WEBP": "WebP"}.get(kind, kind)
    return f"a truncated or damaged {name}" + (
        " (not enough memory)" if isinstance(error, MemoryError) else ""
    )


def is_grey(image: Image) -> bool:
    """Whether its header says that it has no colours."""
    return image.mode in ("1", "L", "LA", "La", "I", "I;16", "I;16B", "F")


def turned_size(image: Image) -> tuple[int, int]:
    """(height, width) of the picture as it is to be looked at: EXIF may say that it lies on its side."""
    width, height = image.size
    return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def _orientation(image: Image) -> int:
    """EXIF's number of how the picture lies; 1 where it does not say."""
    if "exif" not in image.info:
        return 1
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing; the pixels may be good
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def decode(data: bytes, recipe: Recipe, most: int = MAX_PIXELS) -> Pixels:
    """The pixels of a file's bytes. BadPicture says why there are none."""
    image = opened(data, most)
    orientation = _orientation(image)
    said = ("animated, the first frame was taken",) if getattr(image, "n_frames", 1) > 1 else ()
    if image.format == "JPEG":
        # DCT coefficients give a picture of half the size, or a quarter, at a fraction of the work; a factor
        # of two is left to the filter, as in Pillow's thumbnail().
        side = 2 * max(recipe.height, recipe.width, recipe.edge or 0)
        image.draft(None, (side, side))
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders meet all kinds of damage
        raise BadPicture(_broken(str(image.format), error)) from None
    if orientation != 1:
        image = image.transpose({
            2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
            5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
        }[orientation])  # fmt: skip
    flat, more = _plain(image, recipe.channels)
    return Pixels(_planes(_fitted(flat, recipe)), said + more)


def _plain(image: Image, channels: int) -> tuple[Image, tuple[str, ...]]:
    """The picture as L or RGB: palettes resolved, 16 bits as 8, transparent parts on white."""
    said: tuple[str, ...] = ()
    if channels == 1 and not is_grey(image):
        said = (GREYED,)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        values = np.asarray(image).astype(np.int64)
        image = pillow.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = pillow.new("RGBA", image.size, (255, 255, 255, 255))
        ground.alpha_composite(image)
        image = ground.convert("RGB")
        said += ("transparent parts were put on white",)
    wanted = "L" if channels == 1 else "RGB"
    return (image if image.mode == wanted else image.convert(wanted)), said


def _fitted(image: Image, recipe: Recipe) -> Image:
    """The picture at the recipe's size."""
    size, (width, height) = (recipe.width, recipe.height), image.size
    filter_ = Resampling(recipe.resample)
    if recipe.fit == "crop":
        image = _middle(image, recipe)
        width, height = image.size
    if recipe.fit == "squash":
        return image if image.size == size else image.resize(size, filter_)
    scales = recipe.width / width, recipe.height / height
    if recipe.fit == "pad":
        scale = min(scales)
    else:
        scale = max(scales) if recipe.edge is None else recipe.edge / min(width, height)
    # of the longer side what lies beyond the pixel is cut, as others' preparation of pictures does
    scaled = max(1, int(width * scale + 1e-6)), max(1, int(height * scale + 1e-6))
    if scaled != image.size:
        image = image.resize(scaled, filter_)
    if scaled == size:
        return image
    if recipe.fit == "pad":
        ground = pillow.new(image.mode, size)
        ground.paste(image, ((size[0] - scaled[0]) // 2, (size[1] - scaled[1]) // 2))
        return ground
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _middle(image: Image, recipe: Recipe) -> Image:
    """Of a strip its middle: scaled whole until its short side fits, a strip would take all memory."""
    (width, height), sides = image.size, (recipe.width, recipe.height)
    most = STRIP * min(width, height) * -(-max(sides) // min(sides))
    if max(width, height) <= most:
        return image
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def _planes(image: Image) -> np.ndarray:
    """(c, h, w) uint8."""
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


def from_array(values: np.ndarray, recipe: Recipe) -> Pixels:
    """The same of pixels that are there already; values: (c, h, w) uint8, c 1 or 3."""
    if values.shape == (recipe.channels, recipe.height, recipe.width):
        return Pixels(values)
    image, said = _plain(as_image(values), recipe.channels)
    return Pixels(_planes(_fitted(image, recipe)), said)


def as_image(values: np.ndarray) -> Image:
    """Pillow's picture of (c, h, w) uint8."""
    return pillow.fromarray(
        values[0] if values.shape[0] == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))
    )


def as_png(values: np.ndarray) -> bytes:
    """The file of (c, h, w) uint8, without loss."""
    file = io.BytesIO()
    as_image(values).save(file, "PNG", compress_level=1)
    return file.getvalue()
