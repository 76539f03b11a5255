"""Go a part of the way, or beyond: a run's averaged weights between those of another checkpoint and its own.

    python training/blend.py distill --before OLD.checkpoint.safetensors --share 0.3

What both have learnt alike stays, what one has forgotten comes back in part (arXiv 2203.05482); a share above 1, from a
student's teacher, is more of what distillation does (arXiv 2404.16792). It is a run's last step: one that goes on on this
machine goes on from training/work, without it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file

from run import about_compact, compact_path, write_compact


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", help="of the run whose checkpoint in training/runs is replaced")
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument(
        "--share", type=float, required=True, help="of the way from that one to the run's: 1 is the run's, more beyond"
    )
    args = parser.parse_args()
    before, after = load_file(args.before), load_file(compact_path(args.name))
    blended = {k: before[k].float().lerp(v.float(), args.share) for k, v in after.items()}
    write_compact(args.name, blended, about_compact(args.name))


if __name__ == "__main__":
    main()
