"""`everframe play`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ...engines.base import EngineOptions
from ..choice import open_engines
from ..demo import open_bundle
from ..stream import Stream
from . import options
from .console import needs_extra, say, warn

app = typer.Typer()


@app.command()
def play(
    bundle: options.Bundle = None,
    prompt: options.Prompt = None,
    seed: options.Seed = 0,
    anchor: options.Anchor = None,
    ground: options.Ground = None,
    fullscreen: Annotated[bool, typer.Option("--fullscreen", help="Fill the screen.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Close the window after so long.")] = None,
    threads: options.Threads = 0,
    provider: options.Provider = "cpu",
    backend: options.Backend = "onnxruntime",
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    gpu: options.Gpu = None,
    post: options.Post = None,
    unverified: options.Unverified = False,
) -> None:
    """Show the stream in a window.

    Needs the extra `play`. Keys: arrows change the prompt, t the transition.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    with needs_extra("play"):
        import pygame  # noqa: F401 - fail before the engines are loaded

        from . import window
    opened = open_bundle(bundle).with_post(post)
    picture = options.picture_of(anchor, ground, opened)
    engines = open_engines(opened, backend, EngineOptions(provider, threads, device, precision), say, not unverified)
    with Stream(opened, prompt=prompt, seed=seed, anchor=picture, verify=not unverified, backend=engines) as stream:
        for note in stream.notices:
            warn(note)
        say(window.KEYS)
        shown = window.play(stream, stream.bank.prompts, fullscreen, seconds)
    say(f"{shown} frames shown")
