"""Put what was trained into one checkpoint folder, which `everframe export` reads.

python training/assemble.py                        the student, or the teacher before there is one → training/work/demo
python training/assemble.py --target training/demo                                 the one that ships
python training/assemble.py --transformer short --target training/work/short                   the variant of the study
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from everframe.export.wan import unfold

from clips import HEIGHT, WIDTH
from prompts import PROMPTS
from rollout import CHUNK, ETA, JITTER_SEED, JITTER_SIGMA, PAST, SCHEDULE, SHORT
from run import WORK, load_part, progress_of
from scenes import FPS
from settings import MANY_HEADED, TRANSFORMER
from weights import first_autoencoder, trained_autoencoder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--transformer",
        choices=("newest", "short", "many"),
        default="newest",
        help="the others are the study's variants",
    )
    parser.add_argument("--plain", action="store_true", help="with the decoder as it was before decoder.py tuned it")
    parser.add_argument("--target", type=Path, default=WORK / "demo")
    args = parser.parse_args()
    target: Path = args.target
    short = args.transformer != "newest"
    network = MANY_HEADED if args.transformer == "many" else TRANSFORMER
    target.mkdir(exist_ok=True, parents=True)
    if short:
        autoencoder = first_autoencoder()
        shutil.copyfile(WORK / f"{args.transformer}.safetensors", target / "transformer.safetensors")
    else:
        autoencoder = trained_autoencoder(args.plain)
        student = progress_of("distill", of=progress_of("transformer"))
        tuned = 0 if args.plain else progress_of("decoder", of=progress_of("autoencoder"))
        print(f"the student after {student} steps" if student else "the teacher: it has no student yet")
        print(f"the decoder tuned in {tuned} steps" if tuned else "the decoder as it was trained with the encoder")
        state = unfold(load_part("distill" if student else "transformer", "model"), TRANSFORMER)
        save_file({k: v.half().contiguous() for k, v in state.items()}, target / "transformer.safetensors")
    weights = {k: v.half().contiguous() for k, v in autoencoder.state_dict().items()}
    save_file(weights, target / "autoencoder.safetensors")
    bank = [prompts[0] for variants in PROMPTS.values() for prompts in variants.values()]
    texts = load_file(WORK / "texts.safetensors")
    save_file({prompt: texts[prompt] for prompt in bank}, target / "prompts.safetensors")
    config = {
        "name": "everframe-demo",
        "transformer": dataclasses.asdict(network),
        "autoencoder": dataclasses.asdict(autoencoder.config),
        "geometry": {
            "width": WIDTH,
            "height": HEIGHT,
            "fps": FPS,
            "latent_channels": autoencoder.config.latent_channels,
            "chunk": CHUNK,
            "sink": CHUNK,
            "window": CHUNK * (1 + PAST + 1),
        },
        "schedule": dataclasses.asdict(SCHEDULE) | {"eta": ETA},
        "rope": {
            "mode": "absolute",
            "jitter_sigma": 0.0 if short else JITTER_SIGMA,
            "jitter_seed": JITTER_SEED,
        },
        "prompts": bank,
    }
    if short:
        config["geometry"] |= {"height": 16 * SHORT[0], "width": 16 * SHORT[1]}
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
