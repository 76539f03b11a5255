"""Judge a stream by its pictures: how much there is to see, against renders of the same prompts, and what it shows.

    python training/judge.py [--bundle B]              three seeds of every prompt of the bank
    python training/judge.py --seeds 8 --against 24    less by chance, ten minutes
    python training/judge.py --renders                 other renders in place of a stream: the judge's own examination
    python training/judge.py --autoencoder shipped     renders that an autoencoder has coded and decoded

Measures: measures.py; things: things.py; goals: marks.py. Here the scene is named: nearest class by simple statistics,
learnt from rendered clips alone. A clip becomes the mean colour of 8×5 tiles and the mean absolute change of each tile
per frame; classes are (scene, variant). The judge never sees a generated frame before it judges, and is itself tested on
held-out rendered clips.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from everframe.engines.bundle import Bundle
from everframe.export.taehv import Taehv
from everframe.runtime import Stream, open_bundle
from everframe.runtime.measure.bench import facts_of
from everframe.runtime.rope import FARTHEST

from clips import JUDGES
from marks import Row, by_scene, goals, measure, shares
from measures import Frames
from prompts import PROMPTS
from reconstruct import stream, to_bytes
from scenes import PLAIN, render
from weights import shipped_autoencoder, trained_autoencoder
from wishes import Wish

CLASSES = [(scene, variant) for scene, variants in PROMPTS.items() for variant in variants]
TILES = (5, 8)
PART = 12  # frames from which a scene is named
LENGTH, WARM = 48, 12  # frames of a judged clip; frames that warm an autoencoder's memory
FIRST_SEED, TRUE = 9000, 8  # of seeds that no training uses; renders per prompt that a stream is compared with
UNSEEN = JUDGES.start + 100, JUDGES.stop - 200  # the first seed: not the judge's examples; 200 are used


def features(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """frames [T, H, W, 3] uint8 -> [160]"""
    _, h, w, _ = frames.shape
    rows, columns = TILES
    h, w = h // rows * rows, w // columns * columns

    def tiled(values: NDArray) -> NDArray:
        return values.reshape(len(values), rows, h // rows, columns, w // columns, -1).mean((0, 2, 4))

    x = frames[:, :h, :w].astype(np.float64) / 255
    motion = np.abs(np.diff(x, axis=0)).mean(-1, keepdims=True)
    return np.concatenate([tiled(x).ravel(), 4 * tiled(motion).ravel()])


def rendered(scene: str, variant: str, seed: int) -> NDArray[np.uint8]:
    frames = render(scene, variant, seed, torch.arange(PART) + 37 * seed)
    return (frames * 255).round().byte().numpy()


class Judge:
    """Nearest class by Mahalanobis distance under the classes' common covariance, shrunk towards its diagonal."""

    def __init__(self, examples: int = 10, first_seed: int = JUDGES.start, shrinkage: float = 0.1, floor: float = 2e-3):
        rows = np.stack(
            [[features(rendered(s, v, first_seed + i)) for i in range(examples)] for s, v in CLASSES]
        )  # [class, example, feature]
        self.means = rows.mean(1)
        within = (rows - self.means[:, None]).reshape(-1, rows.shape[-1])
        covariance = within.T @ within / len(within)
        diagonal = np.diag(np.diag(covariance))
        self.precision = np.linalg.inv(
            (1 - shrinkage) * covariance + shrinkage * diagonal + floor * np.eye(len(covariance))
        )

    def name(self, frames: NDArray[np.uint8]) -> tuple[str, str]:
        """The (scene, variant) that the clip looks most like, mean over its parts of twelve frames."""
        parts = [frames[i : i + PART] for i in range(0, max(1, len(frames) - PART + 1), PART)]
        away = np.stack([features(part) for part in parts])[:, None] - self.means  # [part, class, feature]
        distance = np.einsum("pci,ij,pcj->c", away, self.precision, away)
        return CLASSES[int(distance.argmin())]


def clips_of_stream(
    bundle: Bundle, prompt: str, seeds: int, warm: int, length: int = LENGTH, first: int = FIRST_SEED, on: int = 0
) -> list[Frames]:
    """So many frames of a running stream for every seed, after so many chunks. on: latent frames that are left out behind
    its beginning, as if it had run on for as long."""
    clips = []
    for seed in range(first, first + seeds):
        with Stream(bundle, prompt=prompt, seed=seed) as stream:
            frames: list[Frames] = [stream.next_chunk().frames]
            stream._position += on
            while sum(map(len, frames)) < length + warm * bundle.manifest.geometry.chunk_frames:
                frames.append(stream.next_chunk().frames)
        clips.append(np.concatenate(frames)[-length:])
    return clips


def rendered_clips(scene: str, variant: str, seeds: range, wish: Wish = PLAIN, length: int = LENGTH) -> list[Frames]:
    """So many frames of renders that no training has seen, from different moments."""
    clips = [render(scene, variant, seed, torch.arange(length) + 37 * (seed % 100), wish=wish) for seed in seeds]
    return [(clip * 255).round().byte().numpy() for clip in clips]


def through(ae: Taehv, clips: list[Frames]) -> list[Frames]:
    """What an autoencoder, run as a stream runs it, makes of clips; the memory is warmed up by the clip itself."""
    out = []
    for clip in clips:
        frames = torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255
        out.append(to_bytes(stream(ae, torch.cat([frames[:, :WARM], frames], 1)))[WARM:])
    return out


def show(rows: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(k for row in rows.values() for k in row))
    common = [c for c in columns if all(c in row for row in rows.values())]
    print(f"{'':16}" + "".join(f"{c:>11}" for c in common))
    for name, row in rows.items():
        things = "  ".join(f"{c} {row[c]:.2f}" for c in columns if c in row and c not in common)
        print(f"{name:16}" + "".join(f"{row[c]:11.2f}" for c in common) + f"  {things}")


def main() -> None:
    parser = argparse.ArgumentParser()
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bundle", type=Path)
    what.add_argument("--renders", action="store_true", help="judge other renders, which must get full marks")
    what.add_argument("--autoencoder", choices=("shipped", "trained", "plain"), help="judge renders coded and decoded")
    parser.add_argument("--seeds", type=int, default=3, help="streams of every prompt")
    parser.add_argument("--against", type=int, default=TRUE, help="renders of every prompt that they are compared with")
    parser.add_argument(
        "--first-seed", type=int, default=FIRST_SEED, help="other streams and renders, from {} to {}".format(*UNSEEN)
    )
    parser.add_argument("--warm", type=int, default=4, help="chunks of a stream before it is judged")
    parser.add_argument("--on", type=int, default=0, help="latent frames that a stream leaves out behind its beginning")
    parser.add_argument("--scenes", nargs="*", default=list(PROMPTS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not all(1 <= n <= 100 for n in (args.seeds, args.against)):
        parser.error("--seeds, --against: 1 to 100")
    if not 0 <= args.on <= FARTHEST // 2:
        parser.error(f"--on: {args.on} found, 0 to {FARTHEST // 2} expected")
    if not UNSEEN[0] <= args.first_seed <= UNSEEN[1]:
        parser.error(
            f"--first-seed: {args.first_seed} found, {UNSEEN[0]} to {UNSEEN[1]} expected, which no training uses"
        )
    judge = Judge()
    bundle = None if args.renders or args.autoencoder else open_bundle(args.bundle)
    ae = None
    if args.autoencoder:
        shipped = args.autoencoder == "shipped"
        ae = shipped_autoencoder() if shipped else trained_autoencoder(args.autoencoder == "plain")
    rows: dict[tuple[str, str], Row] = {}
    first = args.first_seed
    scenes = variants = 0
    for scene, variant in (c for c in CLASSES if c[0] in args.scenes):
        prompt = PROMPTS[scene][variant][0]
        others = rendered_clips(scene, variant, range(first + 100, first + 100 + args.seeds))
        clips = through(ae, others) if ae else others
        if bundle:
            clips = clips_of_stream(bundle, prompt, args.seeds, args.warm, first=first, on=args.on)
        taken = [judge.name(clip) for clip in clips]
        scenes += sum(t[0] == scene for t in taken) == len(taken)
        variants += sum(t == (scene, variant) for t in taken) == len(taken)
        true = measure(scene, others if ae else rendered_clips(scene, variant, range(first, first + args.against)))
        rows[scene, variant] = shares(measure(scene, clips), true)
        print(f"{prompt}: {', '.join('/'.join(t) for t in taken)}", flush=True)
    show({f"{s} {v}": row for (s, v), row in rows.items()})
    print()
    together = by_scene(rows)
    show(together)
    print()
    reached = goals(rows, (scenes, variants), len(rows))
    for goal in reached:
        print(f"{'yes' if goal.met else 'no ':3}  {goal.value:6.2f}  {goal.text}")
    print(f"{sum(g.met for g in reached)} of {len(reached)} goals")
    if args.json:
        record = {
            "judged": str(args.bundle or args.autoencoder or ("renders" if args.renders else "shipped")),
            "bundle": facts_of(bundle) if bundle else None,
            "seeds": args.seeds,
            "first_seed": first,
            "on": args.on,
            "against": args.against,
            "scenes": together,
            "goals": {g.text: [round(g.value, 3), g.met] for g in reached},
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
