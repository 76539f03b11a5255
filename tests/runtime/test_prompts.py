"""Finding a prompt as people write it."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from everframe.engines.bundle import Bundle, describe, write_manifest
from everframe.engines.errors import UserError
from everframe.runtime.prompts import PromptBank

COLOURS, THINGS, PLACES = 20, 20, 12


def bank_of(bundle_path: Path, folder: Path, prompts: list[str]) -> PromptBank:
    """The test bundle with another bank: embeddings that tell their number."""
    shutil.copytree(bundle_path, folder)
    bundle = Bundle.open(folder)
    some = next(iter(load_file(folder / bundle.manifest.prompt_bank.file).values()))
    save_file({p: np.full_like(some[:2], i) for i, p in enumerate(prompts)}, folder / bundle.manifest.prompt_bank.file)
    ref = describe(folder / bundle.manifest.prompt_bank.file)
    write_manifest(folder, bundle.manifest.model_copy(update={"prompt_bank": ref, "prompts": prompts}))
    return PromptBank(Bundle.open(folder))


def test_forms_of_the_same_prompt(bundle_path: Path, tmp_path: Path) -> None:
    bank = bank_of(
        bundle_path, tmp_path / "x.everframe", ["A café at dawn", "a harbour\u2028at dawn", "Straße bei Nacht"]
    )
    for asked, found in (
        (unicodedata.normalize("NFD", "a café at dawn"), "A café at dawn"),
        ("  a   CAFÉ\tat dawn\n", "A café at dawn"),
        ("\ufeffa café at dawn", "A café at dawn"),
        ("a harbour at dawn", "a harbour\u2028at dawn"),
        ("STRASSE BEI NACHT", "Straße bei Nacht"),
    ):
        assert bank.find(asked) == found
        assert bank.embedding(asked).max() == bank.prompts.index(found)


def test_a_bank_of_thousands(bundle_path: Path, tmp_path: Path) -> None:
    prompts = [
        f"colour {i} of a thing {j} in a place {k}, {'with very many words ' * 20}".strip()
        for i in range(COLOURS)
        for j in range(THINGS)
        for k in range(PLACES)
    ]
    bank = bank_of(bundle_path, tmp_path / "x.everframe", prompts)
    assert all(bank.find(p.upper()) == p for p in prompts[::97])
    with pytest.raises(UserError) as caught:
        bank.find(prompts[1234].replace("thing", "thimg"))
    said = str(caught.value)
    assert len(said) < 1000
    assert "did you mean" in said
    assert f"of {len(prompts)}" in said
    with pytest.raises(UserError) as caught:
        bank.find("x" * 200_000)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("asked", ["", "   ", "\ufeff", "\u2028"])
def test_nothing_is_no_prompt(bundle_path: Path, asked: str) -> None:
    with pytest.raises(UserError, match="is empty"):
        PromptBank(Bundle.open(bundle_path)).find(asked)
