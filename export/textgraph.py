"""The text encoder as a graph with INT8 weights, for a box that takes new prompts offline."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ..engines.base import EngineOptions
from ..engines.bundle import Bundle, FileRef, Graph, describe
from ..engines.errors import UserError
from ..engines.ort import OrtBackend
from ..runtime.prompts import FreeText
from .onnxfile import save_graph
from .texts import Umt5

BLOCK = 32  # weights that share a scale


class TextGraph(nn.Module):
    """What text.onnx holds: token ids -> the embedding as the prompt graph wants it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask [1, text_len] int64 (mask 1 for tokens, 0 behind) -> text [1, text_len, text_dim] float32."""
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden.float() * mask.unsqueeze(-1)


def fast_tokenizer(encoder: Umt5) -> Any:
    """What a box reads of it. Raises UserError when the tokenizer has no fast form."""
    fast = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise UserError(f"--text-graph: the tokenizer of {encoder.name} has no tokenizer.json")
    return fast


def write_text_graph(folder: Path, encoder: Umt5, text_len: int) -> tuple[Graph, FileRef]:
    """text.onnx and tokenizer.json into folder. Linear layers get symmetric INT8 weights, one scale per 32.

    Raises UserError when the tokenizer has no fast form.
    """
    fast = fast_tokenizer(encoder)
    fast.no_padding()
    fast.no_truncation()
    fast.save(str(folder / "tokenizer.json"))
    # A folder of its own, because the float graph and its data are not part of the bundle.
    scratch = folder / "text"
    scratch.mkdir()
    ids = torch.zeros(1, text_len, dtype=torch.int64)
    graph = save_graph(
        TextGraph(encoder.model.float()), (ids, torch.ones_like(ids)), ["ids", "mask"], ["text"], scratch / "text.onnx"
    )
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger().setLevel(logging.WARNING)  # importing that module turns everybody's INFO log on
    quantizer = MatMulNBitsQuantizer(
        onnx.load(scratch / "text.onnx"), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    file = folder / "text.onnx"
    packed: Any = quantizer.model
    onnx.save(packed.model, file, save_as_external_data=True, location="text.onnx.data", size_threshold=1 << 20)
    onnx.checker.check_model(file)
    shutil.rmtree(scratch)
    data = folder / "text.onnx.data"
    refs = [describe(data)] if data.exists() else []
    spec = graph.model_copy(update={"model": describe(file), "data": refs})
    return spec, describe(folder / "tokenizer.json")


def text_difference(bundle: Bundle, prompt: str, expected: Tensor) -> float:
    """How far text.onnx and tokenizer.json, run as a stream runs them, are from the encoder's own embedding [tokens,
    text_dim], of that one's size. One prompt, behind which the session is let go: a UMT5-XXL's holds gigabytes."""
    got = torch.from_numpy(FreeText(bundle, OrtBackend(EngineOptions())).embedding(prompt))[0]
    padded = torch.zeros_like(got)
    padded[: len(expected)] = expected
    return float((got - padded).norm() / padded.norm())
