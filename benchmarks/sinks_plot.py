"""The plots of docs/study.md, from their records: how far a stream is from its sinks, and how much it attends to them.

python benchmarks/sinks_plot.py docs/measured/sinks_bases.json docs/measured/sinks_bases.png
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import matplotlib

from everframe.runtime.measure.study_report import curves, runs_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = {
    "jitter 0": "sinks stay, no jitter",
    "heads": "sinks stay, a base a head (paper)",
    "layers": "sinks stay, a base a head and layer",
    "relative": "sinks follow",
}


def main(file: Path, picture: Path) -> None:
    record = json.loads(gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes())
    figure, (far, near) = plt.subplots(2, 1, figsize=(11, 6), sharex=True)
    runs = runs_of(record)
    for shown, label in SHOWN.items():
        mine = [run for run in runs if run.variant.label == shown]
        frames, distance, attention = curves(mine, record["geometry"]["chunk"])
        far.plot(frames, distance, lw=0.9, label=label)
        near.plot(frames, attention, lw=0.9)
    far.set_title("distance to the sinks, mean of the streams")
    near.set_title("attention on the sinks, mean over heads and layers")
    far.set_ylim(0.1, 1.0)
    near.set_ylim(0, 0.45)
    near.set_xlabel("latent frame")
    far.legend(ncols=4, fontsize=8)
    for axis in (far, near):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
