"""Every command of `everframe`: where it lives, and the line that `--help` shows. No room is imported for this list."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A command: its module (relative to the package `everframe`), and the first sentence of its help."""

    module: str
    line: str


COMMANDS = {
    "generate": Place(".runtime.cli.generate", "Generate video into a file, a PNG or GIF sequence, or a pipe."),
    "play": Place(".runtime.cli.play", "Show the stream in a window."),
    "serve": Place(".runtime.cli.serve", "Show one endless stream to many screens, with a control API."),
    "fleet": Place(".runtime.cli.serve", "Many streams on a Ray cluster behind one gateway."),
    "prompts": Place(".export.cli", "List the prompts of a bundle, or add to them."),
    "export": Place(".export.cli", "Export a checkpoint into an engine bundle: FOLDER, or wan."),
    "post": Place(".export.cli", "Smoother and larger frames behind a bundle's decoder."),
    "recipes": Place(".export.cli", "List the recipes of export wan: files, options, memory on a card."),
    "calibrate": Place(".calibration.cli", "Quantise a bundle by real streams and measure what it lost."),
    "build": Place(".engines.cli", "Compile a bundle's graphs into engines."),
    "verify": Place(".runtime.cli.verify", "Hold a backend against the two chunks that PyTorch made at export."),
    "inspect": Place(".engines.cli", "List what a bundle holds, which of its engines can be used here, and why not others."),
    "doctor": Place(".engines.cli", "What this machine can run, and what is missing for each backend."),
    "plan": Place(".runtime.cli.plan", "Operations, memory, and which cards run it in real time: before anything is built."),
    "bench": Place(".runtime.cli.measure", "Latency per chunk by stage, cold start, prompt changes, memory, energy."),
    "soak": Place(".runtime.cli.measure", "Stream for long and hold the video and the machine against bounds."),
    "study": Place(".runtime.cli.measure", "Studies of the model's behaviour."),
    "compare": Place(".runtime.cli.measure", "How far a changed bundle is from its source, or a backend from another."),
}  # fmt: skip
