"""Plot the logged losses: training/runs/*.jsonl -> docs/training.png."""

from __future__ import annotations

import json

import matplotlib

from run import HERE, RUNS

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    logs = sorted(RUNS.glob("*.jsonl"))
    figure, axes = plt.subplots(1, len(logs), figsize=(5 * len(logs), 3.2), squeeze=False)
    for ax, log in zip(axes[0], logs, strict=True):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        points = [(r["minutes"], r["loss"]) for r in rows if "loss" in r]
        ax.plot(*zip(*points, strict=True))
        ax.set(title=log.stem, xlabel="minutes", ylabel="loss", yscale="log")
        ax.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(HERE.parent / "docs" / "training.png", dpi=90)


if __name__ == "__main__":
    main()
