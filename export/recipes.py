"""Recipes: which files of which repositories make a model, and the options that are right for it (recipes.toml)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engines.errors import UserError
from ..engines.progress import Report
from .families import WAN_21, WAN_22

FOLDER = Path(__file__).parent
PROMPTS = FOLDER / "prompts.txt"  # the bank of an export that names no file
BELONGS = {
    "generator": ("dictionary", "lora"),
    "rope": ("jitter",),
}  # an option -> what is right with the recipe's own only
# --decoder -> the table of its file, by family
DECODERS = {
    WAN_21.name: {"taehv": "taehv", "wan": "wan-vae"},
    WAN_22.name: {"taehv": "taehv22", "wan": "wan22-vae"},
}


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub, and the small ones that must lie beside it."""

    repo: str
    path: str
    licence: str
    revision: str = "main"
    sha256: str | None = None
    bytes: int | None = None  # where a public page states it
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """One row of the table. options: fields of WanSource, and fields that it is to have one day."""

    name: str
    line: str
    source: str
    generator: HubFile
    vaes: dict[str, HubFile]  # by --decoder
    text_encoder: HubFile
    lora: HubFile | None = None
    lora_alpha: float | None = None
    family: str = WAN_21.name
    options: dict[str, Any] = field(default_factory=dict)

    def files(self, decoder: str, given: set[str]) -> dict[str, HubFile]:
        """What is to be fetched, by what it is for, without what the user gives. Raises UserError for the decoder."""
        if decoder not in self.vaes:
            raise UserError(f"--decoder {decoder!r}: expected one of {', '.join(self.vaes)}")
        wanted = {"generator": self.generator, "vae": self.vaes[decoder], "text_encoder": self.text_encoder}
        if self.lora is not None and "lora" not in without(given):
            wanted["lora"] = self.lora
        return {use: file for use, file in wanted.items() if use not in given or use == "lora"}  # a user's comes on top

    def left(self, given: set[str]) -> dict[str, Any]:
        """The options that the user does not give. Of those, the ones that belong to what is given go with it."""
        away = given | without(given)
        return {name: value for name, value in self.options.items() if name not in away}


def without(given: set[str]) -> set[str]:
    """What of a recipe goes with the options that the user gives."""
    return {own for option, belonging in BELONGS.items() if option in given for own in belonging}


def load() -> dict[str, Recipe]:
    """All recipes by name, in the table's order."""
    table = tomllib.loads((FOLDER / "recipes.toml").read_text(encoding="utf-8"))
    files = {name: HubFile(**(row | {"beside": tuple(row.get("beside", ()))})) for name, row in table["files"].items()}
    out = {}
    for name, row in table["recipes"].items():
        lora = files[row["lora"]] if "lora" in row else None
        vaes = {decoder: files[file] for decoder, file in DECODERS[row.get("family", WAN_21.name)].items()}
        places = {"generator": files[row["generator"]], "lora": lora, "vaes": vaes, "text_encoder": files["wan-t5"]}
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in row["options"].items()}
        options |= {"family": row["family"]} if "family" in row else {}
        out[name] = Recipe(**(row | places | {"name": name, "options": options}))
    return out


def find(name: str) -> Recipe:
    """Raises UserError that names all there are."""
    recipes = load()
    if name not in recipes:
        raise UserError(f"--recipe {name!r}: expected one of {', '.join(recipes)}")
    return recipes[name]


def overruling(recipe: Recipe, given: dict[str, Any], explicit: set[str]) -> set[str]:
    """Of the options that the user names, those that say something else than the recipe."""
    return {name for name in explicit if name not in recipe.options or given.get(name) != recipe.options[name]}


def check_options(recipe: Recipe, known: set[str]) -> None:
    """Raises UserError where the recipe needs what this version can't export: guessing would make another model."""
    if unknown := sorted(set(recipe.options) - known):
        raise UserError(f"--recipe {recipe.name}: needs {', '.join(unknown)}, which this version does not export yet")


def tell_recipe(recipe: Recipe, explicit: set[str], report: Report) -> dict[str, Any]:
    """Tell what the recipe is and which of its options are used: those that no option overrules, which are returned."""
    own = recipe.left(explicit)
    report.line(f"{recipe.name}: {recipe.line}; {recipe.source}")
    report.line(f"options: {', '.join(f'{k} {_words(v)}' for k, v in own.items())}")
    has = set(recipe.options) | ({"lora"} if recipe.lora is not None else set())
    for option, belonging in ((option, one) for option, several in BELONGS.items() for one in several):
        if option in explicit and belonging in has and belonging not in explicit:
            report.line(f"without the recipe's {belonging}, which belongs to its {option}: as without a recipe")
    return own


def recipe_options(name: str, explicit: set[str], known: set[str], report: Report) -> dict[str, Any]:
    """The recipe's options that no option overrules, as fields of WanSource. known: the fields it has. Raises UserError."""
    recipe = find(name)
    check_options(recipe, known)
    own = tell_recipe(recipe, explicit, report)
    return own if "prompts" in explicit else own | {"prompts": PROMPTS}


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
