"""Plot the logged losses of a folder of runs.

python training/curves.py [training/runs] [-o training/work/training.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

from run import RUNS, WORK

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="?", default=RUNS)
    parser.add_argument("-o", "--output", type=Path, default=WORK / "training.png")
    args = parser.parse_args()
    logs = sorted(args.runs.glob("*.jsonl"))
    figure, axes = plt.subplots(1, len(logs), figsize=(5 * len(logs), 3.2), squeeze=False)
    for ax, log in zip(axes[0], logs, strict=True):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        points = [(r["minutes"], r["loss"]) for r in rows if "loss" in r]
        ax.plot(*zip(*points, strict=True))
        ax.set(title=log.stem, xlabel="minutes", ylabel="loss", yscale="log")
        ax.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    args.output.parent.mkdir(exist_ok=True)
    figure.savefig(args.output, dpi=90)


if __name__ == "__main__":
    main()
