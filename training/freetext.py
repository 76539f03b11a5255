"""Whether a stream shows what its prompt asks for beyond the scene, in words and combinations trained and not trained.

    python training/freetext.py [--bundle out/new.everframe] [--renders] [--json FILE]

What is asked is named from pictures alone: of the renders of all the values that it could have had (other seeds), those
nearest to the stream's frames by their histogram of colours, and for counts by how many things there are to count; in
any variant where the words leave that open.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everframe.export.addprompts import add
from everframe.runtime import open_bundle
from everframe.runtime.measure.bench import facts_of

from brushes import rgb
from judge import FIRST_SEED, clips_of_stream, rendered_clips
from measures import Frames
from prompts import PROMPTS
from things import blobs, tree_tips
from wishes import COLOURS, COUNTED, UNTRAINED_COLOURS, UNTRAINED_COUNTS, WEATHER, Wish, wordings

FRAMES, WARM, EXAMPLES = 12, 4, 3  # of a clip; chunks before it; renders of every value
BINS = 8  # of each of three colours
KNOWN = (  # combinations that training may see; which of them it does, its draws decide
    ("sea", "moonlit", Wish("pink")),
    ("hills", "autumn", Wish("violet", weather="cloudy")),
    ("lava", "red", Wish("green", 2)),
    ("lava", "blue", Wish("pink", 4)),
    ("city", "dusk", Wish("red")),
    ("snow", "day", Wish(count=2, weather="heavy")),
    ("aurora", "rose", Wish("yellow")),
    ("fire", "blue", Wish("violet")),
    ("reef", "deep", Wish("red", 4)),
    ("reef", "lagoon", Wish("pink", 2)),
)
NEW = (
    *((scene, variant, Wish(colour)) for scene, variant, colour in sorted(UNTRAINED_COLOURS)),
    *((scene, "red" if scene == "lava" else "lagoon", Wish(c, n)) for scene, c, n in sorted(UNTRAINED_COUNTS)),
)
FOREIGN = (  # each with words for its colour or its things that are in no text of the training
    ("sea", "moonlit", Wish("violet"), "a lilac bay at midnight"),
    ("hills", "midday", Wish("red"), "scarlet heavens high over lush countryside in July"),
    ("lava", "red", Wish("turquoise", 3), "three aquamarine spheres inside a lava bottle"),
    ("city", "night", Wish("orange"), "a midnight town whose houses shine in tangerine"),
    ("snow", "day", Wish(count=3, weather="heavy"), "a blizzard around three larches before nightfall"),
    ("aurora", "green", Wish("red"), "scarlet aurora australis, Antarctica"),
    ("fire", "orange", Wish("violet"), "a lilac inferno"),
    ("reef", "deep", Wish("yellow", 3), "a trio of lemon coloured fish at the bottom of the sea"),
)
FOREIGN_COLOURS = (  # words for colours that are in no text of the training, in wordings that it has
    ("lava", "red", Wish("red"), "a carmine lava lamp with blobs"),
    ("lava", "blue", Wish("green"), "a viridian lava lamp with blobs"),
    ("lava", "green", Wish("blue"), "ultramarine lamp and slow bubbles"),
    ("aurora", "green", Wish("yellow"), "saffron northern lights over dark mountains"),
    ("aurora", "rose", Wish("blue"), "ultramarine northern lights over dark mountains"),
    ("aurora", "violet", Wish("pink"), "bubblegum northern lights over dark mountains"),
    ("fire", "orange", Wish("green"), "viridian flames and sparks"),
    ("fire", "red", Wish("blue"), "cerulean flames and sparks"),
    ("fire", "blue", Wish("violet"), "orchid flames and sparks"),
    ("city", "night", Wish("turquoise"), "a city at night with aquamarine windows"),
    ("city", "dusk", Wish("white"), "a city at dusk with alabaster windows"),
    ("city", "neon", Wish("orange"), "a city in a neon night with carrot windows"),
    ("reef", "deep", Wish("orange"), "carrot fish in the deep blue sea"),
    ("reef", "lagoon", Wish("red"), "carmine fish in a green lagoon"),
    ("reef", "turquoise", Wish("violet"), "lilac fish in a turquoise reef"),
    ("sea", "noon", Wish("violet"), "orchid sea at noon"),
    ("sea", "moonlit", Wish("green"), "a viridian moonlit sky over the sea"),
    ("hills", "midday", Wish("yellow"), "lush hills at midday under a saffron sky"),
    ("hills", "autumn", Wish("turquoise"), "in autumn golden hills beneath aquamarine air"),
    ("hills", "morning", Wish("pink"), "green hills in the morning under a bubblegum sky"),
)
ASKED = {
    "as trained": [(*what, wordings(*what)[0]) for what in KNOWN],
    "other words": [(*what, wordings(*what)[-1]) for what in KNOWN],
    "other combinations": [(*what, wordings(*what)[0]) for what in NEW],
    "untrained words": FOREIGN,
    "untrained colours": FOREIGN_COLOURS,
}


def histogram(frames: Frames) -> NDArray[np.floating]:
    """Of the colours, as square roots of shares [512]: little of a rare colour counts more than the same of a common one."""
    places = (frames.reshape(-1, 3).astype(int) * BINS // 256) @ np.array([BINS**2, BINS, 1])
    return np.sqrt(np.bincount(places, minlength=BINS**3) / len(places))


def alike(frames: Frames, colour: str) -> NDArray[np.bool_]:
    """Where a pixel has the direction of a colour, however bright."""
    wanted = rgb(COLOURS[colour]).double().numpy()
    size = np.linalg.norm(frames, axis=-1) * np.linalg.norm(wanted)
    return (frames @ wanted > 0.97 * size) & (frames.max(-1) > (150 if colour == "white" else 60))


def number(scene: str, wish: Wish, frames: Frames) -> NDArray[np.floating]:
    """How many things there are to count: trees in all frames together, others in the mean of every sixth [1]."""
    if scene == "snow":
        return np.array([float(len(tree_tips(frames)))])
    some, area = frames[::6], (25, 900) if scene == "reef" else (150, 6000)
    # A lamp has its blobs' colour, only darker.
    masks = some.max(-1) > 0.75 * some.max() if scene == "lava" else alike(some, wish.colour)
    return np.array([np.mean([len(blobs(mask, area)) for mask in masks])])


def questions(scene: str, wish: Wish) -> dict[str, list[Wish]]:
    """Every part of a wish, and the wishes that are like it but for that part."""
    asked: dict[str, list[Wish]] = {}
    if wish.colour:
        asked["colour"] = [replace(wish, colour=colour) for colour in COLOURS]
    if wish.count:
        least, most = COUNTED[scene]
        asked["count"] = [replace(wish, count=n) for n in range(least, most + 1)]
    if wish.weather:
        asked["weather"] = [replace(wish, weather=weather) for weather in WEATHER[scene]]
    return asked


def look(part: str, scene: str, wish: Wish, frames: Frames) -> NDArray[np.floating]:
    return number(scene, wish, frames) if part == "count" else histogram(frames)


@cache
def expected(part: str, scene: str, variant: str, wish: Wish) -> NDArray[np.floating]:
    """How renders of that look."""
    seeds = range(FIRST_SEED + 200, FIRST_SEED + 200 + EXAMPLES)
    return np.mean([look(part, scene, wish, c) for c in rendered_clips(scene, variant, seeds, wish, FRAMES)], 0)


def name(part: str, scene: str, variants: list[str], wish: Wish, clips: list[Frames]) -> str:
    """The value of that part whose renders the clips are nearest to, in whichever of these variants."""
    made = np.mean([look(part, scene, wish, clip) for clip in clips], 0)
    others = itertools.product(variants, questions(scene, wish)[part])
    _, nearest = min(others, key=lambda one: float(np.linalg.norm(made - expected(part, scene, *one))))
    return str(getattr(nearest, part))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--renders", action="store_true", help="ask of other renders: what this measure can tell")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = None
        if not args.renders:
            copy = Path(folder) / "asked.everframe"
            shutil.copytree(open_bundle(args.bundle).path, copy, ignore=shutil.ignore_patterns("engines"))
            add(copy, sorted({prompt for asked in ASKED.values() for *_, prompt in asked}), None, "minilm")
            bundle = open_bundle(copy)
        for group, asked in ASKED.items():
            for scene, variant, wish, prompt in asked:
                others = range(FIRST_SEED + 300, FIRST_SEED + 300 + args.seeds)
                if bundle:
                    clips = clips_of_stream(bundle, prompt, args.seeds, WARM, FRAMES)
                else:
                    clips = rendered_clips(scene, variant, others, wish, FRAMES)
                own = wordings(scene, variant, wish)
                said = prompt if prompt in own else own[0]
                meant = [other for other in PROMPTS[scene] if said in wordings(scene, other, wish)]
                for part in questions(scene, wish):
                    asked_for, named = str(getattr(wish, part)), name(part, scene, meant, wish, clips)
                    rows.append({"group": group, "prompt": prompt, "part": part, "asked": asked_for, "named": named})
                    print(f"{group:20}{prompt}: {part} {asked_for}, named {named}", flush=True)
    for group in ASKED:
        for part in ("colour", "count", "weather"):
            mine = [row for row in rows if (row["group"], row["part"]) == (group, part)]
            right = sum(row["asked"] == row["named"] for row in mine)
            if mine:
                print(f"{group}: {part} named in {right} of {len(mine)}", end="\n" if part != "count" else ", ")
            if mine and part == "count":
                print(f"within one in {sum(abs(int(row['asked']) - int(row['named'])) <= 1 for row in mine)}")
    if args.json:
        record = {"bundle": facts_of(bundle) if bundle else None, "rows": rows}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
