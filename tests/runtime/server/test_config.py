"""The configuration's own document."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from everframe.engines.errors import UserError
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
    read_config,
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


ITEM = '[[playlist.items]]\nprompt = "a sea"\n'


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('[stream]\nprompt = ""\n', r"stream\.prompt"),
        (f'[stream]\nprompt = "{"a" * 2001}"\n', r"stream\.prompt"),
        (501 * ITEM, r"playlist\.items"),
    ],
)
def test_what_could_not_be_served_is_told_by_its_field(tmp_path: Path, text: str, field: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^{file}: {field}") as caught:
        read_config(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
