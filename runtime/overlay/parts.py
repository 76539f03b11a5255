"""What can lie above the picture, and where. Sizes are percent of the picture's height, places of its width and height."""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MOST_TEXTS = 8


def _colour(text: str) -> str:
    if not re.fullmatch(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{8})", text):
        raise ValueError(f"{text[:40]!r}: expected a colour such as #ffffff, or #00000080 with its opacity")
    return text.lower()


def _words(text: str) -> str:
    if any(unicodedata.category(c) in ("Cc", "Cs") and c != "\n" for c in text):
        raise ValueError("a control character: expected text")
    if not text.strip():
        raise ValueError("expected at least one letter")
    return text


def _format(text: str) -> str:
    try:
        shown = dt.datetime(2000, 12, 31, 23, 59, 59, tzinfo=dt.UTC).strftime(text)
    except (ValueError, UnicodeError):
        shown = ""
    if not shown.strip() or len(shown) > 100 or "%f" in text:  # which would be another picture with every frame
        raise ValueError(f"{text[:40]!r}: expected a form of a time such as %H:%M (strftime)")
    return _words(text)


Colour = Annotated[str, AfterValidator(_colour)]
Ground = Annotated[Colour | None, BeforeValidator(lambda found: None if found == "" else found)]  # TOML has no null
Words = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_words)]
Percent = Annotated[float, Field(ge=0, le=100)]
Size = Annotated[float, Field(gt=0, le=100)]
Corner = Literal["top-left", "top", "top-right", "left", "middle", "right", "bottom-left", "bottom", "bottom-right"]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Placed(Part):
    """Something at a corner, an edge or the middle; x and y, where given, say where its left upper corner is instead."""

    at: Corner = "bottom-left"
    x: Percent | None = None
    y: Percent | None = None
    margin: Percent = 4  # of the picture's height, to the edges that it stands at


class Logo(Placed):
    """A PNG with its alpha, or an SVG. Over the API the file is uploaded, never named."""

    at: Corner = "top-right"
    file: Path | None = None
    size: Size = 12  # its height
    opacity: Percent = 100


class Text(Placed):
    """Words, each line of them `size` high, smaller where they would not fit."""

    text: Words
    size: Size = 6
    colour: Colour = "#ffffff"
    ground: Ground = "#00000080"


class Ticker(Part):
    """A line that runs from right to left, for ever."""

    text: Words
    at: Literal["top", "bottom"] = "bottom"
    size: Size = 6
    speed: Annotated[float, Field(gt=0, le=200)] = 12  # percent of the picture's width a second
    colour: Colour = "#ffffff"
    ground: Ground = "#000000a0"


class Clock(Placed):
    """The time in the timetable's zone."""

    at: Corner = "top-left"
    format: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_format)] = "%H:%M"
    size: Size = 8
    colour: Colour = "#ffffff"
    ground: Ground = "#00000080"


class Code(Placed):
    """A QR code of a text, mostly an address."""

    at: Corner = "bottom-right"
    text: Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_words)]
    size: Size = 25
    colour: Colour = "#000000"
    ground: Colour = "#ffffff"


class Message(Part):
    """Words that cover everything else, the picture too: for an emergency."""

    text: Words
    colour: Colour = "#ffffff"
    ground: Colour = "#a00000"


class Overlay(Part):
    """Everything above the picture."""

    logo: Logo | None = None
    texts: list[Text] = Field(default=[], max_length=MOST_TEXTS)
    ticker: Ticker | None = None
    clock: Clock | None = None
    code: Code | None = None
    message: Message | None = None
    font: Path | None = None  # TrueType or OpenType; default: one of the system's, else Pillow's own

    @property
    def empty(self) -> bool:
        return not (self.logo or self.texts or self.ticker or self.clock or self.code or self.message)
