"""What sinks that follow the window cost a pass, and bases for every head of every layer: with and without, in turn.

    python benchmarks/following.py [--chunks 40] [--out docs/measured/following.json]

Exports the demo's checkpoint both ways in both forms and streams each pair chunk about chunk on one thread, after the
window is full; of every denoising pass the ratio to the same pass without. Medians of the pairs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from everframe.engines.base import EngineOptions
from everframe.engines.choose import open_backend
from everframe.engines.errors import UserError
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.runtime import Stream, open_bundle

DEMO = Path(__file__).parents[1] / "training" / "demo"
FORMS: tuple[Literal["in-place"], Literal["portable"]] = ("in-place", "portable")
CHANGES = {"follow": {"rope": "relative"}, "layers": {"jitter_by": "layer"}}


def bundle(folder: Path, form: Literal["in-place", "portable"], **changes: Any) -> Path:
    path = folder / f"{form}-{'-'.join(map(str, changes.values())) or 'plain'}.everframe"
    if not path.exists():
        export_checkpoint(DEMO, path, Overrides(form=form, **changes), chunks=0, force=False)
    return path


def passes(stream: Stream) -> tuple[float, ...]:
    return stream.next_chunk().timings.diffuse


def compare(plain: Path, changed: Path, backend: str, precision: str, chunks: int) -> dict[str, float]:
    options = EngineOptions(threads=1, precision=precision)
    streams = [
        Stream(open_bundle(path), overlap=False, backend=open_backend(backend, options)) for path in (plain, changed)
    ]
    for stream in streams:
        for _ in range(6):
            stream.next_chunk()
    pairs = []
    for turn in range(chunks):  # who begins takes turns too
        made = {i: passes(streams[i]) for i in ((0, 1), (1, 0))[turn % 2]}
        pairs += list(zip(made[0], made[1], strict=True))
    for stream in streams:
        stream.close()
    before, after = np.array(pairs).T
    return {
        "ms": round(1000 * float(np.median(before)), 2),
        "percent_more": round(100 * float(np.median(after / before) - 1), 2),
        "passes": len(pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("docs/measured/following.json"))
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in CHANGES.items():
            for form in FORMS if name == "follow" else FORMS[:1]:
                plain, changed = bundle(Path(folder), form), bundle(Path(folder), form, **changes)
                for backend, precision in (("onnxruntime", "auto"), ("openvino", "bf16")):
                    row = {"what": name, "form": form, "backend": backend, "precision": precision}
                    try:
                        found.append(row | compare(plain, changed, backend, precision, args.chunks))
                    except UserError as error:  # no OpenVINO, or no bfloat16
                        print(error)
                        continue
                    print(found[-1], flush=True)
                    args.out.write_text(json.dumps({"rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
