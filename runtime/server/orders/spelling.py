"""The bundle's own spelling of whatever prompts somebody names."""

from __future__ import annotations

from typing import Any

from ....engines.bundle import Bundle
from ....engines.errors import UserError
from ...prompts import PromptBank
from ..config import Config
from .playlist import Change, Playlist


class Spelling:
    """Raises UserError for a prompt that the bundle cannot show."""

    def __init__(self, bundle: Bundle):
        self._bank = PromptBank(bundle)
        self.free_text = "text" in bundle.manifest.graphs

    @property
    def prompts(self) -> tuple[str, ...]:
        return self._bank.prompts

    def of_bank(self, prompt: str) -> str:
        return self._bank.find(prompt)

    def change(self, change: Any) -> Any:
        """The change, or the item of a playlist, with the bank's spelling of its prompt."""
        if not self.free_text:
            prompt, transition = self._bank.change(change.prompt, change.transition)
        else:  # the stream, which has the text encoder, looks it up
            begins = self._bank.begins_shot(change.prompt)  # by its prefix the model's authors mark a cut
            # Spelled as the stream will say it: Control.ready compares them.
            prompt, transition = self._bank.spelled(change.prompt), "cut" if begins else change.transition
            if not prompt:
                raise UserError("prompt: is empty; expected words")
        return change.model_copy(update={"prompt": prompt, "transition": transition})

    def check(self, prompt: str | None, playlist: Playlist | None) -> None:
        for one in [*([Change(prompt=prompt)] if prompt is not None else []), *(playlist.items if playlist else [])]:
            self.change(one)

    def check_config(self, config: Config) -> None:
        """Everything that the configuration names, whether an order has taken its place or not."""
        self.check(config.stream.prompt, None)
        for item in config.playlist.items:
            self.change(item)
        for entry in config.schedule.entries:
            self.check(entry.prompt, entry.playlist)
