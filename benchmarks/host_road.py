"""Sinks that follow, turned in the step graph, against the road of before: the host turned their keys, into the ring.

    python benchmarks/host_road.py [--chunks 20] [--out docs/measured/host_road.json]

That road was taken out in 5289b1d. The commit before it is unpacked from git, both export its demo's checkpoint with
`--rope relative` and stream it in ONNX Runtime, float32, with the same seed and changes of prompt: from latent frame 0 and
from far out, in both forms. Tells how many values of latents and frames differ in any bit. Needs git's history.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from everframe.runtime import Transition

REPOSITORY = Path(__file__).parents[1]
BEFORE = "5289b1d^"
ROOMS = ("export", "calibration", "engines", "runtime")
STARTS = (0, 1_000_002)
FORMS = ("in-place", "portable")
BITS: dict[str, type[np.unsignedinteger]] = {"latents": np.uint32, "frames": np.uint8}
# Before these chunks, to the bank's next prompt.
CHANGES: dict[int, Transition] = {5: "smooth", 9: "flush", 12: "swap", 15: "cut"}


def stream(checkpoint: Path, folder: Path, chunks: int) -> None:
    """What the code that is first on the path makes of the checkpoint."""
    from everframe.engines.bundle import Bundle
    from everframe.export.checkpointexport import Overrides, export_checkpoint
    from everframe.runtime import EngineOptions, Stream, sinks

    (folder / "road").write_text("host" if hasattr(sinks, "SinkKeys") else "graph")  # that it is not the installed code
    for form in FORMS:
        path = folder / f"{form}.everframe"
        export_checkpoint(checkpoint, path, Overrides(form=form, rope="relative"), chunks=0, force=False)
        for start in STARTS:
            made = []
            with Stream(Bundle.open(path), seed=7, start=start, overlap=False, options=EngineOptions(threads=2)) as s:
                prompts = s.bank.prompts
                for c in range(chunks):
                    if c in CHANGES:
                        turn = list(CHANGES).index(c) + 1
                        s.set_prompt(prompts[turn % len(prompts)], CHANGES[c])
                    made.append(s.next_chunk())
            np.savez(
                folder / f"{form}-{start}.npz",
                latents=np.stack([chunk.latent for chunk in made]),
                frames=np.stack([chunk.frames for chunk in made]),
            )


def run(checkpoint: Path, folder: Path, chunks: int, code: Path | None) -> None:
    """In a process of its own, with the code of a folder of rooms in place of the installed one."""
    folder.mkdir()
    command = [sys.executable, __file__, "--one", str(checkpoint), str(folder), "--chunks", str(chunks)]
    subprocess.run(command, env=os.environ | ({"PYTHONPATH": str(code)} if code else {}), check=True)


def commit(revision: str) -> str:
    return subprocess.check_output(["git", "rev-parse", revision], cwd=REPOSITORY, text=True).strip()


def unpack(folder: Path) -> Path:
    """The code of before as a namespace package; returns the folder for PYTHONPATH."""
    tree, package = folder / "before", folder / "path" / "everframe"
    tree.mkdir()
    package.mkdir(parents=True)
    packed = subprocess.run(["git", "archive", BEFORE], cwd=REPOSITORY, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=tree, input=packed, check=True)
    for room in ROOMS:
        (package / room).symlink_to(tree / room)
    return package.parent


def compare(before: Path, now: Path) -> list[dict[str, Any]]:
    found = []
    for form in FORMS:
        for start in STARTS:
            a, b = (np.load(folder / f"{form}-{start}.npz") for folder in (before, now))
            row: dict[str, Any] = {"form": form, "start": start, "chunks": len(a["latents"])}
            for name, bits in BITS.items():
                row[name] = int(a[name].size)
                row[f"{name}_different"] = int((a[name].view(bits) != b[name].view(bits)).sum())
            row["largest_difference"] = float(np.abs(a["latents"] - b["latents"]).max())
            row["deviation"] = float(a["latents"].std(dtype="f8"))  # a stream of zeros would equal another
            found.append(row)
            print(row, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs/measured/host_road.json"))
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        checkpoint, folder = args.one
        stream(checkpoint, folder, args.chunks)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = unpack(folder)
        checkpoint = folder / "before" / "training" / "demo"
        run(checkpoint, folder / "old", args.chunks, code)
        run(checkpoint, folder / "new", args.chunks, None)
        roads = [(folder / which / "road").read_text() for which in ("old", "new")]
        if roads != ["host", "graph"]:
            sys.exit(f"the sinks were turned by {roads[0]} and {roads[1]}: expected host and graph")
        found = compare(folder / "old", folder / "new")
    commits = {name: commit(revision) for name, revision in (("before", BEFORE), ("now", "HEAD"))}
    record = {"date": f"{date.today()}", **commits, "changes": CHANGES, "streams": found}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
