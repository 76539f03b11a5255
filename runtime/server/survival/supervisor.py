"""The generator process under watch: started, listened to, and started again when it dies or hangs.

One thread. It hands chunks on as fast as they are wanted; while nobody wants one it does not read, the pipe fills, and the
generator waits. After a restart the stream goes on from its last saved state: some chunks come a second time, which is a
jump in the picture, and better than a picture that waits for them to pass.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .notify import notify
from .work import GRACE, bytes_read
from .worker import NOT_NOW, REFUSED, Job, main, put_aside

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a restart: doubled at every crash that comes soon
# Lives in a row without a chunk that put the state aside: two of them, or so many in which an engine could not run, which
# is the card's fault more often than the state's.
BARREN = 10
SOON = 60.0  # a generator that did what it should and lived longer is started again after FIRST_WAIT
STOP, LONGEST_STOP = 30.0, 600.0  # seconds of silence, and in all, that a generator may take to save and to end
RECENT = 20  # chunks whose slowest tells how slow the machine is: one stall must not disarm the watch for good


class Supervisor(threading.Thread):
    """Callbacks come from this thread.

    job: what to start, asked for at every start. wanted: whether there is room for another chunk. chunk: takes one.
    ready: a generator is up. event: (kind, text) from the generator, and from here "died", "hung", "backoff".
    hopeless: the very first generator could not even begin, for a reason that a person has to mend; whether to give up.
    """

    def __init__(
        self,
        job: Callable[[], Job],
        wanted: Callable[[], bool],
        chunk: Callable[[dict[str, Any], NDArray[np.uint8]], None],
        ready: Callable[[dict[str, Any]], None],
        event: Callable[[str, str], None],
        stall_seconds: float,
        start_seconds: float,
        hopeless: Callable[[str], bool] = lambda why: False,
    ):
        super().__init__(name="supervisor", daemon=True)
        self.job, self.wanted, self.chunk, self.ready, self.event = job, wanted, chunk, ready, event
        self.stall_seconds, self.start_seconds, self.hopeless = stall_seconds, start_seconds, hopeless
        self.process: BaseProcess | None = None
        self.state = "starting"  # running, restarting, stopped
        self.restarts = 0
        self.why = ""  # the last generator ended; empty while one runs
        self._begun = False  # some generator has been ready
        self._up = False  # this one has
        self._blamed = False  # its state is suspected, should it end now
        self._orders: list[tuple[Any, ...]] = []
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._lasted: deque[float] = deque(maxlen=RECENT)  # seconds of this life's newest chunks
        self.slowest = 0.0  # of these; asked for by other threads too
        self._barren = 0  # how much lives that brought no chunk, though they should have, speak against the state

    def order(self, *message: Any) -> None:
        """Send an order to the generator, when there is one again. Any thread."""
        with self._lock:
            self._orders.append(message)

    def forget_orders(self) -> None:
        with self._lock:
            self._orders.clear()

    def stop(self) -> None:
        """Let the generator save its state and end. Any thread."""
        self._ending.set()
        if self.is_alive():
            self.join(LONGEST_STOP + 10)

    def run(self) -> None:
        wait = FIRST_WAIT
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                self._live()
            except Exception:  # a thread that dies silently would leave a frozen picture
                log.exception("supervisor")
            finally:
                self._kill()
            unable = self._ended_with(NOT_NOW)
            if self._blamed and (self._up or not (unable or self._ended_with(REFUSED))):
                self._barren += 1 if unable else BARREN // 2
            if self._ending.is_set() or (not self._begun and self._ended_with(REFUSED) and self.hopeless(self.why)):
                break
            self.state = "restarting"
            self.restarts += 1
            lasted = self._up and not self._blamed and time.monotonic() - began > SOON
            wait = FIRST_WAIT if lasted else min(2 * wait, LONGEST_WAIT)
            self.event("backoff", f"starting the generator again in {wait:.0f} s")
            self._ending.wait(wait)
        self.state = "stopped"

    def _live(self) -> None:
        """One life of the generator."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        job = self.job()
        if self._barren >= BARREN and job.state.exists():
            self.event("unusable", f"{job.state}: again and again no chunk after resuming from it; starting anew")
            with contextlib.suppress(OSError):
                put_aside(job.state)
        # While paused none is expected, and one that cannot begin, as with a disk that is away or a card that is full, says
        # nothing of the state.
        self._blamed, self._up = not job.paused, False
        self.why = ""
        self._lasted.clear()
        self.slowest = 0.0
        self.process = process = context.Process(
            target=main, args=(theirs, job), name="everframe-generator", daemon=True
        )
        process.start()
        theirs.close()
        with ours:
            self._listen(ours, process)

    def _listen(self, ours: Connection, process: BaseProcess) -> None:
        """Until the generator has ended, or has to be."""
        cut = threading.Event()  # set where the generator is killed in the middle of a message
        patience, stopping, outbox = Patience(self.start_seconds, process), None, Outbox(ours)
        heard = 0.0  # while it stops: monotonic, when it last said something
        while True:
            now = time.monotonic()
            if self._ending.is_set() and stopping is None:
                if not patience.ready:  # it is still loading: there is nothing new to save
                    return None
                stopping = heard = now
                self.order("stop")
            if stopping is not None and (now - heard > max(STOP, 5 * self.slowest) or now - stopping > LONGEST_STOP):
                return log.warning("the generator has not ended within %.0f s and is killed", now - stopping)
            if not self._send(outbox):
                return None if stopping is not None else self._died()
            # One that is not ready has no chunk to send yet; of one that has died there is none to hold back any more. Both
            # are listened to while the picture stands, or its end would be found when it goes on.
            held = stopping is None and patience.ready and not self.wanted()
            if held and process.exitcode is None:
                patience.heard()  # it is held back by us, not hanging
                time.sleep(0.005)
                continue
            try:
                if ours.poll(0.05):
                    patience.heard()
                    if stopping is not None:
                        heard = now
                        notify(f"EXTEND_TIMEOUT_USEC={GRACE * 1_000_000}")
                    with _killed_after(patience.limit, process, cut):
                        message = _received(ours)
                    kind = self._take(message, stopping is not None)
                    patience.ready = patience.ready or kind in ("ready", "chunk")
                    if kind == "chunk":
                        patience.chunk(max(self.stall_seconds, 5 * self.slowest))  # a slow machine does not hang
                    elif kind == "busy":
                        patience.busy(self.start_seconds)
                elif stopping is None and (silent := patience.over()) is not None:
                    return self._end("hung", f"no chunk for {silent:.0f} s")
            except (EOFError, OSError):  # the pipe's end, in a message or between two
                if stopping is not None:
                    return None
                if cut.is_set():
                    return self._end("hung", f"half a message for {patience.limit:.0f} s")
                return self._died()

    def _end(self, kind: str, text: str) -> None:
        self.why = self.why or text
        self.event(kind, text)

    def _died(self) -> None:
        self._end("died", self._obituary())

    def _ended_with(self, code: int) -> bool:
        return self.process is not None and self.process.exitcode == code

    def _take(self, message: tuple[Any, ...], stopping: bool) -> str:
        """Do what one message asks for; its kind."""
        kind, *values = message
        if kind == "chunk":
            facts, frames = values
            self._barren, self._blamed = 0, False
            self.state, self.why = "running", ""
            self._lasted.append(facts["stages"]["total"])
            self.slowest = max(self._lasted)
            if not stopping:
                self.chunk(facts, frames)
            return kind
        if kind == "ready":
            self._begun = self._up = True
            self.ready(values[0])
            return kind
        if values[0] == "error":
            self.why = values[1]
        self.event(*values)
        return values[0]

    def _send(self, outbox: Outbox) -> bool:
        """What was ordered, without waiting for the generator; False: it is gone, and the orders are for the next one."""
        if outbox.busy:
            return True
        with self._lock:
            self._orders = outbox.left() + self._orders
            if outbox.broken:
                return False
            orders, self._orders = self._orders, []
        if orders:
            outbox.send(orders)
        return True

    def _obituary(self) -> str:
        assert self.process is not None
        self.process.join(STOP)  # a driver may take long to let go of a card, and the code tells whose fault it was
        code = self.process.exitcode
        return f"the generator ended with {'signal ' + str(-code) if code is not None and code < 0 else code}"

    def _kill(self) -> None:
        if self.process is not None and self.process.pid is not None:  # None: it could not be started
            if self.process.is_alive():
                self.process.kill()
            self.process.join(5)


class Outbox:
    """Sends orders from threads of its own, one after the other: a generator that writes a chunk reads nothing, and who
    waited for it with a long order would wait for ever, since nobody reads the chunk."""

    def __init__(self, pipe: Connection):
        self._pipe, self._orders, self.broken = pipe, list[tuple[Any, ...]](), False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def send(self, orders: list[tuple[Any, ...]]) -> None:
        self._orders = orders
        self._thread = threading.Thread(target=self._work, name="orders", daemon=True)
        self._thread.start()

    def left(self) -> list[tuple[Any, ...]]:
        """Orders that could not be sent; taken once."""
        left, self._orders = self._orders, []
        return left

    def _work(self) -> None:
        try:
            while self._orders:
                self._pipe.send(self._orders[0])
                del self._orders[0]
        except (OSError, ValueError):  # the pipe's end, or its other side
            self.broken = True


class Patience:
    """How long a generator may say nothing. While it loads, or encodes a prompt, it may read: a slow disk is no hang."""

    def __init__(self, limit: float, process: BaseProcess):
        self.limit, self.ready = limit, False  # ready: it has said so
        self._process, self._busy = process, True
        self._read, self._heard, self._looked = 0, time.monotonic(), time.monotonic()

    def heard(self) -> None:
        self._heard = time.monotonic()

    def chunk(self, limit: float) -> None:
        self.limit, self._busy = limit, False

    def busy(self, limit: float) -> None:
        self.limit, self._busy = max(self.limit, limit), True

    def over(self) -> float | None:
        """Seconds of silence that are too many; None: it is not over yet."""
        now = time.monotonic()
        if self._busy and now - self._looked > min(2.0, self.limit / 4):
            self._looked, before, self._read = now, self._read, bytes_read(self._process.pid or 0)
            if self._read > before:
                self._heard = now
        silent = now - self._heard
        return silent if silent > self.limit else None


def _received(pipe: Connection) -> tuple[Any, ...]:
    """One message, a chunk with its frames [T, H, W, 3]."""
    message = pipe.recv()
    if message[0] == "chunk":
        return *message, np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(message[1]["frames"])
    return message


@contextlib.contextmanager
def _killed_after(seconds: float, process: BaseProcess, cut: threading.Event) -> Iterator[None]:
    """A generator that stops in the middle of a message would hold its reader for ever: it is killed, and `cut` set."""

    def kill() -> None:
        cut.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
