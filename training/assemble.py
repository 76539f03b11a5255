"""Put what was trained into one checkpoint folder, which `everframe export` reads.

python training/assemble.py && everframe export training/demo -o runtime/demo.everframe --force
python training/assemble.py --transformer short --target training/work/short     # the variant of the study
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from everframe.export.taehv import DEMO as AUTOENCODER
from everframe.export.wan import DEMO as TRANSFORMER

from clips import HEIGHT, WIDTH
from common import HERE, WORK
from scenes import FPS, PROMPTS
from transformer import CHUNK, ETA, JITTER_SEED, JITTER_SIGMA, PAST, SCHEDULE, SHORT


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--transformer", default="transformer", help="transformer, student or short")
    parser.add_argument("--target", type=Path, default=HERE / "demo")
    args = parser.parse_args()
    target: Path = args.target
    target.mkdir(exist_ok=True)
    shutil.copyfile(WORK / f"{args.transformer}.safetensors", target / "transformer.safetensors")
    shutil.copyfile(WORK / "autoencoder.safetensors", target / "autoencoder.safetensors")
    bank = [prompts[0] for variants in PROMPTS.values() for prompts in variants.values()]
    texts = load_file(WORK / "texts.safetensors")
    save_file({prompt: texts[prompt] for prompt in bank}, target / "prompts.safetensors")
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
        "schedule": dataclasses.asdict(SCHEDULE) | {"eta": ETA},
        "rope": {
            "mode": "absolute",
            "jitter_sigma": 0.0 if args.transformer == "short" else JITTER_SIGMA,
            "jitter_seed": JITTER_SEED,
        },
        "prompts": bank,
    }
    if args.transformer == "short":
        config["geometry"] |= {"height": 16 * SHORT[0], "width": 16 * SHORT[1]}
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
