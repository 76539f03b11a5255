"""Pictures as cameras, designers and image tools save them, against colours computed by hand."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from everframe.engines.errors import UserError
from everframe.runtime.picture import read_picture

RED, BLUE, WHITE = (220, 20, 30), (20, 40, 200), (255, 255, 255)


def flag(width: int = 90, height: int = 60) -> np.ndarray:
    """Red above blue, a white square at the left top."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2], picture[height // 2 :] = RED, BLUE
    picture[: height // 4, : width // 6] = WHITE
    return picture


def near(pixel: np.ndarray, colour: tuple[int, ...], by: int = 4) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= by)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = Image.fromarray(flag())
    stored = stored if inverse is None else stored.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.png", "x.tiff", "x.webp"):
        stored.save(tmp_path / name, exif=exif, lossless=True)
        shown = read_picture(tmp_path / name, 90, 60)
        assert near(shown[5, 5], WHITE), name
        assert near(shown[5, 80], RED), name
        assert near(shown[50, 45], BLUE), name


def transparent(kind: str) -> Image.Image:
    """A white disc on a ground that is transparent; behind it pink is hidden, or black."""
    y, x = np.mgrid[:60, :90]
    disc = (x - 45) ** 2 + (y - 30) ** 2 < 20**2
    alpha = np.where(disc, 255, 0).astype(np.uint8)
    hidden = (255, 0, 200) if kind == "RGBA pink" else (0, 0, 0)
    colour = np.where(disc[..., None], 255, hidden).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([colour, alpha]))
    if kind.startswith("RGBA"):
        return rgba
    if kind == "LA":
        return Image.merge("LA", (Image.fromarray(colour[..., 0]), Image.fromarray(alpha)))
    palette = Image.fromarray(disc.astype(np.uint8), "P")
    palette.putpalette([255, 0, 200, 255, 255, 255])
    palette.info["transparency"] = 0
    return palette


@pytest.mark.parametrize("kind", ["RGBA", "RGBA pink", "LA", "P"])
def test_transparency_lies_on_one_ground(tmp_path: Path, kind: str) -> None:
    picture = transparent(kind)
    picture.save(tmp_path / "x.png")  # with the palette's transparency, which its info holds
    told: list[str] = []
    shown = read_picture(tmp_path / "x.png", 90, 60, None, told.append)
    assert near(shown[2, 2], (0, 0, 0))  # no opaque border: black
    assert near(shown[30, 45], WHITE)
    assert len(told) == 1
    assert "#000000" in told[0]
    shown = read_picture(tmp_path / "x.png", 90, 60, "#204060", told.append)
    assert near(shown[2, 2], (0x20, 0x40, 0x60))
    assert len(told) == 1  # chosen: nothing to say


def test_the_ground_is_the_borders_own_colour(tmp_path: Path) -> None:
    pixels = np.dstack([flag(), np.full((60, 90), 255, np.uint8)])
    pixels[:, :] = (10, 90, 30, 255)
    pixels[20:40, 30:60] = (255, 0, 200, 0)  # a hole
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert near(read_picture(tmp_path / "x.png", 90, 60)[30, 45], (10, 90, 30))


def test_half_transparent_is_half(tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 90, 4), (200, 100, 0, 128), np.uint8)).save(tmp_path / "x.png")
    expected = [round(c * 128 / 255 + 255 * 127 / 255) for c in (200, 100, 0)]
    assert near(read_picture(tmp_path / "x.png", 90, 60, "white")[30, 45], tuple(expected), 2)


def test_sixteen_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 90).round().astype(np.uint16)
    Image.fromarray(np.tile(ramp, (60, 1))).save(tmp_path / "x.png")
    Image.fromarray(np.tile(ramp, (60, 1))).save(tmp_path / "x.tiff")
    for name in ("x.png", "x.tiff"):
        shown = read_picture(tmp_path / name, 90, 60)
        assert np.abs(shown[30, :, 0].astype(int) - np.round(ramp / 257)).max() <= 2


@pytest.mark.parametrize("scale", [1.0, 100.0, np.nan])
def test_floats_are_scaled_or_refused(tmp_path: Path, scale: float) -> None:
    ramp = np.tile(np.linspace(0, 1, 90, dtype=np.float32), (60, 1)) * np.float32(scale)
    Image.fromarray(ramp).save(tmp_path / "x.tiff")
    if scale == 1.0:
        assert np.abs(read_picture(tmp_path / "x.tiff", 90, 60)[30, :, 0] - np.linspace(0, 255, 90)).max() <= 3
    else:
        with pytest.raises(UserError, match="white nobody knows"):
            read_picture(tmp_path / "x.tiff", 90, 60)


def test_32_bit_integers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 90), 100_000, np.int32)).save(tmp_path / "x.tiff")
    with pytest.raises(UserError, match="32-bit integers"):
        read_picture(tmp_path / "x.tiff", 90, 60)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_every_other_mode_is_right(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.full((60, 90, 3), 255, np.uint8)).convert(mode)
    file = tmp_path / ("x.jpg" if mode == "YCbCr" else "x.tiff")
    grey.save(file)
    assert near(read_picture(file, 90, 60)[30, 45], WHITE)


def test_a_profile_is_converted(tmp_path: Path) -> None:
    """A profile whose red and blue are swapped shows whether it is used at all."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {srgb[132 + 12 * i : 136 + 12 * i]: 132 + 12 * i for i in range(struct.unpack(">I", srgb[128:132])[0])}
    swapped = bytearray(srgb)
    r, b = tags[b"rXYZ"], tags[b"bXYZ"]
    swapped[r + 4 : r + 12], swapped[b + 4 : b + 12] = srgb[b + 4 : b + 12], srgb[r + 4 : r + 12]
    Image.fromarray(np.full((60, 90, 3), RED, np.uint8)).save(tmp_path / "x.png", icc_profile=bytes(swapped))
    shown = read_picture(tmp_path / "x.png", 90, 60)[30, 45]
    assert near(shown, RED[::-1], 6)
    Image.fromarray(flag()).save(tmp_path / "y.png", icc_profile=b"rubbish")
    assert near(read_picture(tmp_path / "y.png", 90, 60)[5, 80], RED)


def test_a_grey_picture_s_profile_is_converted_with_transparency_too(tmp_path: Path) -> None:
    """Linear light: what is a quarter of white there is brighter in sRGB, by its definition (IEC 61966-2-1)."""
    profile = linear_grey()
    expected = 255 * (1.055 * (64 / 255) ** (1 / 2.4) - 0.055)
    for mode, colour in (("L", 64), ("LA", (64, 255))):
        Image.new(mode, (90, 60), colour).save(tmp_path / "x.png", icc_profile=profile)  # type: ignore[arg-type]
        shown = read_picture(tmp_path / "x.png", 90, 60)[30, 45]
        assert near(shown, (expected, expected, expected), 2), mode
    Image.new("RGBA", (90, 60), (*RED, 255)).save(tmp_path / "x.png", icc_profile=profile)  # which cannot be its own
    assert near(read_picture(tmp_path / "x.png", 90, 60)[30, 45], RED)


def linear_grey() -> bytes:
    """The smallest profile of ICC.1:2001-04 for grey, with a curve that is a straight line."""
    xyz = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)  # D50
    tags = {b"wtpt": xyz, b"kTRC": b"curv\0\0\0\0\0\0\0\0", b"cprt": b"text\0\0\0\0none\0\0\0\0"}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"g\0" + bytes(78)
    at = 132 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">2I", at + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI", 128 + len(table) + len(data), b"lcms", 0x02100000) + b"mntrGRAYXYZ "
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + data


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it has this size, with no pixels to speak of."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (png_of(20_000, 20_000), "pixels"),
        (png_of(90, 60), "cannot read"),
        (b"", "not a picture"),
        (b"GIF89a", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    ],
)
def test_bombs_and_rubbish_are_one_line(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match=word) as caught:
        read_picture(tmp_path / "x.png", 90, 60)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_one_line(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"):
        whole = io.BytesIO()
        Image.fromarray(flag()).save(whole, kind)
        for length in range(0, len(whole.getvalue()), max(1, len(whole.getvalue()) // 40)):
            (tmp_path / "x").write_bytes(whole.getvalue()[:length])
            with contextlib.suppress(UserError):  # anything else is a traceback
                read_picture(tmp_path / "x", 90, 60)


def test_a_workflow_in_a_text_chunk_is_no_bomb(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.fromarray(flag()).save(tmp_path / "x.png", pnginfo=info)
    assert near(read_picture(tmp_path / "x.png", 90, 60)[5, 80], RED)


def test_a_ground_that_is_no_colour(tmp_path: Path) -> None:
    Image.fromarray(flag()).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="ground 'greenish'"):
        read_picture(tmp_path / "x.png", 90, 60, "greenish")


def test_sixteen_bit_transparency_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 90), 0xFF00, np.uint16)).save(tmp_path / "x.png", transparency=0xFF00)
    with pytest.raises(UserError, match="16 bits is transparent"):
        read_picture(tmp_path / "x.png", 90, 60)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(UserError, match="not a file"):
            read_picture(tmp_path / name, 90, 60)


@pytest.mark.parametrize("ground", ["rgb(300,0,0)", "#00000000", "#fff8", "nothing"])
def test_grounds_that_are_no_opaque_colour(tmp_path: Path, ground: str) -> None:
    with pytest.raises(UserError, match="opaque colour"):
        read_picture(tmp_path / "x.png", 90, 60, ground)
