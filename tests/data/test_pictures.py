"""One picture at a time: what is read, how it is turned and fitted, what is refused before it is decoded."""

import contextlib
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llmtool.data import pictures
from llmtool.data.pictures import BadPicture, Recipe, as_png, decode, from_array, opened, read, turned_size
from tests.photos import bomb, chunk, file_of, noise

SMALL = Recipe(3, 8, 8)
VALUES = noise(0, 8, 8)


@pytest.mark.parametrize("keys", [{"form": "PNG"}, {"form": "WEBP", "lossless": True}])
def test_pixels_come_back(keys: dict) -> None:
    found = decode(file_of(VALUES, **keys), SMALL)
    assert found.said == ()
    assert (found.values == VALUES.transpose(2, 0, 1)).all()


def test_a_jpeg_comes_back_nearly() -> None:
    found = decode(file_of(np.full((16, 16, 3), 90, np.uint8), "JPEG", quality=95), Recipe(3, 16, 16))
    assert np.abs(found.values.astype(int) - 90).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_as_pillow_would(orientation: int) -> None:
    from PIL import ImageOps

    values = noise(1, 6, 10)
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    data = file_of(values, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    height, width = expected.shape[:2]
    assert turned_size(opened(data)) == (height, width)
    found = decode(data, Recipe(3, height, width)).values
    assert (found == expected.transpose(2, 0, 1)).all()


def test_broken_exif_says_nothing() -> None:
    data = file_of(VALUES, "PNG")
    broken = data[:33] + chunk(b"eXIf", b"II*\0\xff\xff\xff\xff") + data[33:]
    assert (decode(broken, SMALL).values == VALUES.transpose(2, 0, 1)).all()


def test_16_bits_are_8() -> None:
    values = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    found = decode(file_of(values), Recipe(1, 8, 8))
    assert (found.values[0] == values >> 8).all()
    assert (decode(file_of(values), SMALL).values == (values >> 8)[None]).all()  # grey in three channels


def test_cmyk_palette_one_bit_and_transparent_pictures_are_read() -> None:
    image = Image.fromarray(np.full((8, 8, 3), (200, 40, 40), np.uint8))
    for kind, form in (("CMYK", "JPEG"), ("P", "PNG"), ("L", "PNG"), ("1", "PNG")):
        file = io.BytesIO()
        image.convert(kind).save(file, form)
        found = decode(file.getvalue(), SMALL).values
        assert found.shape == (3, 8, 8)
        if kind in ("CMYK", "P"):
            assert np.abs(found.reshape(3, -1).mean(axis=1) - (200, 40, 40)).max() < 12
    clear = np.zeros((8, 8, 4), np.uint8)  # black, of which nothing is seen
    clear[0, 0] = (255, 0, 0, 255)
    found = decode(file_of(clear), SMALL)
    assert found.said == ("transparent parts were put on white",)
    assert found.values[:, 0, 0].tolist() == [255, 0, 0]
    assert found.values[:, 5, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], lossless=True)
    found = decode(file.getvalue(), SMALL)
    assert found.said == ("animated, the first frame was taken",)
    assert (found.values == 10).all()


def test_colours_that_are_left_out_are_said() -> None:
    assert decode(file_of(VALUES), Recipe(1, 8, 8)).said == (pictures.GREYED,)
    assert from_array(VALUES.transpose(2, 0, 1), Recipe(1, 4, 4)).said == (pictures.GREYED,)


def test_crop_keeps_the_middle_squash_bends_pad_leaves_black() -> None:
    values = np.zeros((4, 12, 3), np.uint8)
    values[:, 4:8] = 200  # the middle third
    data = file_of(values)
    assert (decode(data, Recipe(3, 4, 4, "crop")).values == 200).all()
    squashed = decode(data, Recipe(3, 4, 4, "squash")).values[0, 0]
    assert squashed[0] < 60
    assert squashed[3] < 60
    assert max(squashed) > 100
    padded = decode(data, Recipe(3, 12, 12, "pad")).values
    assert (padded[:, :4] == 0).all()
    assert (padded[:, 4:8, 4:8] == 200).all()
    assert (padded[:, 8:] == 0).all()


def test_an_edge_is_that_of_the_shorter_side_before_the_middle_is_cut() -> None:
    values = np.zeros((16, 16, 3), np.uint8)
    values[4:12, 4:12] = 100
    assert (decode(file_of(values), Recipe(3, 8, 8, "crop", edge=16)).values == 100).all()
    assert not decode(file_of(values), Recipe(3, 8, 8, "crop")).values.all()


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same() -> None:
    smooth = np.linspace(0, 255, 512).astype(np.uint8)
    values = np.broadcast_to(smooth[:, None, None], (512, 512, 3)).copy()
    found = decode(file_of(values, "JPEG", quality=95), Recipe(3, 16, 16)).values[0].astype(int)
    expected = np.asarray(Image.fromarray(values).resize((16, 16), Image.Resampling.BILINEAR))[:, :, 0]
    assert np.abs(found - expected).max() <= 3


# --- what is no picture ---


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"GIF89a" + b"\0" * 40, "but a GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "but an SVG"),
        (b"  <?xml version='1.0'?><svg/>", "but an SVG or XML"),
        (b"just words", "but text"),
        (b"\0\0\0\x1cftypheic" + b"\0" * 30, "but a HEIC"),
        (b"BM" + b"\0" * 60, "but a BMP"),
        (bytes(range(128, 200)), "not a JPEG, PNG or WebP picture$"),
        (file_of(noise(2, 64, 64), "JPEG")[:-900], "a truncated or damaged JPEG"),
        (file_of(noise(2, 64, 64), "PNG")[:-900], "a truncated or damaged PNG"),
        (file_of(noise(2, 64, 64), "WEBP")[:-300], "a truncated or damaged WebP"),
        (b"\xff\xd8\xff", "a truncated or damaged JPEG"),
        (b"\x89PNG\r\n\x1a\n", "a truncated or damaged PNG"),
        (b"RIFF\0\0\0\0WEBP", "a truncated or damaged WebP"),
        (bomb(), r"more than 50,000,000 pixels \(data.encode.max_pixels\)"),
        (bomb(0, 5), "(without pixels|damaged PNG)"),
        (b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2, "more than 50,000,000 pixels"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        decode(data, SMALL)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadPicture, match="a named pipe"):
        read(tmp_path / "a.png")


def test_a_limit_on_pixels_is_kept_before_they_are_decoded() -> None:
    data = file_of(noise(0, 20, 20))
    assert decode(data, SMALL, most=400).values.shape == (3, 8, 8)
    with pytest.raises(BadPicture, match="more than 399 pixels"):
        decode(data, SMALL, most=399)


@pytest.mark.parametrize("shape", [(1, 400_000), (400_000, 1)])
def test_of_a_strip_only_the_middle_is_scaled(shape: tuple[int, int]) -> None:
    values = np.zeros((1, *shape), np.uint8)
    values.reshape(-1)[200_000:] = 200
    found = decode(as_png(values), Recipe(1, 64, 64)).values[0]  # whole it would be 1.6 billion pixels
    assert found[0, 0] < 10
    assert found[-1, -1] > 190


def test_damaged_bytes_are_refused_or_read_but_never_fail() -> None:
    chance = np.random.default_rng(0)
    files = [file_of(noise(0, 24, 24), form) for form in ("JPEG", "PNG", "WEBP")]
    for number in range(600):
        data = bytearray(files[number % 3])
        for _ in range(int(chance.integers(1, 6))):
            data[int(chance.integers(len(data)))] = int(chance.integers(256))
        with contextlib.suppress(BadPicture):
            assert decode(bytes(data), SMALL, most=10_000).values.shape == (3, 8, 8)


def test_a_png_of_one_byte_less_in_its_header_is_refused() -> None:
    data = bytearray(file_of(VALUES))
    data[16:20] = struct.pack(">I", 4_000_000_000)
    with pytest.raises(BadPicture):
        decode(bytes(data), SMALL)
