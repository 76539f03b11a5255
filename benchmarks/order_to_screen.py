"""From an order to the screen: seconds from the request of a cut until a Chromium on this machine shows the new scene.

    python benchmarks/order_to_screen.py [--cuts 12] [--bundle film.everframe]

It starts a server, opens the player, and orders cuts between two prompts; the page looks at its video at every frame that is
put on the screen, and notes when its mean colour is nearer to the other prompt's. Median and worst of all cuts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime" / "server"))
from everframe.runtime import DEMO_BUNDLE

from serving import CHROMIUM, FLAGS, Site, serve, until

WATCH = """() => {
  const video = document.querySelector("video"), c = document.createElement("canvas");
  c.width = c.height = 8;
  const pen = c.getContext("2d", { willReadFrequently: true });
  window.colours = [];
  const look = () => {
    pen.drawImage(video, 0, 0, 8, 8);
    const p = pen.getImageData(0, 0, 8, 8).data, sum = [0, 0, 0];
    for (let i = 0; i < p.length; i += 4) for (let j = 0; j < 3; j++) sum[j] += p[i + j] / 64;
    window.colours.push([Date.now() / 1000, ...sum]);
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
}"""


def settled(page: Page) -> list[float]:
    """Mean colour over the last second."""
    page.evaluate("window.colours = []")
    time.sleep(1)
    rows = page.evaluate("window.colours")
    return [statistics.mean(row[i] for row in rows) for i in (1, 2, 3)]


def cut(site: Site, prompt: str) -> float:
    began = time.time()
    status, answer = site.ask("/api/prompt", "POST", {"prompt": prompt, "transition": "cut"})
    assert status == 200, answer
    return began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=12)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), args.bundle) as site, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 640, "height": 360})
        page.goto(site.url)
        until(page, "window.player && player.shown() > 30", 90)
        page.evaluate(WATCH)
        prompts = site.ask("/api/prompts")[1]["prompts"]
        pair, colours = (prompts[0], prompts[-1]), []
        for prompt in pair:
            cut(site, prompt)
            time.sleep(6)
            colours.append(settled(page))
        taken = []
        for i in range(args.cuts):
            old, new = colours[1 - i % 2], colours[i % 2]
            page.evaluate("window.colours = []")
            began = cut(site, pair[i % 2])
            time.sleep(5)
            seen = next(
                row[0]
                for row in page.evaluate("window.colours")
                if row[0] > began and _apart(row[1:], new) < _apart(row[1:], old)
            )
            taken.append(seen - began)
        browser.close()
    print(
        f"{len(taken)} cuts: median {statistics.median(taken):.2f} s, worst {max(taken):.2f} s, best {min(taken):.2f} s"
    )


def _apart(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    main()
