"""Many more ways of saying what wishes.py says in five: of [one|another] one is drawn, and of {names} what is asked for.

None is a fifth wording, nor has it the words in which freetext.py asks for what training has no words for. But words that
plain prompts bind to one colour (campfire, polar lights, wax) are here with all: told of a campfire with violet flames a
student that knew it from "campfire flames and sparks" alone drew a red one.
"""

from __future__ import annotations

import re

import numpy as np

from wishes import COUNTS, Wish, joined

CHOICE = re.compile(r"\[([^][]*)\]")
NUMBERED = re.compile(r"\{count:((?:[^{}:]|\{\w+\})*):((?:[^{}:]|\{\w+\})*)\}")  # {count:blob:blobs}
SPEAK_OF = "[|||||||a video of|footage of|a view of|a picture of|a scene with|please show|imagine]"
MANNER = "[|||||||, slowly moving|, cinematic|, in high detail|, peaceful and calm|, a loop]"
COLOURS = {
    "": "",
    "red": "[red|red|crimson|bright red]",
    "orange": "[orange|orange|amber|bright orange]",
    "yellow": "[yellow|yellow|golden yellow|bright yellow]",
    "green": "[green|green|emerald green|bright green]",
    "turquoise": "[turquoise|turquoise|cyan|teal]",
    "blue": "[blue|blue|bright blue|deep blue]",
    "violet": "[violet|violet|purple]",
    "pink": "[pink|pink|hot pink]",
    "white": "[white|white|pure white]",
}
COUNTED = {0: ""} | {
    n: f"[{word}|{word}|{n}|exactly {word}]" for word, n in COUNTS.items()
} | {1: "[one|a single|just one|1]", 2: "[two|two|2|a pair of]"}  # fmt: skip

# scene -> variant -> what {time} and the like stand for
VARIANTS: dict[str, dict[str, dict[str, str]]] = {
    "sea": {
        "sunset": {
            "time": "[at sunset|at sunset|in the evening|at dusk|as the sun goes down]",
            "light": "[sunset|sunset|evening sky|sundown|sunset sky]",
        },
        "noon": {
            "time": "[at noon|at noon|at midday|by day|in the daytime]",
            "light": "[noon sky|daylight sky|midday sky|sky at noon|daytime sky]",
        },
        "moonlit": {
            "time": "[at night|in the moonlight|under the moon|by moonlight|on a moonlit night]",
            "light": "[moonlit sky|night sky|moonlight|sky with a moon|moonlit night]",
        },
    },
    "hills": {
        "morning": {
            "land": "[green|soft|misty] hills",
            "time": "[in the morning|early in the morning|in morning light|at dawn]",
        },
        "midday": {
            "land": "[lush|lush green|bright green] hills",
            "time": "[at midday|at noon|in summer|on a summer day]",
        },
        "autumn": {
            "land": "[golden|brown and gold|brown] hills",
            "time": "[in autumn|in autumn|in the fall|on an autumn day]",
        },
    },
    "lava": {"red": {}, "blue": {}, "green": {}},
    "city": {
        "night": {"time": "[at night|at night|by night|in the dark|in the night]"},
        "neon": {"time": "[in a neon night|on a neon night|in cyberpunk style|full of neon]"},
        "dusk": {"time": "[at dusk|at dusk|in the evening|at sunset|in the late evening]"},
    },
    "snow": {
        "night": {"time": "[at night|at night|in the dark|by night|on a dark night]"},
        "dusk": {"time": "[at dusk|at dusk|in the evening|at sunset|in the twilight]"},
        "day": {"time": "[by day|by day|in daylight|at noon|during the day]"},
    },
    "aurora": {"green": {}, "violet": {}, "rose": {}},
    "fire": {"orange": {}, "blue": {}, "red": {}},
    "reef": {
        "turquoise": {
            "where": "[in a turquoise reef|in a coral reef|in clear tropical water|in turquoise water|in a sunny reef]"
        },
        "deep": {
            "where": "[in the deep blue sea|in dark blue water|in the deep sea|deep below the surface|in deep water]"
        },
        "lagoon": {
            "where": "[in a green lagoon|in green water|in a lagoon|in an emerald lagoon|among seaweed in green water]"
        },
    },
}
# scene -> its wishes' weather -> what stands for it
WEATHERS: dict[str, dict[str, dict[str, str]]] = {
    "sea": {
        "": {"sky": "", "above": ""},
        "clear": {"sky": "[clear|cloudless|open]", "above": "[without clouds|and no clouds|, not a cloud]"},
        "cloudy": {"sky": "[cloudy|clouded|overcast]", "above": "[with many clouds|full of clouds|and lots of clouds]"},
    },
    "snow": {
        "": {"amount": "snow", "flakes": "snowflakes"},
        "light": {"amount": "[light|a little|gentle] snow", "flakes": "[a few|few|some] snowflakes"},
        "heavy": {"amount": "[heavy|dense|thick] snow", "flakes": "[dense|many|lots of] snowflakes"},
    },
}
WEATHERS["hills"] = WEATHERS["sea"]
PHRASES: dict[str, tuple[str, ...]] = {
    "sea": (
        "[a|the] {sky} {colour} {light} [over|above] the [sea|water|waves] {above}",
        "[the|a|calm] {colour} [sea|water|waves|ocean] {time} {above}",
        "{colour} [sea|sea water|waves|ocean] [below|under] a {sky} {light}",
        "[a|the] {sky} {colour} sky [over|above] the [sea|waves|coast] {time}",
        "[the sea|waves|the ocean] {time} [in|bathed in] {colour} light {above}",
        "[seaside|coast|shore] {time}, {sky} {colour} sky",
        "[everything|the sea and the sky] {colour} {time} {above}, waves rolling",
    ),
    "hills": (
        "{land} {time} [below|under] a {sky} {colour} sky",
        "[the|a] {sky} {colour} sky [over|above] {land} {time}",
        "{land} [and|with] a {colour} sky {above} {time}",
        "[a landscape|a valley|fields|meadows] with {land} {time}, the sky is {colour} {above}",
        "the sky [over|above] {land} {time} [is|turns|glows] {colour} {above}",
        "{colour} sky, {land}, {time} {above}",
    ),
    "lava": (
        "[a|the] {colour} lava lamp [with|showing] {count:blob:blobs}",
        "{count:blob:blobs} [in|inside] a {colour} lava lamp",
        "{count:[|glowing|soft] {colour} bubble:[|glowing|soft] {colour} bubbles} [rising|floating|in a lamp|in a lava lamp]",
        "lava lamp, {colour}, {count:blob:blobs}",
        "{count:drop:drops} [floating|rising] in a {colour} lava lamp",
        "{count:ball:balls} of [glowing|hot] {colour} wax [|rising and falling]",
        "[retro|old|glowing] {colour} lamp with {count:globe:globes} [|rising and falling]",
        "{count:{colour} blob:{colour} blobs} [floating|drifting|rising] [|slowly|in the dark|in a lamp]",
    ),
    "city": (
        "[a|the|big] city {time}, [its|all] windows [lit|glowing|shining] {colour}",
        "{colour} [lights|windows] in [a|the|a big] city {time}",
        "[a|the] skyline {time} with {colour} [lights|windows]",
        "[buildings|high-rises|skyscrapers|towers] {time} with {colour} [windows|lights]",
        "[a|the] city [glows|shines] {colour} {time}",
        "{colour} city lights {time}",
        "{colour} lamps [in|all over] [the|a] city {time}",
        "[downtown|metropolis] {time}, [every window|the windows] {colour}",
    ),
    "snow": (
        "{amount} [falls|falling|coming down] on {count:pine:pines} {time}",
        "{count:[fir|pine|conifer|evergreen]:[firs|pines|conifers|evergreens]} [in|under] [the|falling] snow {time}, {flakes}",
        "{count:pine tree:pine trees} {time} [in|during] {amount}",
        "{amount} [falls|falling|comes down] on {count:tree:trees} {time}",
        "{count:snowy tree:snowy trees} {time}, {flakes}",
        "[winter|a winter scene] {time}: {count:[fir|pine]:[firs|pines]}, {amount}",
        "{flakes} [around|above|over] {count:fir:firs} {time}",
        "[a snowy|a winter] [landscape|forest|hill] with {count:pine:pines} {time}, {amount} falling",
    ),
    "aurora": (
        "{colour} [aurora|aurora borealis|northern lights] [over|above|behind] [the|dark] mountains",
        "[a|the] {colour} aurora [|borealis] [in|across] the [night|dark|starry] sky",
        "[the night sky|the sky at night] [with|full of] {colour} northern lights",
        "[waves|ribbons|bands] of {colour} [aurora|light] [in the night sky|above a dark ridge]",
        "northern lights in {colour}",
        "{colour} polar lights [in the night sky|over the mountains|]",
        "[a|the] {colour} aurora above the peaks",
        "{colour} light [dances|dancing|waving] [above|over] [the|dark] mountains at night",
        "aurora, {colour}",
    ),
    "fire": (
        "[a|the] {colour} [fire|bonfire|blaze] [|burning] [|at night|in the dark]",
        "{colour} [flames|fire] [|dancing|flickering|burning] [|in the dark|in a fireplace|at night]",
        "[a|the] fireplace with {colour} [flames|fire]",
        "[a fire|a campfire|flames|fire] [burning|glowing] in {colour}",
        "[a|the] {colour} campfire [|at night|with sparks]",
        "[logs burning with|sparks above] {colour} [fire|flames]",
        "{colour} [burning|flickering] flames [and|with] [sparks|embers]",
    ),
    "reef": (
        "{count:{colour} fish:{colour} fish} {where}",
        "{count:{colour} fish:{colour} fish} [swim|swimming|swim around|gliding] {where}",
        "[there are|look at|with|nothing but] {count:{colour} fish:{colour} fish} {where}",
        "[the|a wonderful|an] underwater [world|scene|video] {where}: {count:{colour} fish:{colour} fish}",
        "[swimming|living] {where}: {count:{colour} fish:{colour} fish}",
        "{count:[small|pretty|tropical] {colour} fish:[small|pretty|tropical] {colour} fish} [and|with] bubbles {where}",
        "{count:fish, {colour},:fish, {colour},} {where}",
    ),
}  # fmt: skip


def phrase(scene: str, variant: str, wish: Wish, rng: np.random.Generator) -> str:
    """One of the ways to ask for that."""
    said = {
        "colour": COLOURS[wish.colour or (variant if scene == "lava" else "")],
        **VARIANTS[scene][variant],
        **WEATHERS.get(scene, {}).get(wish.weather, {}),
    }
    text = str(rng.choice(PHRASES[scene]))
    text = NUMBERED.sub(lambda m: f"{COUNTED[wish.count]} {m[1 if wish.count == 1 else 2]}", text)
    text = f"{SPEAK_OF} {text} {MANNER}".format(**said)
    while CHOICE.search(text):
        text = CHOICE.sub(lambda m: str(rng.choice(m[1].split("|"))), text)
    text = re.sub(r"\ba (?=[aeio](?!ne\b))", "an ", joined(text))
    return re.sub(r" ?,(?: ?,)* ?", ", ", text).strip(" ,")
