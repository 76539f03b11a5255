"""The bundle's text encoder against the PyTorch one that made the bank, as the export holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everframe.engines.bundle import Bundle, FileRef, Graph
from everframe.engines.errors import UserError
from everframe.export import bundle as written
from everframe.export.bundle import LIMITS, differences
from everframe.export.textgraph import text_difference, write_text_graph
from everframe.export.texts import Umt5
from everframe.export.wanexport import export_wan

from wanfiles import WAN_PROMPTS, source


def never(*_: object) -> dict[str, float]:
    raise AssertionError("the hours of the other graphs come after it")


def test_a_graph_that_is_not_the_encoder_is_not_written(
    wan_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another encoder's graph, from the same files but for a sign; all other comparisons are left out, they have tests."""

    def other(folder: Path, encoder: Umt5, text_len: int) -> tuple[Graph, FileRef]:
        with torch.no_grad():
            encoder.model.encoder.block[1].layer[1].DenseReluDense.wo.weight.neg_()
        return write_text_graph(folder, encoder, text_len)

    monkeypatch.setattr(written, "compare", never)
    monkeypatch.setattr(written, "write_text_graph", other)
    given = source(wan_home, text_graph=True, vae=wan_home / "taew2_1.pth", recache="none")
    with pytest.raises(UserError, match=r"do not agree with PyTorch: text differs by .* \(limit 0\.25\)$"):
        export_wan(given, tmp_path / "x.everframe", chunks=8, force=False)
    assert not (tmp_path / "x.everframe").exists()


def test_the_graph_that_an_export_writes_is_the_encoder(wan_home: Path, speaking_path: Path) -> None:
    """Every prompt, by its distance as numpy has it; with another tokenizer's words it is far off."""
    bundle, encoder = Bundle.open(speaking_path), Umt5(wan_home / "text")
    for prompt in WAN_PROMPTS:
        expected = encoder.encode(prompt, 512)
        found = text_difference(bundle, prompt, expected)
        assert 0 < found < 0.1 < LIMITS["fp32"]["text"] == LIMITS["fp16"]["text"]
        for wrong in (expected.flip(0), encoder.encode("a city a city", 512), 0 * expected + torch.nan):
            assert not text_difference(bundle, prompt, wrong) <= LIMITS["fp16"]["text"]
    assert differences({"text": 0.0123}, 8)[1] == "  text         0.012 of the embedding's size, of one prompt"
