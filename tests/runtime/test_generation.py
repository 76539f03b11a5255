"""A whole video in one call: what is told of changes that no frame shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.runtime import generation
from everframe.runtime.generation import PromptChange, generate

from helpers import PROMPTS


@pytest.mark.parametrize("overlap", [False, True])
def test_a_change_that_comes_too_late_is_told(bundle_path: Path, tmp_path: Path, overlap: bool) -> None:
    """Its last chunk has begun by then. Of 1.5 s in chunks of 0.75 s."""

    def told(*moments: float) -> list[str]:
        notices: list[str] = []
        changes = [PromptChange(at, PROMPTS[1]) for at in moments]
        generate(
            Bundle.open(bundle_path),
            str(tmp_path / "out.mkv"),
            seconds=1.5,
            changes=changes,
            overlap=overlap,
            verify=False,
            replace=True,
            notice=notices.append,
        )
        return notices

    assert told() == []
    assert [line.partition(PROMPTS[1])[0] for line in told(1.4)] == ["--then 1.4:"]
    assert [line.partition(PROMPTS[1])[0] for line in told(0.5, 1.4)] == (["--then 0.5:"] if overlap else []) + [
        "--then 1.4:"
    ]
    with pytest.raises(UserError, match=r"--then 1\.5:.* the video ends at 1\.5 s"):
        told(1.5)


def test_a_change_that_another_replaces_is_told(bundle_path: Path, tmp_path: Path) -> None:
    notices: list[str] = []
    prompts: list[str] = []
    generate(
        Bundle.open(bundle_path),
        str(tmp_path / "out.mkv"),
        seconds=3,
        prompt=PROMPTS[0],
        changes=[PromptChange(0.8, PROMPTS[1], "cut"), PromptChange(0.9, PROMPTS[2])],
        overlap=False,
        verify=False,
        progress=lambda progress: prompts.append(progress.chunk.prompt),
        notice=notices.append,
    )
    assert prompts == [PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[2]]
    assert [line for line in notices if "--then" in line] == [
        f"--then 0.8:{PROMPTS[1]}: another comes with the same chunk: not seen"
    ]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"output": "out.avi"}, r"out\.avi"),
        ({"output": "taken.mp4"}, "already exists"),
        ({"output": "nowhere/out.mp4"}, "does not exist"),
        ({"encoder": "h265"}, "h265"),
        ({"encoder": "h265", "output": "out.gif"}, "h265"),
        ({"output": "taken.mp4/"}, "taken.mp4"),
        ({"seconds": float("inf")}, "seconds inf"),
        ({"seconds": float("nan")}, "seconds nan"),
        ({"seconds": -3}, "seconds -3"),
    ],
)
def test_what_cannot_be_written_is_told_before_engines_are_loaded(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any], words: str
) -> None:
    """They take minutes of a large bundle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generation, "Stream", None)  # who makes one falls over it
    (tmp_path / "taken.mp4").touch()
    arguments: dict[str, Any] = {"output": "out.mp4", **wanted}
    with pytest.raises(UserError, match=words):
        generate(Bundle.open(bundle_path), **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["taken.mp4"]
