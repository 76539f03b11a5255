"""Finding a prompt as people write it."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle, Shots, describe, write_manifest
from everframe.engines.errors import UserError
from everframe.engines.host import HostBuffer
from everframe.engines.ort import OrtBackend
from everframe.runtime import Stream, prompts
from everframe.runtime.prompts import PromptBank
from everframe.runtime.state import load_state, save_state

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
    every = [
        f"colour {i} of a thing {j} in a place {k}, {'with very many words ' * 20}".strip()
        for i in range(COLOURS)
        for j in range(THINGS)
        for k in range(PLACES)
    ]
    bank = bank_of(bundle_path, tmp_path / "x.everframe", every)
    assert all(bank.find(p.upper()) == p for p in every[::97])
    with pytest.raises(UserError) as caught:
        bank.find(every[1234].replace("thing", "thimg"))
    said = str(caught.value)
    assert len(said) < 1000
    assert "did you mean" in said
    assert f"of {len(every)}" in said
    with pytest.raises(UserError) as caught:
        bank.find("x" * 200_000)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("asked", ["", "   ", "\ufeff", "\u2028"])
def test_nothing_is_no_prompt(bundle_path: Path, asked: str) -> None:
    with pytest.raises(UserError, match="is empty"):
        PromptBank(Bundle.open(bundle_path)).find(asked)


class CountingEncoder:
    """In the place of a text encoder: an embedding that tells the prompt."""

    def __init__(self, bundle: Bundle, backend: object):
        self.shape = 1, bundle.manifest.network.text_len, bundle.manifest.network.text_dim

    def embedding(self, prompt: str) -> np.ndarray:
        return np.full(self.shape, sum(prompt.encode()) / 1000, np.float32)


def speaking(bundle: Bundle, patch: pytest.MonkeyPatch) -> Bundle:
    """As if it had its text encoder."""
    patch.setattr(prompts, "FreeText", CountingEncoder)
    graphs = bundle.manifest.graphs
    changes = {"graphs": graphs | {"text": graphs["prompt"]}}
    return Bundle(bundle.path, bundle.manifest.model_copy(update=changes))


def test_free_prompts_that_are_not_remembered_are_encoded_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = PromptBank(speaking(bundle, monkeypatch), OrtBackend(EngineOptions()))
    first = bank.find("a walrus in  the sun")
    told = bank.embedding(first)
    for i in range(prompts.KEPT):
        bank.find(f"walrus number {i}")
    assert (bank.embedding(first) == told).all()
    assert told.max() == np.float32(sum(b"a walrus in the sun") / 1000)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_saved_state_with_a_free_prompt(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waiting: bool
) -> None:
    """The prompt of the state, or one that waits in it, in a process that has never heard of it."""
    talker = speaking(bundle, monkeypatch)
    with Stream(talker, seed=3, overlap=False, verify=False) as first:
        first.next_chunk()
        first.set_prompt("a walrus in the sun", "swap")
        if not waiting:
            first.next_chunk()
        save_state(first, tmp_path / "state")
        expected = first.next_chunk()
    with Stream(talker, seed=3, overlap=False, verify=False) as second:
        load_state(second, tmp_path / "state")
        chunk = second.next_chunk()
    assert chunk.prompt == expected.prompt == "a walrus in the sun"
    assert (chunk.latent == expected.latent).all()


def test_a_bank_of_before_that_holds_the_prefix_of_shots(bundle_path: Path, tmp_path: Path) -> None:
    """Its prompts are found, with that prefix and in its own spelling."""
    bank_of(bundle_path, tmp_path / "x.everframe", ["Next. a sea", "a city", "Next. a city"])
    bundle = Bundle.open(tmp_path / "x.everframe")
    shots = Shots(offset=8, prefix="Next. ")
    bank = PromptBank(Bundle(bundle.path, bundle.manifest.model_copy(update={"shots": shots})))
    assert bank.find("Next. a sea") == "Next. a sea"
    assert bank.embedding("Next. a sea").max() == 0
    assert bank.find("Next. a city") == bank.find("Next. Next. a city") == "a city"
    assert bank.shot_embedding("a city").max() == 2


def test_a_long_prompt_keeps_its_end_mark() -> None:
    """As the tokenizer's own truncation does it, which made the bank."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"</s>": 1, "snow": 2, "sea": 3, "?": 0}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    encoder = prompts.FreeText.__new__(prompts.FreeText)
    encoder._tokenizer, encoder._run = tokenizer, lambda: None
    buffers: dict[str, Any] = {name: HostBuffer((1, 6), "int64") for name in ("ids", "mask", "text")}
    encoder._buffers = buffers
    cut = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    cut.enable_truncation(6)
    for text in ("snow sea", "snow sea snow sea snow", "snow " * 4 + "sea " * 4):
        encoder.embedding(text)
        expected = cut.encode(text).ids
        assert encoder._buffers["ids"].read()[0, : len(expected)].tolist() == expected
        assert encoder._buffers["mask"].read().sum() == len(expected)
        assert expected[-1] == 1


def test_a_control_character_is_no_word(bundle_path: Path) -> None:
    """Of a bundle that takes any text too, for which it is spelled by who has no encoder."""
    bank = PromptBank(Bundle.open(bundle_path))
    assert bank.spelled(" any\u2028words\t") == "any words"
    for asked in ("a bell\x07", "\x1b[2J", "\x00"):
        for refused in (bank.spelled, bank.find, prompts.free_words):
            with pytest.raises(UserError, match="has a control character"):
                refused(asked)
