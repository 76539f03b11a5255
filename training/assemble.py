"""Put what was trained into one checkpoint folder, training/demo, which `everframe export` reads.

python training/assemble.py && everframe export training/demo -o runtime/demo.everframe --force
"""

from __future__ import annotations

import dataclasses
import json
import shutil

from safetensors.torch import load_file, save_file

from everframe.export.taehv import DEMO as AUTOENCODER
from everframe.export.wan import DEMO as TRANSFORMER

from clips import HEIGHT, WIDTH
from common import HERE, WORK
from scenes import FPS, PROMPTS
from transformer import CHUNK, JITTER_SEED, JITTER_SIGMA, PAST, SCHEDULE

TARGET = HERE / "demo"


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    for name in ("transformer.safetensors", "autoencoder.safetensors"):
        shutil.copyfile(WORK / name, TARGET / name)
    bank = [prompts[0] for variants in PROMPTS.values() for prompts in variants.values()]
    texts = load_file(WORK / "texts.safetensors")
    save_file({prompt: texts[prompt] for prompt in bank}, TARGET / "prompts.safetensors")
    config = {
        "name": "everframe-demo",
        "transformer": dataclasses.asdict(TRANSFORMER),
        "autoencoder": dataclasses.asdict(AUTOENCODER),
        "geometry": {
            "width": WIDTH,
            "height": HEIGHT,
            "fps": FPS,
            "latent_channels": AUTOENCODER.latent_channels,
            "chunk": CHUNK,
            "sink": CHUNK,
            "window": CHUNK * (1 + PAST + 1),
        },
        "schedule": dataclasses.asdict(SCHEDULE),
        "rope": {"mode": "absolute", "jitter_sigma": JITTER_SIGMA, "jitter_seed": JITTER_SEED},
        "prompts": bank,
    }
    (TARGET / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
