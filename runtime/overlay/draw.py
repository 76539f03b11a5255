"""An overlay drawn for a picture of some size, by Pillow: the one place where it becomes pixels, so that what lies above the
video in a page and what is burned into frames are the same."""

from __future__ import annotations

import codecs
import datetime as dt
import html
import io
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ...engines.errors import UserError
from ...engines.files import reason
from ..picture import eight_bits, in_srgb
from .parts import Clock, Code, Logo, Message, Overlay, Placed, Text, Ticker

FONTS = Path("/usr/share/fonts")
USUAL = (
    "truetype/dejavu/DejaVuSans.ttf",
    "truetype/noto/NotoSans-Regular.ttf",
    "truetype/liberation/LiberationSans-Regular.ttf",
    "dejavu-sans-fonts/DejaVuSans.ttf",
    "TTF/DejaVuSans.ttf",
)
PAGE = 1080  # pixels that a page's drawing is high, where nothing else is asked for
PAD = 0.25  # of a line's height, between words and the edge of their ground
FULL = 0.96  # of the picture's width that words may take
LARGEST = 32_000_000  # pixels of a logo or of a ticker's words
QUIET = 2  # modules of ground around a code


@dataclass(frozen=True)
class Pixels:
    """uint8 [h, w, 4], straight alpha; split once for all the frames that they are burned into."""

    y: int
    pixels: NDArray[np.uint8]

    @cached_property
    def colours(self) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[..., :3]))

    @cached_property
    def alpha(self) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[..., 3]))


@dataclass(frozen=True)
class Piece(Pixels):
    """Its left upper corner stands at x, y, inside the picture."""

    x: int


@dataclass(frozen=True)
class Strip(Pixels):
    """A ticker's words, which come in at the right edge at second 0 and again once they have gone."""

    speed: float  # in the picture's widths a second
    share: float  # the words' length in the picture's widths
    width: int  # the picture's

    def place(self, seconds: float) -> int:
        """Left edge of the words; negative where they have begun to leave."""
        return self.width - int(seconds * self.speed % (1 + self.share) * self.width)


@dataclass(frozen=True)
class Drawn:
    """Pieces from the lowest to the highest; above them the strip."""

    size: tuple[int, int]  # width, height
    pieces: tuple[Piece, ...]
    strip: Strip | None = None

    def still(self) -> Image.Image:
        """All pieces in one transparent picture of the whole size."""
        canvas = Image.new("RGBA", self.size)
        for piece in self.pieces:
            canvas.alpha_composite(Image.fromarray(piece.pixels, "RGBA"), (piece.x, piece.y))
        return canvas


def draw(overlay: Overlay, size: tuple[int, int], now: dt.datetime, logo: bytes | None = None) -> Drawn:
    """size: width and height in pixels; now: what the clock shows; logo: the content of its file. Raises UserError naming
    the part that cannot be drawn."""
    if overlay.message is not None:
        return Drawn(size, (_message(overlay.message, size, overlay.font),))
    pieces = []
    if overlay.ticker is not None and overlay.ticker.ground:
        pieces.append(_bar(overlay.ticker, size))
    if overlay.logo is not None and logo is not None:
        pieces.append(_logo(overlay.logo, logo, size))
    if overlay.code is not None:
        pieces.append(_code(overlay.code, size))
    pieces += [_text(one, one.text, size, overlay.font) for one in overlay.texts]
    if overlay.clock is not None:
        pieces.append(_text(overlay.clock, now.strftime(overlay.clock.format), size, overlay.font))
    strip = None if overlay.ticker is None else _strip(overlay.ticker, size, overlay.font)
    return Drawn(size, tuple(pieces), strip)


@lru_cache(64)
def font(file: Path | None, pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Raises UserError for a file that is no font."""
    found = file or next((FONTS / name for name in USUAL if (FONTS / name).is_file()), None)
    try:
        return ImageFont.load_default(pixels) if found is None else ImageFont.truetype(found, pixels)
    except OSError as error:
        raise UserError(f"overlay.font {found}: not a font: {reason(error)}") from None


def _height(percent: float, height: int) -> int:
    return max(1, round(percent / 100 * height))


def _extent(text: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[float, float, float, float]:
    return ImageDraw.Draw(Image.new("RGBA", (1, 1))).multiline_textbbox((0, 0), text, letters)


def _words(text: str, pixels: int, colour: str, file: Path | None, widest: float, tallest: float) -> Image.Image:
    """Lines of text on nothing, as wide as they are, in a smaller font where they would be wider than `widest`; without
    lines that no picture `tallest` pixels high could show, for a thousand of them would take gigabytes."""
    while True:
        letters = font(file, pixels)
        left, top, right, bottom = _extent(text, letters)
        if right - left <= widest or pixels <= 2:
            break
        pixels = max(2, min(pixels - 1, int(pixels * widest / (right - left))))
    text = "\n".join(text.split("\n")[: int(tallest / pixels) + 2])
    left, top, right, bottom = _extent(text, letters)
    image = Image.new("RGBA", (max(1, int(right - left) + 1), max(1, int(bottom - top) + 1)))
    ImageDraw.Draw(image).multiline_text((-left, -top), text, colour, letters, align="center")
    return image


def _grounded(words: Image.Image, ground: str | None, pad: int) -> Image.Image:
    board = Image.new("RGBA", (words.width + 2 * pad, words.height + 2 * pad), ground or (0, 0, 0, 0))
    board.alpha_composite(words, (pad, pad))
    return board


def _text(part: Text | Clock, text: str, size: tuple[int, int], file: Path | None) -> Piece:
    pixels = _height(part.size, size[1])
    pad = round(PAD * pixels)
    return _placed(
        part,
        _grounded(_words(text, pixels, part.colour, file, FULL * size[0] - 2 * pad, size[1]), part.ground, pad),
        size,
    )


def _placed(part: Placed, image: Image.Image, size: tuple[int, int]) -> Piece:
    """Where it stands; what would stand outside is cut off."""
    margin, (width, height) = _height(part.margin, size[1]) if part.margin else 0, size
    across = "left" if "left" in part.at else "right" if "right" in part.at else "middle"
    down = "top" if "top" in part.at else "bottom" if "bottom" in part.at else "middle"
    x = {"left": margin, "right": width - margin - image.width, "middle": (width - image.width) // 2}[across]
    y = {"top": margin, "bottom": height - margin - image.height, "middle": (height - image.height) // 2}[down]
    x = x if part.x is None else round(part.x / 100 * width)
    y = y if part.y is None else round(part.y / 100 * height)
    return _inside(x, y, image, size)


def _inside(x: int, y: int, image: Image.Image, size: tuple[int, int]) -> Piece:
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(image.width, size[0] - x), min(image.height, size[1] - y)
    pixels = np.asarray(image)[top : max(top, bottom), left : max(left, right)]
    return Piece(y + top, pixels, x + left)


def _message(part: Message, size: tuple[int, int], file: Path | None) -> Piece:
    """As large as it fits, broken between words."""
    width, height = size
    words, pixels = part.text.split(), max(4, _height(18, size[1]))
    while True:
        lines = _broken(part.text, pixels, 0.9 * width, file)
        image = _words("\n".join(lines), pixels, part.colour, file, 0.9 * width, height)
        if image.height <= 0.85 * height or pixels <= 4 or not words:
            break
        pixels = int(0.9 * pixels)
    board = Image.new("RGB", size, part.ground[:7]).convert("RGBA")  # whatever its opacity: nothing shines through
    board.alpha_composite(image, (max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)))
    return Piece(0, np.asarray(board), 0)


def _broken(text: str, pixels: int, widest: float, file: Path | None) -> list[str]:
    letters, lines = font(file, pixels), []
    for paragraph in text.split("\n"):
        line = ""
        for word in _pieces(paragraph, letters, widest):
            longer = f"{line} {word}".strip()
            if line and letters.getlength(longer) > widest:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _pieces(paragraph: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, widest: float) -> Iterator[str]:
    """Its words, those that no line could hold cut to lines."""
    for word in paragraph.split():
        while len(word) > 1 and letters.getlength(word) > widest:
            most = bisect_right(range(len(word)), widest, key=lambda n: letters.getlength(word[: n + 1]))
            yield word[: max(1, most)]
            word = word[max(1, most) :]
        if word:
            yield word


def _bar(part: Ticker, size: tuple[int, int]) -> Piece:
    y, high = strip_place(part, size[1])
    return Piece(y, np.asarray(Image.new("RGBA", (size[0], high), part.ground)), 0)


def _strip(part: Ticker, size: tuple[int, int], file: Path | None) -> Strip:
    y, high = strip_place(part, size[1])
    pixels = _height(part.size, size[1])
    words = _words(" ".join(part.text.split()), pixels, part.colour, file, LARGEST / pixels, size[1])
    line = Image.new("RGBA", (words.width, high))
    line.alpha_composite(
        words.crop((0, 0, words.width, min(high, words.height))), (0, max(0, (high - words.height) // 2))
    )
    return Strip(y, np.asarray(line), part.speed / 100, strip_share(part, size, file), size[0])


def strip_share(part: Ticker, size: tuple[int, int], file: Path | None) -> float:
    """A ticker's words in widths of the picture, as they are in a page's drawing: letters are rounded differently at every
    height, and after all the rounds since 1970 the smallest difference is another place."""
    pixels = _height(part.size, PAGE)
    left, _, right, _ = _extent(" ".join(part.text.split()), font(file, pixels))
    return min(right - left, LARGEST / pixels) / (PAGE * size[0] / size[1])


def strip_place(part: Ticker, height: int) -> tuple[int, int]:
    """Upper edge and height of a ticker's line, in pixels of a picture so high."""
    high = min(height, round((1 + 2 * PAD) * _height(part.size, height)))
    return 0 if part.at == "top" else height - high, high


def _code(part: Code, size: tuple[int, int]) -> Piece:
    """Every module the same whole number of pixels, so that it can be read; as large as fits into its size."""
    try:
        import segno
    except ImportError:
        raise UserError("overlay.code: needs segno: pip install 'everframe[overlay]'") from None
    try:
        modules = np.array([list(row) for row in segno.make(part.text, micro=False, error="m").matrix], bool)
    except (segno.DataOverflowError, ValueError) as error:
        raise UserError(f"overlay.code.text: {error}") from None
    modules = np.pad(modules, QUIET)
    scale = max(1, _height(part.size, size[1]) // len(modules))
    dark, light = (np.array(_rgba(colour), np.uint8) for colour in (part.colour, part.ground))
    pixels = np.where(modules.repeat(scale, 0).repeat(scale, 1)[..., None], dark, light)
    return _placed(part, Image.fromarray(pixels, "RGBA"), size)


def _rgba(colour: str) -> list[int]:
    return [int((colour + "ff")[i : i + 2], 16) for i in (1, 3, 5, 7)]


def _logo(part: Logo, content: bytes, size: tuple[int, int]) -> Piece:
    image = _as_high(content, _height(part.size, size[1]), 4 * size[0]).copy()
    if part.opacity < 100:
        image.putalpha(image.getchannel("A").point([round(a * part.opacity / 100) for a in range(256)]))
    return _placed(part, image, size)


@lru_cache(4)  # a clock beside it is drawn anew every second, at the size of pages and of what is burned in
def _as_high(content: bytes, high: int, widest: int) -> Image.Image:
    image = picture_of(content, min(high, 2160))
    wide = max(1, round(image.width * high / image.height))
    return image.resize((min(wide, widest), high), Image.Resampling.LANCZOS)


def picture_of(content: bytes, high: int) -> Image.Image:
    """A logo's file as RGBA; an SVG drawn `high` pixels high. Raises UserError."""
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.lstrip()[:1] == b"<":
        content = _of_svg(content, high)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > LARGEST:
                raise UserError(f"overlay.logo: {image.width}×{image.height} pixels, at most {LARGEST:,}")
            return in_srgb(ImageOps.exif_transpose(eight_bits("overlay.logo", image))).convert("RGBA")
    except UserError:
        raise
    except Exception:  # on damaged files Pillow's readers raise whatever their libraries do
        raise UserError("overlay.logo: neither a PNG, JPEG or WebP picture nor an SVG") from None


def _of_svg(content: bytes, high: int) -> bytes:
    """PNG. An SVG that names another file or address is refused: none is read."""
    try:
        import resvg_py
    except ImportError:
        raise UserError("overlay.logo: an SVG needs resvg: pip install 'everframe[overlay]'") from None
    text = content.decode("utf-8", "replace")
    # Possessive: what is passed over is not given back for the sake of a match.
    named = r"""href\s*+=\s*+["']?+\s*+(?!["'#]|data:)|<!ENTITY|@import|url\(\s*+["']?+\s*+(?!["'#]|data:)"""
    if re.search(named, html.unescape(text), re.IGNORECASE):
        raise UserError("overlay.logo: an SVG that refers to another file or address")
    try:
        # Both bounds: by its height alone one that is very wide would be drawn before its size could be looked at.
        drawn = bytes(resvg_py.svg_to_bytes(svg_string=text, width=LARGEST // high, height=high))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"overlay.logo: not an SVG: {str(error).splitlines()[0][:200]}") from None
    with Image.open(io.BytesIO(drawn)) as image:
        if image.height < high - 1:  # the width was what bounds it
            raise UserError(f"overlay.logo: {high} pixels high it is wider than {LARGEST // high}")
    return drawn
