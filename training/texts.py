"""Embeddings of every prompt of every scene, as `everframe prompts add --text-encoder minilm` makes them.

python training/texts.py        writes training/work/texts.safetensors: prompt -> [tokens, 384] float16
"""

from __future__ import annotations

from safetensors import safe_open
from safetensors.torch import save_file

from everframe.export.texts import MiniLm, encode_all

from prompts import PROMPTS
from run import WORK
from settings import TRANSFORMER
from wishes import every, wordings


def prompts() -> list[str]:
    """Every wording that training sees."""
    found: list[str] = []
    for scene, variants in PROMPTS.items():
        for variant, plain in variants.items():
            found += plain
            found += [p for wish in every(scene, variant) for p in wordings(scene, variant, wish)[:-1]]
    return list(dict.fromkeys(found))


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
