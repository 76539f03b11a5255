"""The configuration's own document."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from everframe.runtime.server.config import (
    Config,
    Guest,
    Logging,
    Osc,
    PlaylistSection,
    Section,
    Server,
    StreamSettings,
    Video,
)

DOCUMENT = Path(__file__).parents[3] / "docs" / "deploy" / "everframe.toml"
SECTIONS: dict[str, type[Section]] = {
    "server": Server,
    "stream": StreamSettings,
    "video": Video,
    "playlist": PlaylistSection,
    "osc": Osc,
    "guest": Guest,
    "logging": Logging,
}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_is_told(name: str) -> None:
    """Those that are given are the defaults, as the document says of itself."""
    text = DOCUMENT.read_text()
    section = re.search(rf"^\[{name}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    told = set(re.findall(r"^(?:# )?(?:\[\[\w+\.)?(\w+)(?: =|\]\])", section[1], re.MULTILINE))
    assert set(SECTIONS[name].model_fields) <= told
    given = tomllib.loads(text)[name]
    assert SECTIONS[name].model_validate(given) == SECTIONS[name]()


def test_it_is_a_configuration() -> None:
    Config.model_validate(tomllib.loads(DOCUMENT.read_text()))
