"""The scenes, their variants, and how each is said."""

# scene -> variant -> prompts. The first prompt of each variant goes into the shipped prompt bank; the others teach the
# model that wording does not matter.
PROMPTS: dict[str, dict[str, tuple[str, ...]]] = {
    "sea": {
        "sunset": (
            "a calm sea under an orange sunset sky",
            "sunset over the ocean, golden light on the waves",
            "evening at the sea, warm glowing horizon",
        ),
        "noon": (
            "a bright blue sea at noon with white clouds",
            "sunny ocean, blue water and a clear sky",
            "midday sea, turquoise waves in full sun",
        ),
        "moonlit": ("a dark sea glittering in the moonlight", "night ocean under the moon", "moonlight on black waves"),
    },
    "hills": {
        "morning": (
            "clouds drifting over green hills in the morning",
            "soft morning light over rolling hills",
            "early haze above quiet meadows",
        ),
        "midday": (
            "white clouds over lush green hills at midday",
            "rolling green hills under a blue sky",
            "summer meadows with passing clouds",
        ),
        "autumn": (
            "autumn hills in brown and gold under slow clouds",
            "golden autumn hills at dusk",
            "rust coloured hills in the fall",
        ),
    },
    "lava": {
        "red": (
            "a red lava lamp with slow glowing blobs",
            "orange blobs floating in a purple lava lamp",
            "glowing red wax rising and falling",
        ),
        "blue": (
            "a blue lava lamp with slow glowing blobs",
            "icy blue blobs floating in dark water",
            "glowing blue wax rising and falling",
        ),
        "green": (
            "a green lava lamp with slow glowing blobs",
            "lime green blobs floating in the dark",
            "glowing green wax rising and falling",
        ),
    },
    "city": {
        "night": (
            "a city skyline at night with lit windows and passing cars",
            "night lights of a big city",
            "skyscrapers in the dark, traffic below",
        ),
        "neon": (
            "a neon city at night in pink and cyan",
            "cyberpunk skyline with magenta lights",
            "neon lit towers, purple sky",
        ),
        "dusk": (
            "a city skyline at dusk under an orange sky",
            "office towers at sunset, windows lighting up",
            "evening city with amber lights",
        ),
    },
    "snow": {
        "night": (
            "snow falling on pine trees at night",
            "snowflakes in a dark winter forest",
            "a silent snowy night in the woods",
        ),
        "dusk": (
            "snow falling at dusk under a pink sky",
            "winter evening, snowflakes and pines",
            "rose coloured winter twilight",
        ),
        "day": (
            "snow falling on a pale winter day",
            "snowfall over fir trees in grey daylight",
            "white winter landscape in falling snow",
        ),
    },
    "aurora": {
        "green": (
            "green northern lights over dark mountains",
            "a green aurora dancing in the night sky",
            "emerald polar lights above the peaks",
        ),
        "violet": (
            "violet northern lights over dark mountains",
            "a purple aurora dancing in the night sky",
            "violet polar lights above the peaks",
        ),
        "rose": (
            "teal and pink northern lights over dark mountains",
            "a rose and teal aurora in the night sky",
            "pink and turquoise polar lights",
        ),
    },
    "fire": {
        "orange": (
            "a warm orange fireplace with dancing flames",
            "campfire flames and sparks",
            "a crackling fire in the dark",
        ),
        "blue": ("blue gas flames dancing in the dark", "a cold blue fire", "bright blue flames and sparks"),
        "red": ("a deep red fire with glowing embers", "dark red flames flickering", "embers and low red flames"),
    },
    "reef": {
        "turquoise": (
            "orange fish swimming in a turquoise reef",
            "a sunny coral reef with bubbles and fish",
            "clear tropical water full of fish",
        ),
        "deep": (
            "fish in the deep blue sea with rising bubbles",
            "dark blue underwater world",
            "pale fish in deep water",
        ),
        "lagoon": ("yellow fish in a green lagoon", "seaweed and fish in green water", "an emerald underwater garden"),
    },
}  # fmt: skip
