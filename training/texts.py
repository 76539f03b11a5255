"""Embeddings of every prompt of every scene, as `everframe prompts add --text-encoder minilm` makes them.

python training/texts.py        writes training/work/texts.safetensors: prompt -> [tokens, 384] float16
"""

from __future__ import annotations

from safetensors import safe_open
from safetensors.torch import save_file

from everframe.export.texts import MiniLm, encode_all

from clips import WISHLESS, instance
from prompts import PROMPTS
from run import WORK
from settings import TRANSFORMER


def prompts() -> list[str]:
    """Every wording that training sees."""
    known = [p for variants in PROMPTS.values() for wordings in variants.values() for p in wordings]
    wished = [p for i in range(WISHLESS, 2 * WISHLESS) for p in instance(i).wordings]
    return list(dict.fromkeys(known + wished))


def complete() -> bool:
    """Whether all of them are encoded: some may be newer than the file."""
    file = WORK / "texts.safetensors"
    if not file.exists():
        return False
    with safe_open(file, "pt") as texts:
        return set(prompts()) <= set(texts.keys())


def main() -> None:
    WORK.mkdir(exist_ok=True)
    texts = encode_all(MiniLm(), prompts(), TRANSFORMER.text_len)
    save_file({p: t.half() for p, t in texts.items()}, WORK / "texts.safetensors")


if __name__ == "__main__":
    main()
