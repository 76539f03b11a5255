"""The generator process: one stream, its playlist, its state on disk.

It talks to the web process over one pipe of pickled tuples, both ends ours. From there: ("prompt", change), ("lend",
change) until ("back", None), ("playlist", playlist or None), ("skip", None), ("seed", number), ("pause", bool), ("stop",).
To there: ("ready", facts), ("chunk", facts) followed by the frames as bytes, ("event", kind, text). A full pipe holds the
generator back: nobody wants its next chunk yet.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ....engines.base import EngineOptions
from ....engines.bundle import Bundle
from ....engines.errors import RunError, UserError
from ....engines.files import reason, remove_parts
from ....engines.machine import choose_gpu, resident_memory
from ....engines.post import POST
from ....engines.text import first_line
from ...choice import open_engines
from ...chunks import Chunk
from ...demo import open_bundle
from ...picture import read_picture
from ...state import Saver, load_state, read_facts
from ...stream import Stream
from ..config import StreamSettings
from ..discretion import shortened
from ..orders.playlist import Change, Director, Playlist
from .blame import Blame
from .fader import Fader
from .seen import Seen

BAD = ".bad"  # suffix of a state that could not be used
REFUSED, NOT_NOW = 2, 75  # exit codes: of commands whose user has something to mend; sysexits.h's EX_TEMPFAIL


@dataclass(frozen=True)
class Job:
    """What a generator process is told when it is started."""

    stream: StreamSettings  # with the prompt and the seed that hold now
    state: Path
    playlist: Playlist | None = None  # to begin with, where there is no state
    paused: bool = False
    ordered: bool = False  # the prompt is an order, not the configuration's
    seen: Seen | None = None  # the bundle as the web process has verified it; None: it is verified here


def main(connection: Connection, job: Job) -> None:
    """The process. What ends it is told over the pipe; exit code REFUSED where a person can mend it, NOT_NOW where an engine
    could not run, as on a card that is full."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the web process says when to stop: systemd signals both at once
        signal.signal(number, signal.SIG_IGN)
    try:
        Generator(connection, job).run()
    except (UserError, RunError) as error:
        with contextlib.suppress(OSError):
            connection.send(("event", "error", str(error)))
        sys.exit(NOT_NOW if isinstance(error, RunError) else REFUSED)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        sys.exit(0)  # the web process is gone, and the state was saved if there was a stream
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send(("event", "error", f"{type(error).__name__}: {error}"[:500]))
        raise


class Generator:
    """The stream, and what orders do to it. All orders take effect between chunks."""

    def __init__(self, connection: Connection, job: Job):
        self.connection, self.job = connection, job
        settings = job.stream
        opened = open_bundle(settings.bundle) if job.seen is None else job.seen.open()
        bundle = opened.with_post(settings.post)
        self.free_text = "text" in bundle.manifest.graphs
        self.geometry = g = bundle.manifest.geometry
        self.anchor: str | None = None  # digest of the picture that the sinks were made of
        choose_gpu(settings.gpu)
        self.stream = self._stream(bundle, settings)
        for note in self.stream.notices:
            self.connection.send(("event", "notice", note))
        self.director = Director(g.chunk_seconds)
        self.director.follow(job.playlist)
        self.fader = Fader(bundle.output.fps)
        self.paused = job.paused
        self.cut = False  # the next chunk begins the scene that somebody waits for
        self.saver, self.stood = Saver(self.stream, self.job.state), 0.0
        self.seed = settings.seed  # as it was ordered: the stream goes on with another one after numbers not finite
        self.whole = True  # what would be saved now can be gone on with: no chunk was left half made, or not finite
        remove_parts(job.state.parent, f"{job.state.name}.")
        self.returns = 0  # from numbers not finite, since a state was saved
        self.resumed = self.job.state.exists() and self._load()
        self.saved_at = self._seconds()
        self.blame = Blame()

    def _stream(self, bundle: Bundle, settings: StreamSettings) -> Stream:
        """With what was ordered last; an order that turns out to be refused does not keep the generator from starting."""
        options = EngineOptions(settings.provider, settings.threads, settings.device, settings.precision)
        backend = open_engines(bundle, settings.backend, options, self._tell_choice, settings.verify)
        stream = Stream(
            bundle,
            prompt=None if self.job.ordered else settings.prompt,
            seed=settings.seed,
            jitter_sigma=settings.jitter,
            rope_mode=settings.rope,
            sink_distance=settings.sink_distance,
            anchor=None if settings.anchor is None else self._anchor(settings.anchor, settings.ground),
            verify=settings.verify,
            backend=backend,
        )
        if self.job.ordered and settings.prompt is not None:
            try:
                stream.set_prompt(settings.prompt, "swap")
            except (UserError, RunError) as error:
                self.connection.send(("event", "refused", str(error)))
        return stream

    def _tell_choice(self, line: str) -> None:
        self.connection.send(("event", "engines", line))

    def _anchor(self, file: Path, ground: str | None) -> NDArray[np.uint8]:
        """Raises UserError naming the field."""

        def notice(text: str) -> None:
            self.connection.send(("event", "anchor", text))

        try:
            picture = read_picture(file, self.geometry.width, self.geometry.height, ground, notice)
        except UserError as error:
            raise UserError(f"stream.anchor: {error}") from None
        self.anchor = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
        return picture

    def run(self) -> None:
        """Until the web process says stop, or is gone, or something breaks. The state is saved whatever it was, unless the
        stream itself is what broke: then the one that was saved last is better."""
        self.connection.send(("ready", self._facts() | {"resumed": self.resumed, "geometry": self.geometry}))
        try:
            while self._orders():
                self._advance()
        finally:
            self._await_saving()
            self._saved()  # one that could not be written must not keep the last one from being tried
            if self.whole:
                self._save()
                self._await_saving()
            self._saved()
            self.saver.close()

    def _await_saving(self) -> None:
        """A large state on a slow disk is no hang."""
        while self.saver.busy:
            with contextlib.suppress(OSError):  # where the web process is gone, nobody waits
                self.connection.send(("event", "alive", ""))
            time.sleep(0.2)

    def _advance(self) -> None:
        change = self.director.next()
        if change is not None:
            try:
                self._change(change)
            except (UserError, RunError) as error:
                self.connection.send(("event", "refused", str(error)))
        chunk = self._make()
        if chunk is None:
            return
        frames = self.fader(chunk.frames, chunk.begins)
        told = self._facts() | _figures(chunk, self.geometry.chunk_seconds)
        self.connection.send(("chunk", told | {"cut": self.cut}))
        self.cut = False
        self.connection.send_bytes(np.ascontiguousarray(frames).ravel().data)
        every = self.job.stream.save_seconds
        if self.saver.busy:
            return
        self._saved()
        if every and self._seconds() - self.saved_at >= every:
            self._save()

    def _make(self) -> Chunk | None:
        """The next chunk; None when it was not finite and the stream has gone back to what was good."""
        self.whole = False
        chunk = self.stream.next_chunk()
        if np.isfinite(chunk.latent).all():
            self.blame.finite(chunk, self.stream.prompt, self.director)
            self.whole = True
            return chunk
        self._go_back(chunk)
        self.whole = True
        return None

    def _go_back(self, chunk: Chunk) -> None:
        """To the last good state, or where there is none, or it has led here again, to a new scene. Raises UserError when
        nothing helps."""
        self.connection.send(("event", "nan", f"chunk {chunk.index} is not finite: back to the last good state"))
        ordered = self.stream.prompt
        plan = self.blame.not_finite(chunk, ordered, copy.copy(self.director))
        prompt = plan.prompt or self.stream.bank.prompts[0]
        if plan.anew or not (self.job.state.exists() and self._load()):
            self.stream.begin_anew(prompt)
        elif plan.director is not None:
            self.stream.set_prompt(prompt, "swap")
        self.director = plan.director or self.director
        if self.stream.prompt != ordered:
            text = f"{shortened(ordered, 200)!r}: not finite; going on with {shortened(self.stream.prompt, 200)!r}"
            self.connection.send(("event", "refused", text))
        # The same noise would end in the same place, and so would that of the last time.
        self.returns += 1
        self.stream.set_seed((self.stream.seed + self.returns) % 2**64)
        self.saved_at = self._seconds()  # which is another time now

    def _orders(self) -> bool:
        """Do what the web process has asked for; while paused, wait for it. False: stop."""
        while True:
            while self.connection.poll(0.5 if self.paused else 0):
                kind, *values = self.connection.recv()
                if kind == "stop":
                    return False
                try:
                    self._obey(kind, *values)
                except (UserError, RunError) as error:
                    self.connection.send(("event", "refused", str(error)))
            if not self.paused:
                return True
            self.connection.send(("event", "alive", ""))

    def _obey(self, kind: str, value: Any) -> None:
        if kind in ("prompt", "lend"):
            self._change(value)
            if value.at_once:
                self.cut = self.stream.cut_at_once()
                if not self.cut:
                    self.connection.send(("event", "later", "the cut comes after the chunk that is being made"))
            if kind == "lend":
                self.director.lend()
            else:
                self.director.follow(None)
        elif kind == "back":
            self.director.back()
        elif kind == "playlist":
            self._check(value)
            self.director.follow(value)
        elif kind == "skip":
            self.director.skip()
        elif kind == "seed":
            self.stream.set_seed(value)
            self.seed = value
        elif kind == "pause":
            self.paused = value

    def _check(self, playlist: Playlist | None) -> None:
        """Raises UserError for a prompt that the bundle does not have. Free ones are encoded when they come; the first one
        tells whether that works at all."""
        items = playlist.items if playlist is not None else []
        for item in items[:1] if self.free_text else items:
            self._encode(item.prompt)

    def _encode(self, prompt: str) -> None:
        """The bank finds a prompt at once; the bundle's text encoder takes its time, which is no hang."""
        if self.free_text and prompt not in self.stream.bank.prompts:
            self.connection.send(("event", "busy", "encoding a prompt"))
        self.stream.bank.find(prompt)

    def _change(self, change: Change) -> None:
        if self.blame.refused(change.prompt):
            raise UserError(f"{shortened(change.prompt, 200)!r}: again and again nothing of it was finite; not shown")
        self._encode(change.prompt)
        self.stream.set_prompt(change.prompt, change.transition)
        if change.transition == "cut":
            self.fader.order(change.crossfade)

    def _facts(self) -> dict[str, Any]:
        return {
            "prompt": self.stream.prompt,
            "seed": self.stream.seed,
            "position": self.stream.position,
            "playlist": self.director.playlist,
            "item": self.director.item,
            "paused": self.paused,
            "memory": resident_memory(),
        }

    def _seconds(self) -> float:
        """Seconds of video since latent frame 0."""
        return self.stream.position / self.geometry.chunk * self.geometry.chunk_seconds

    def _save(self) -> None:
        """Begin to save; the stream goes on."""
        began, self.saved_at = time.monotonic(), self._seconds()
        try:
            self.saver.begin({"director": self.director.facts(), "seed": self.seed, "anchor": self.anchor})
            self.stood = 1000 * (time.monotonic() - began)
        except UserError as error:  # a full disk must not stop the picture
            self.connection.send(("event", "unsaved", str(error)))

    def _saved(self) -> None:
        """Tell what became of the last one."""
        try:
            if self.saver.wait():
                self.returns = 0
                self.connection.send(("event", "saved", f"the stream stood still for {self.stood:.0f} ms"))
        except UserError as error:
            self.connection.send(("event", "unsaved", str(error)))

    def _load(self) -> bool:
        """Go on from the saved state, as far as it is what is ordered now: another anchor begins anew, like another bundle;
        another seed draws the chunks to come, as when it is ordered while the stream runs."""
        self._saved()  # what is being written is what was good last
        file = self.job.state
        try:
            facts = read_facts(file)
            if (anchor := facts.extra.get("anchor", self.anchor)) != self.anchor:  # states of before do not say
                raise UserError(f"{file}: belongs to another anchor ({anchor}, here {self.anchor})")
            self.director.restore(facts.extra.get("director", {}))
            self._check(self.director.playlist)
            self.stream.set_seed(facts.seed)
            load_state(self.stream, file)
            if facts.extra.get("seed", self.seed) != self.seed:
                self.stream.set_seed(self.seed)
            return True
        except RunError:  # the card's fault, not the state's
            raise
        except (UserError, ValidationError) as error:
            self.director.follow(self.job.playlist)
            self.stream.set_seed(self.seed)
            self._give_up(first_line(error))
            return False

    def _give_up(self, why: str) -> None:
        """Put an unusable state aside and start anew. A disk that takes no changes keeps it, which is no harm: the next one
        that can be saved takes its place."""
        try:
            put_aside(self.job.state)
        except OSError as error:
            why += f"; and it cannot be put aside: {reason(error)}"
        self.connection.send(("event", "unusable", why))


def put_aside(state: Path) -> None:
    """Keep a state that could not be used, under a name that nobody resumes from."""
    state.replace(state.with_name(state.name + BAD))


def _figures(chunk: Chunk, chunk_seconds: float) -> dict[str, Any]:
    t = chunk.timings
    return {
        "index": chunk.index,
        "prompt": chunk.prompt,
        "frames": chunk.frames.shape,
        "stages": {
            "prompt": t.prompt,
            "diffuse": sum(t.diffuse),
            "finalize": t.finalize,
            "decode": t.decode,
            **{name: seconds for name in POST if (seconds := getattr(t, name))},
            "copy": t.copy,
            "host": t.host,
            "total": t.total,
        },
        "real_time_factor": chunk_seconds / t.total,
        "pid": os.getpid(),
    }
