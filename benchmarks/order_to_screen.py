"""From an order to the screen: seconds from the request of a cut until a Chromium on this machine shows the new scene.

    python benchmarks/order_to_screen.py [--via mse webrtc] [--cuts 12] [--bundle film.everframe]

What `everframe bench --browser` measures, with a choice of ways and of how many cuts. Median and p99 of all cuts by each
way, one after the other in one run, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from everframe.runtime import DEMO_BUNDLE
from everframe.runtime.measure.screen import COLUMNS, order_to_screen, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--via", nargs="+", choices=("mse", "webrtc"), default=["mse", "webrtc"])
    parser.add_argument("--cuts", type=int, default=12)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    args = parser.parse_args()
    before = os.getloadavg()
    found = order_to_screen(args.bundle, args.via, args.cuts, tell=print)
    for row in ([*COLUMNS], *summary(found)):
        print(" · ".join(row))
    print(f"load before and after: {before[0]:.1f}, {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
