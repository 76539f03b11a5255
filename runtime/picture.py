"""Pictures in: any file that Pillow opens, as the eye sees it, in 8-bit sRGB and the frame's size. What cannot be shown
right is refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, ImageOps, PngImagePlugin, UnidentifiedImageError

from ..engines.errors import UserError
from ..engines.files import reason
from ..engines.text import first_line

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # where Pillow refuses to open a picture; at half of it, it warns
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20  # tools write whole workflows into pictures; Pillow's own limit is 1 MiB
PngImagePlugin.MAX_TEXT_MEMORY = 64 << 20


def read_picture(
    file: Path,
    width: int,
    height: int,
    ground: str | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> NDArray[np.uint8]:
    """A picture file as RGB [height, width, 3], filling the frame, its middle kept.

    The camera's orientation is applied, a colour profile converted to sRGB, and what is transparent laid on `ground`: a
    colour such as "#204060" or "white"; default the mean colour of the picture's own opaque border, or black where there is
    none, which `notice` is told. Raises UserError for what is no picture, or none that can be shown right.
    """
    colour = None if ground is None else parse_colour(ground)
    if file.exists() and not file.is_file():
        raise UserError(f"{file}: not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a reader finds odd is no error
            with Image.open(file) as picture:
                told: list[str] = []
                shown = on_ground(in_srgb(ImageOps.exif_transpose(eight_bits(file, picture))), colour, told.append)
                fitted = ImageOps.fit(shown, (width, height), Image.Resampling.LANCZOS)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{file}: not a picture that can be read") from None
    except Image.DecompressionBombError:
        raise UserError(f"{file}: too many pixels; expected at most {MAX_PIXELS}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except Exception as error:  # on damaged files Pillow's readers raise whatever their libraries do
        raise UserError(f"{file}: cannot read: {first_line(error)}") from None
    for word in told:
        notice(f"{file}: {word}")
    return np.asarray(fitted)


def parse_colour(text: str) -> tuple[int, int, int]:
    """'#204060' or a name -> RGB. Raises UserError."""
    try:
        channels = ImageColor.getrgb(text)  # a fourth would be alpha
    except ValueError:
        channels = ()
    if len(channels) != 3 or not all(0 <= c <= 255 for c in channels):
        raise UserError(f"ground {text!r}: expected an opaque colour such as #204060 or white")
    return channels


def eight_bits(file: Path | str, picture: Image.Image) -> Image.Image:
    """The first frame in a mode of eight bits a channel, its transparency kept. Raises UserError for numbers that have no
    known white."""
    picture.load()
    hole = picture.info.get("transparency")
    transparent = hole is not None
    deep = picture.mode in SIXTEEN_BITS or picture.mode == "I"
    if transparent and (deep or (isinstance(hole, tuple) and max(hole) > 255)):
        raise UserError(
            f"{file}: one of its colours of 16 bits is transparent, which is not read; save it with an alpha channel"
        )
    if picture.mode in SIXTEEN_BITS or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        # Sixteen bits a pixel: Pillow's own conversion cuts everything above 255 off.
        return _kept(
            picture, Image.fromarray((np.asarray(picture, np.float64) / 257 + 0.5).clip(0, 255).astype(np.uint8))
        )
    if picture.mode in ("I", "F"):
        values = np.asarray(picture, np.float64)
        if picture.mode == "F" and np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
            return _kept(picture, Image.fromarray((255 * values + 0.5).astype(np.uint8)))
        kind = "32-bit floats" if picture.mode == "F" else "32-bit integers"
        span = f"from {values.min():g} to {values.max():g}"
        raise UserError(f"{file}: {kind} {span}, whose white nobody knows; save it in 8 or 16 bits a channel")
    if picture.mode in ("LA", "La", "RGBA", "RGBa", "PA") or transparent:
        return _kept(picture, picture.convert("RGBA"))
    if picture.mode in ("RGB", "L", "CMYK", "LAB"):
        return picture
    return _kept(picture, picture.convert("RGB"))


def _kept(old: Image.Image, new: Image.Image) -> Image.Image:
    """The new pixels with what the file says of them beside: orientation and profile."""
    new.info = {k: v for k, v in old.info.items() if k in ("icc_profile", "exif", "xmp", "XML:com.adobe.xmp")}
    new.getexif().update(old.getexif())
    return new


def in_srgb(picture: Image.Image) -> Image.Image:
    """Colours of the picture's profile as sRGB, RGB or RGBA. A profile that cannot be used is as none."""
    profile = picture.info.get("icc_profile")
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    colours: Image.Image = picture.convert("RGB") if alpha is not None else picture
    if profile:
        grey = alpha is not None and _is_grey(colours) and _of_grey(profile)
        colours = _converted(colours.getchannel(0) if grey else colours, profile)
    colours = colours.convert("RGB")
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def _is_grey(colours: Image.Image) -> bool:
    red, green, blue = colours.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def _of_grey(profile: bytes) -> bool:
    """Whether it is a grey picture's, which is RGBA here where something of it is transparent."""
    try:
        found: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        return found.xcolor_space.strip() == "GRAY"
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False


def _converted(colours: Image.Image, profile: bytes) -> Image.Image:
    try:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        out = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return colours if out is None else out
    except (ImageCms.PyCMSError, OSError, ValueError):
        return colours


def on_ground(picture: Image.Image, colour: tuple[int, int, int] | None, notice: Callable[[str], None]) -> Image.Image:
    """RGB; what is transparent shows the ground, never the colour that a file hides behind it."""
    if picture.mode != "RGBA":
        return picture
    if picture.getextrema()[3][0] == 255:  # type: ignore[index] - nothing is transparent
        return picture.convert("RGB")
    if colour is None:
        colour = border_colour(picture)
        red, green, blue = colour
        notice(f"is transparent in part: laid on #{red:02x}{green:02x}{blue:02x} (ground: a colour chooses another)")
    ground = Image.new("RGBA", picture.size, (*colour, 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def border_colour(picture: Image.Image) -> tuple[int, int, int]:
    """Mean colour of the opaque part of the outermost pixels of an RGBA picture; black where all of them are transparent."""
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(np.float64)
    opaque = border[border[:, 3] == 255]
    red, green, blue = opaque[:, :3].mean(0).round().astype(int).tolist() if len(opaque) else (0, 0, 0)
    return red, green, blue
