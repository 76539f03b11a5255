"""Which of several weights in a file are taken, and files that look like another model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from everframe.engines.errors import UserError
from everframe.engines.progress import Report
from everframe.export.lora import Lora, merge_loras
from everframe.export.sources import read
from everframe.export.wanexport import WanSource, generator_family


@pytest.mark.parametrize(
    ("names", "taken", "told"),
    [
        (("model", "ema"), "ema", "holds model and ema: ema is taken; --dictionary picks the other"),
        (
            ("ema_state_dict", "state_dict"),
            "ema_state_dict",
            "state_dict: ema_state_dict is taken; --dictionary picks the",
        ),
        (("model", "critic"), "model", "holds model and critic: model is taken; --dictionary picks the other"),
        (("generator", "model_ema", "critic"), "model_ema", "critic: model_ema is taken; --dictionary picks another"),
        (("generator_ema", "ema", "model"), "generator_ema", "generator_ema is taken"),
        (("model",), "model", ""),
    ],
    ids=str,
)
def test_which_of_several_is_taken_is_said_aloud(tmp_path: Path, names: tuple[str, ...], taken: str, told: str) -> None:
    content: dict[str, object] = {name: {"x.weight": torch.full((1,), i)} for i, name in enumerate(names)}
    torch.save(content | {"step": 3}, tmp_path / "x.pt")
    lines: list[str] = []
    got = read(tmp_path / "x.pt", report=Report(line=lines.append)).state
    assert got["x.weight"] == names.index(taken)
    assert len(lines) == bool(told)
    assert all(told in line and str(tmp_path / "x.pt") in line for line in lines)
    lines.clear()
    for i, name in enumerate(names):
        assert read(tmp_path / "x.pt", name, report=Report(line=lines.append)).state["x.weight"] == i
    assert lines == []


def test_where_no_option_picks_another_none_is_advised(tmp_path: Path) -> None:
    """--dictionary is the generator's: given for the sake of a VAE or a LoRA it would change that."""
    of_all = {"encoder.x": torch.ones(1), "blocks.0.ffn.0.lora_A.weight": torch.ones(1, 4)}
    file = tmp_path / "x.pt"
    torch.save({"state_dict": of_all, "ema": {name: 2 * value for name, value in of_all.items()}}, file)
    lines: list[str] = []
    assert read(file, part="vae", report=Report(line=lines.append)).state["encoder.x"] == 2
    with pytest.raises(UserError, match="no LoRA of this model"):
        merge_loras({"blocks.1.ffn.0.weight": torch.ones(4, 4)}, (Lora(file),), Report(line=lines.append))
    assert lines == [f"{file}: holds state_dict and ema: ema is taken"] * 2


def test_a_checkpoint_of_our_own_as_a_generator(checkpoint: Path) -> None:
    """Its config.json tells heads and text_len under "transformer", where no other model's has them."""
    file = checkpoint / "transformer.safetensors"
    held: dict[str, Tensor] = load_file(file)
    assert "patch_embedding.weight" in held  # by its names it might be anyone's
    with pytest.raises(UserError, match="Everframe's own") as caught:
        generator_family(WanSource(file, Path(), "", Path()))
    assert str(caught.value) == f"{file}: is of a checkpoint of Everframe's own: everframe export {checkpoint}"
