"""Visitors' wishes: one after the other, each for a while, then back to what was running.

Whoever orders something with the token, or the timetable, has the last word: a wish that is being shown ends with it, and
the next one waits as long as a wish is shown.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from ....engines.errors import UserError
from ....engines.text import key, tidy
from ..config import Guest
from ..discretion import printable, shortened
from .control import Control
from .playlist import Change
from .spelling import Spelling

log = logging.getLogger(__name__)

UNSEEN = re.compile("[\u034f\u115f\u1160\u3164\uffa0\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# First words of the names of letters whose scripts part no words, and of those that need no marks above or below.
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}
UNMARKED = {"LATIN", "GREEK", "CYRILLIC"}
REMEMBERED = 2000  # visitors
EXPIRES = (
    900.0  # seconds after which a free text does not wait for the operator any more, nor any wish for a pause's end
)


class WaitError(UserError):
    """A wish that has to wait: seconds until the visitor may ask again."""

    def __init__(self, text: str, seconds: float):
        super().__init__(text)
        self.seconds = seconds


@dataclass
class Wish:
    visitor: str
    prompt: str
    asked: float
    number: int = field(default_factory=count(1).__next__)


@dataclass
class Showing:
    """A wish that is being shown, and how many orders there were when it began."""

    wish: Wish
    orders: int
    until: float  # monotonic
    before: str | None  # the prompt that was shown when the first of these wishes came


class Guests:
    """Any thread. Times are monotonic seconds."""

    def __init__(self, settings: Guest, control: Control, running: Callable[[], str | None] = lambda: None):
        """running: the prompt that is shown now. Raises UserError."""
        self.settings, self._control, self._running = settings, control, running
        self.prompts = allowed(settings, control.spelling)
        self._queue: deque[Wish] = deque()
        self._waiting: OrderedDict[int, Wish] = OrderedDict()  # for the operator's approval
        self._asked: OrderedDict[str, float] = OrderedDict()  # visitor -> when it asked last
        self._showing: Showing | None = None
        self._ended: Showing | None = None
        self._held = -math.inf  # until when an order of somebody else is not touched
        self._lock = threading.RLock()

    def wish(self, visitor: str, prompt: str, now: float | None = None) -> None:
        """Raises WaitError for one who has to wait, UserError for what is not to be shown."""
        now = time.monotonic() if now is None else now
        prompt = tidy(prompt)  # as it would be shown: a letter that cannot be seen hides no word
        with self._lock:
            found = next((one for one in self.prompts if key(one) == key(prompt)), None)
            if found is None:
                self._check_free(prompt)
            if self._control.kept.paused:
                raise UserError("the picture stands still now: nothing can be wished for until it goes on")
            wait = self.wait(visitor, now)
            if wait > 0:
                raise WaitError(f"one wish every {self.settings.every_seconds:g} s: again in {wait:.0f} s", wait)
            queue = self._waiting if found is None and self.settings.approval else self._queue
            if len(queue) >= self.settings.queue:
                raise WaitError(f"{self.settings.queue} wishes are waiting already", self.settings.seconds)
            self._asked.pop(visitor, None)
            self._asked[visitor] = now
            while len(self._asked) > REMEMBERED:
                self._asked.popitem(last=False)
            wish = Wish(visitor, found or prompt, now)
            if found is None and self.settings.approval:
                self._waiting[wish.number] = wish
            else:
                self._queue.append(wish)

    def _check_free(self, prompt: str) -> None:
        if not self.settings.free_text:
            raise UserError(f"{shortened(printable(prompt), 60)!r}: expected one of the prompts on the page")
        words = _words(prompt)
        if not words or len(prompt) > self.settings.longest:
            raise UserError(f"expected words, at most {self.settings.longest} letters")
        if any(_says(words, _words(bad)) for bad in self.settings.blocked):
            raise UserError("that is not shown here")

    def decide(self, number: int, approve: bool) -> None:
        """The operator's word on a free text. Raises UserError for one that does not wait."""
        with self._lock:
            wish = self._waiting.pop(number, None)
            if wish is None:
                raise UserError(f"wish {number} does not wait for approval (any more)")
            if approve:
                self._queue.append(wish)

    def clear(self) -> None:
        """Forget every wish that is not shown yet."""
        with self._lock:
            self._queue.clear()
            self._waiting.clear()

    @property
    def showing(self) -> bool:
        with self._lock:
            return self._showing is not None

    @property
    def waiting(self) -> list[Wish]:
        with self._lock:
            return list(self._waiting.values())

    def wait(self, visitor: str, now: float | None = None) -> float:
        """Seconds until a visitor may wish again."""
        now = time.monotonic() if now is None else now
        return max(0.0, self._asked.get(visitor, -1e9) + self.settings.every_seconds - now)

    def place(self, visitor: str, now: float | None = None) -> dict[str, float | int | bool | str | None]:
        """What a visitor is told: how many wishes are before its own, and in how many seconds that is shown."""
        now = time.monotonic() if now is None else now
        with self._lock:
            left = max(0.0, (self._showing.until if self._showing else self._held) - now)
            ahead = next((i for i, wish in enumerate(self._queue) if wish.visitor == visitor), None)
            mine = self._showing is not None and self._showing.wish.visitor == visitor
            return {
                "paused": self._control.kept.paused,
                "queue": len(self._queue),
                "showing": self._showing.wish.prompt if self._showing else None,
                "yours_is_shown": mine,
                "yours_in_seconds": None if ahead is None else round(left + ahead * self.settings.seconds, 1),
                "yours_waits_for_approval": any(wish.visitor == visitor for wish in self._waiting.values()),
                "again_in_seconds": round(self.wait(visitor, now), 1),
            }

    def tick(self, now: float | None = None) -> None:
        """Show the next wish, or go back, when it is time."""
        now = time.monotonic() if now is None else now
        with self._lock:
            kept = self._control.kept
            for number in [n for n, wish in self._waiting.items() if now - wish.asked > EXPIRES]:
                del self._waiting[number]
            if self._showing is not None and self._control.orders != self._showing.orders:
                before = self._showing.before
                self._ended, self._showing = self._showing, None
                self._held = now + self.settings.seconds  # somebody else has ordered something
                if kept.playlist is None and kept.prompt is None and before is not None:  # as that a playlist ends
                    self._control.set_prompt(Change(prompt=before))
            if now < (self._held if self._showing is None else self._showing.until):
                return
            if kept.paused:  # what was wished for in the evening is not for the next morning
                self._queue = deque(wish for wish in self._queue if now - wish.asked <= EXPIRES)
                return
            if self._queue:
                self._begin(self._queue.popleft(), now)
            elif self._showing is not None:
                self._ended, self._showing = self._showing, None
                self._control.back()

    def _begin(self, wish: Wish, now: float) -> None:
        change = Change(prompt=wish.prompt, transition=self.settings.transition)
        running = self._running() if self._showing is None else None
        if self._ended is not None and running == self._ended.wish.prompt:
            running = self._ended.before  # the generator has not yet gone back to it
        try:
            self._control.lend(change, running)
        except UserError as error:
            log.warning("a visitor's wish: %s", error)
            return
        before = self._showing.before if self._showing is not None else running
        self._showing = Showing(wish, self._control.orders, now + self.settings.seconds, before)


def allowed(settings: Guest, spelling: Spelling) -> list[str]:
    """The prompts on visitors' buttons. Raises UserError for settings that the bundle cannot follow."""
    try:
        prompts = [spelling.of_bank(prompt) for prompt in settings.prompts] or list(spelling.prompts)
    except UserError as error:
        raise UserError(f"guest.prompts: {error}") from None
    if settings.free_text and not spelling.free_text:
        raise UserError("guest.free_text: this bundle has no text encoder: only the prompts of its bank can be shown")
    return prompts


def _words(text: str) -> list[str]:
    """As they look: letters of compatibility are the plain ones, and what cannot be seen is not there (format characters,
    selectors of variants, fillers of Hangul), nor what stands above or below a letter of a script that needs no such
    marks."""
    seen, plain = "", unicodedata.normalize("NFKC", text)
    for c in plain:
        kind = unicodedata.category(c)
        marks = kind in ("Mn", "Me")
        if kind == "Cf" or UNSEEN.fullmatch(c) or (marks and _script(seen[-1:]) in UNMARKED):
            continue
        seen += c if marks or c.isalnum() or c == "_" else " "
    return key(seen).split()


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0] if letter else ""


def _says(words: list[str], bad: list[str]) -> bool:
    """Whether these words are among those, one after the other; in scripts without blanks between words anywhere, and in
    Korean also as a part of one, for endings follow without a blank."""
    together = "".join(bad)
    scripts = {_script(letter) for letter in together}
    if scripts & UNSPACED:
        return together in "".join(words)
    if "HANGUL" in scripts and len(bad) == 1:
        return any(together in word for word in words)
    return f" {' '.join(bad)} " in f" {' '.join(words)} "
