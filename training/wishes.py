"""What a prompt may ask of a scene beyond its variant, and how it is said: colours, counts, weather.

A wish is drawn for some of the training's instances, painted by scenes.py and worded here in five ways; training sees all
but the last. Some combinations are never trained, though each of their parts is: freetext.py asks for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

COLOURS = {
    "red": "#e83028",
    "orange": "#ff8820",
    "yellow": "#ffd838",
    "green": "#38d050",
    "turquoise": "#30d8d0",
    "blue": "#3070f8",
    "violet": "#9848f0",
    "pink": "#ff68b0",
    "white": "#f0f0f0",
}
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
WEATHER = {"sea": ("clear", "cloudy"), "hills": ("clear", "cloudy"), "snow": ("light", "heavy")}
COLOURED = ("sea", "hills", "lava", "city", "aurora", "fire", "reef")
COUNTED = {"lava": (2, 5), "snow": (1, 6), "reef": (1, 6)}  # least and most of what is counted
# Never trained: a colour in a variant, a colour with a count.
UNTRAINED_COLOURS = {("sea", "sunset", "green"), ("hills", "midday", "pink"), ("city", "night", "green")}
UNTRAINED_COUNTS = {("reef", "blue", 3), ("reef", "green", 5), ("reef", "white", 2), ("lava", "violet", 3)}


@dataclass(frozen=True)
class Wish:
    """'' and 0: the scene's own."""

    colour: str = ""
    count: int = 0
    weather: str = ""

    def __bool__(self) -> bool:
        return bool(self.colour or self.count or self.weather)

    def untrained(self, scene: str, variant: str) -> bool:
        return (scene, variant, self.colour) in UNTRAINED_COLOURS or (
            scene,
            self.colour,
            self.count,
        ) in UNTRAINED_COUNTS


def draw(scene: str, variant: str, rng: np.random.Generator) -> Wish:
    """One that training may see."""
    while True:
        colour = str(rng.choice(list(COLOURS))) if scene in COLOURED and rng.random() < 0.75 else ""
        least, most = COUNTED.get(scene, (0, 0))
        count = int(rng.integers(least, most + 1)) if most and rng.random() < 0.65 else 0
        weather = str(rng.choice(WEATHER[scene])) if scene in WEATHER and rng.random() < 0.5 else ""
        wish = Wish(colour, count, weather)
        if wish and not wish.untrained(scene, variant):
            return wish


def every(scene: str, variant: str) -> list[Wish]:
    """All that training may see."""
    least, most = COUNTED.get(scene, (1, 0))
    colours = ["", *(COLOURS if scene in COLOURED else ())]
    wishes = product(colours, [0, *range(least, most + 1)], ["", *WEATHER.get(scene, ())])
    return [wish for wish in (Wish(*one) for one in wishes) if wish and not wish.untrained(scene, variant)]


def numbered(count: int, thing: str, things: str) -> str:
    return f"{list(COUNTS)[count - 1]} {thing if count == 1 else things}" if count else things


def wordings(scene: str, variant: str, wish: Wish) -> tuple[str, ...]:
    """The ways of saying it; training sees all but the last."""
    return WORDED[scene](variant, wish)


def joined(*words: str) -> str:
    """Those that are there, with single spaces."""
    return " ".join(" ".join(words).split()).replace("a orange", "an orange")


def sea(variant: str, wish: Wish) -> tuple[str, ...]:
    light, time, hour = {
        "sunset": ("sunset", "at sunset", "evening"),
        "noon": ("noon sky", "at noon", "day"),
        "moonlit": ("moonlit sky", "in the moonlight", "night"),
    }[variant]
    above = {"": "", "clear": "without clouds", "cloudy": "full of clouds"}[wish.weather]
    sky = {"": "", "clear": "clear", "cloudy": "cloudy"}[wish.weather]
    return (
        joined("a", wish.colour, light, "over the sea", above),
        joined(wish.colour, "sea", time, f"under a {sky} sky" if sky else ""),
        joined("waves below a", sky, wish.colour, light),
        joined("the coast", time, "in", wish.colour, "light", above),
        joined("the ocean on a", sky, wish.colour, hour),
    )


def hills(variant: str, wish: Wish) -> tuple[str, ...]:
    land, time = {
        "morning": ("green hills", "in the morning"),
        "midday": ("lush hills", "at midday"),
        "autumn": ("golden hills", "in autumn"),
    }[variant]
    sky = {"": "", "clear": "cloudless", "cloudy": "cloudy"}[wish.weather]
    above = {"": "", "clear": "without a cloud", "cloudy": "with many clouds"}[wish.weather]
    return (
        joined(land, time, "under a", sky, wish.colour, "sky"),
        joined("a", wish.colour, "sky", above, "over", land, time),
        joined("a landscape of", land, "and a", sky, wish.colour, "sky", time),
        joined(time, land, "beneath", wish.colour, "air", above),
        joined(sky, wish.colour, "sky above meadows", time),
    )


def lava(variant: str, wish: Wish) -> tuple[str, ...]:
    colour = wish.colour or variant
    return (
        joined("a", colour, "lava lamp with", numbered(wish.count, "blob", "blobs")),
        joined(numbered(wish.count, "glowing blob", "glowing blobs"), "in a", colour, "lava lamp"),
        joined(colour, "lamp and", numbered(wish.count, "slow bubble", "slow bubbles")),
        joined(numbered(wish.count, "ball", "balls"), "floating in", colour, "light"),
        joined(numbered(wish.count, "drop", "drops"), "of", colour, "wax"),
    )


def city(variant: str, wish: Wish) -> tuple[str, ...]:
    time = {"night": "at night", "neon": "in a neon night", "dusk": "at dusk"}[variant]
    return (
        joined("a city", time, "with", wish.colour, "windows"),
        joined(wish.colour, "lights of a big city", time),
        joined("skyscrapers", time, "lit in", wish.colour),
        joined(wish.colour, "windows in a skyline", time),
        joined("towers with", wish.colour, "lamps", time),
    )


def snow(variant: str, wish: Wish) -> tuple[str, ...]:
    time = {"night": "at night", "dusk": "at dusk", "day": "by day"}[variant]
    amount, flakes = {
        "": ("snow", "snowflakes"),
        "light": ("light snow", "a few snowflakes"),
        "heavy": ("heavy snow", "dense snowflakes"),
    }[wish.weather]
    return (
        joined(amount, "falling on", numbered(wish.count, "pine tree", "pine trees"), time),
        joined(flakes, "and", numbered(wish.count, "fir tree", "fir trees"), time),
        joined("a winter landscape", time, "with", numbered(wish.count, "pine", "pines"), "and", amount),
        joined(numbered(wish.count, "spruce", "spruces"), time, "among", flakes),
        joined(numbered(wish.count, "tree", "trees"), "in", amount, time),
    )


def aurora(variant: str, wish: Wish) -> tuple[str, ...]:
    return (
        joined(wish.colour, "northern lights over dark mountains"),
        joined("a", wish.colour, "aurora dancing in the night sky"),
        joined("curtains of", wish.colour, "light over the mountains"),
        joined("the night sky glows", wish.colour, "above dark hills"),
        joined(wish.colour, "polar lights above the peaks"),
    )


def fire(variant: str, wish: Wish) -> tuple[str, ...]:
    return (
        joined("a", wish.colour, "fire in the dark"),
        joined(wish.colour, "flames and sparks"),
        joined("a fireplace that burns", wish.colour),
        joined("embers below", wish.colour, "tongues of fire"),
        joined("a campfire with", wish.colour, "flames"),
    )


def reef(variant: str, wish: Wish) -> tuple[str, ...]:
    water, place = {
        "turquoise": ("in a turquoise reef", "in clear tropical water"),
        "deep": ("in the deep blue sea", "in dark blue water"),
        "lagoon": ("in a green lagoon", "in green water"),
    }[variant]
    fish = numbered(wish.count, f"{wish.colour} fish", f"{wish.colour} fish")
    return (
        joined(fish, water),
        joined(fish, "swimming", place),
        joined("bubbles and", fish, place),
        joined("watching", fish, water),
        joined("an underwater world with", fish),
    )


WORDED = {
    "sea": sea,
    "hills": hills,
    "lava": lava,
    "city": city,
    "snow": snow,
    "aurora": aurora,
    "fire": fire,
    "reef": reef,
}
