"""Every order in one place, whoever gives it: the API, the timetable, OSC. What was ordered last is kept on disk."""

from __future__ import annotations

import datetime as dt
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ....engines.bundle import Bundle
from ....engines.errors import UserError
from ....engines.files import reason, write_whole
from ...noise import MAX_SEED
from ..config import Config, check_token
from .kept import digest, read_kept, write_kept
from .playlist import Change, Playlist
from .spelling import Spelling
from .timetable import Timetable

log = logging.getLogger(__name__)

SET_BACK = dt.timedelta(hours=1)  # by which a running clock is corrected; one that was further off had said nothing
SET_RIGHT = 1800.0  # seconds in which a box that boots with an early clock gets the time; then the clock is believed


class Kept(BaseModel):
    """control.json. A changed configuration begins anew."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    config: str = ""  # digest of the playlist, schedule, prompt and seed that this started from
    prompt: Change | None = None
    playlist: Playlist | None = None
    timetable: Timetable = Timetable()
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    paused: bool = False
    fired: dt.datetime | None = None  # the timetable's last occurrence that was obeyed


class Control:
    """Orders go to `order`, the generator's inbox. Any thread; raises UserError for a prompt that the bank does not have."""

    def __init__(self, config: Config, bundle: Bundle, order: Callable[..., None]):
        self._file, self._order = config.state_dir / "control.json", order
        self.spelling = Spelling(bundle)
        self._lock = threading.RLock()
        self.orders = 0  # of prompts and playlists since the start
        self._behind: float | None = None  # monotonic: since when the clock has been further back than it is ever set
        self.spelling.check_config(config)
        self.kept = self._load(config)

    def set_prompt(self, change: Change) -> Change:
        """Ends the playlist. Returns the change with the bank's own spelling."""
        change = self.spelling.change(change)
        with self._lock:
            self.kept.prompt, self.kept.playlist = change, None
            self.orders += 1
            self._order("prompt", change)
            self._save()
        return change

    def lend(self, change: Change, running: str | None) -> None:
        """Show something for a while: what was ordered stays, or where nothing was, what is running; a restart goes on with
        that."""
        change = self.spelling.change(change)
        with self._lock:
            if self.kept.playlist is None and self.kept.prompt is None and running is not None:
                self.kept.prompt = Change(prompt=running)
                self._save()
            self._order("lend", change)

    def back(self) -> None:
        """Show again what was ordered: a playlist goes on where it was."""
        with self._lock:
            if self.kept.playlist is not None:
                self._order("back", None)
            else:
                self._order("prompt", self.kept.prompt or Change(prompt=self.spelling.prompts[0]))

    def set_playlist(self, playlist: Playlist | None, running: str | None = None) -> Playlist | None:
        """None: it ends, and the prompt that is running stays, over a restart too."""
        if playlist is not None:
            playlist = playlist.model_copy(update={"items": [self.spelling.change(item) for item in playlist.items]})
        with self._lock:
            if playlist is not None:
                self.kept.prompt = None
            elif self.kept.playlist is not None:  # else what was ordered last stays, which may not be shown yet
                self.kept.prompt = None if running is None else Change(prompt=running)
            self.kept.playlist = playlist
            self.orders += 1
            self._order("playlist", playlist)
            self._save()
        return playlist

    def skip(self) -> None:
        self._order("skip", None)

    def set_timetable(self, timetable: Timetable) -> None:
        for entry in timetable.entries:
            self.spelling.check(entry.prompt, entry.playlist)
        with self._lock:
            self.kept.timetable, self.kept.fired = timetable, None
            self._save()

    def set_seed(self, seed: int) -> None:
        with self._lock:
            self.kept.seed = seed
            self._order("seed", self.kept.seed)  # as it was validated: what is ordered can be saved and read again
            self._save()

    def pause(self, paused: bool) -> None:
        with self._lock:
            self.kept.paused = paused
            self._order("pause", paused)
            self._save()

    def tick(self, now: dt.datetime, clock: float | None = None) -> None:
        """Obey the timetable, if an occurrence has begun since the last one that was obeyed. Where the clock was set back
        neither that one nor the one before it comes again, unless by more than SET_BACK. A clock that is further back may
        be one that a box begins with, in 1970: nothing is obeyed by it, and no order by hand lost, before SET_RIGHT is over.

        clock: monotonic seconds."""
        clock = time.monotonic() if clock is None else clock
        with self._lock:
            found, fired = self.kept.timetable.current(now), self.kept.fired
            if fired is None or fired < now + SET_BACK:
                self._behind = None
            elif self._behind is None:
                self._behind = clock
                log.warning("timetable: the clock says %s, and obeyed was %s; waiting for the time", now, fired)
            if self._behind is not None and clock - self._behind < SET_RIGHT:
                return
            if found is None or (fired is not None and found[0] <= fired < now + SET_BACK):
                return
            moment, entry = found
            self.kept.fired = moment
            log.info("timetable: %s %s", ",".join(entry.days), entry.at)
            if entry.pause:
                return self.pause(True)
            if self.kept.paused:
                self.pause(False)
            if entry.playlist is not None:
                self.set_playlist(entry.playlist)
            elif entry.prompt is not None:
                change = Change(prompt=entry.prompt, transition=entry.transition, crossfade=entry.crossfade)
                self.set_prompt(change)

    def ready(self, facts: dict[str, Any]) -> None:
        """A generator has come up with what its state says: order what has changed since."""
        with self._lock:
            kept = self.kept
            if kept.playlist is not None:
                if facts["playlist"] != kept.playlist:
                    self._order("playlist", kept.playlist)
            elif kept.prompt is not None and (facts["playlist"], facts["prompt"]) != (None, kept.prompt.prompt):
                self._order("prompt", kept.prompt)
            elif kept.prompt is None and facts["playlist"] is not None:
                self._order("playlist", None)

    def _check(self, kept: Kept) -> None:
        """Raises UserError for a prompt that the bank does not have."""
        self.spelling.check(kept.prompt and kept.prompt.prompt, kept.playlist)
        for entry in kept.timetable.entries:
            self.spelling.check(entry.prompt, entry.playlist)

    def _load(self, config: Config) -> Kept:
        told = [config.playlist, config.schedule, config.stream.prompt, config.stream.seed]
        # What it says, and not what it leaves to the machine or to a version of ours, as `write_kept`.
        text = json.dumps([one.model_dump(exclude_unset=True) if isinstance(one, BaseModel) else one for one in told])
        kept = read_kept(self._file, Kept, digest(text))
        if kept is not None:
            try:
                self._check(kept)
                return kept
            except UserError as error:  # another bundle than the one that they were given to
                log.warning("%s: kept orders do not fit, starting from the configuration: %s", self._file, error)
        prompt = config.stream.prompt
        first = None if prompt is None or config.first_playlist else self.spelling.change(Change(prompt=prompt))
        return Kept(
            config=digest(text),
            prompt=first,
            playlist=config.first_playlist,
            timetable=config.schedule,
            seed=config.stream.seed,
        )

    def _save(self) -> None:
        try:
            write_kept(self._file, self.kept)
        except UserError as error:  # a full disk must not refuse an order
            log.warning("orders are not kept: %s", error)


def read_token(folder: Path, configured: str | None) -> str:
    """The bearer token: the configured one, else one that is made once and kept in the folder, for its owner's eyes."""
    if configured is not None:
        return configured
    file = folder / "token"
    try:
        if not file.exists() or not file.stat().st_size:  # what a power cut leaves of a file that was not synced
            write_whole(file, secrets.token_urlsafe(24).encode() + b"\n", mode=0o600)
        token = file.read_bytes().strip().decode("utf-8")
        return check_token(token)
    except OSError as error:
        raise UserError(f"{file}: {reason(error)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not text; remove the file to get a new token") from None
    except ValueError as error:
        raise UserError(f"{file}: {error}; remove the file to get a new token") from None
