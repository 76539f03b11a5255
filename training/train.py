"""Train the demo for as long as there is time: every stage in order, each from where it stopped.

    make train [MINUTES=600] [DEVICE=cuda]
    python training/train.py --list                 what has been done, in steps

Stopped by SIGTERM, Ctrl-C or the clock, it leaves compact checkpoints in training/runs, which the next run goes on from,
on a fresh machine too: what belongs to training/work (clips, embeddings, latents) is made again when it is missing.
Stages run at the lowest priority, in processes of their own, whose output goes to training/work/train.log.

The newest autoencoder encodes the latents, so a stage of the transformer is only as good as the autoencoder was when its
steps were done: give the autoencoder more steps only before the transformer begins.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import texts

import autoencoder
import decoder
import distill
import transformer
from clips import all_done
from run import HERE, WORK, progress_of

INSTANCES, UPRIGHT = 1600, 160  # clips; of those that stand upright
LOG = WORK / "train.log"
# glibc gives memory back after every step otherwise, and half of the time goes into page faults.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1073741824",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True)
class Stage:
    """A script, and how one sees that it has finished. Only scripts with steps know a clock and a device."""

    name: str
    command: tuple[str, ...]
    done: Callable[[], bool]
    steps: int = 0  # over all sessions
    progress: Callable[[], int] = lambda: 0

    @property
    def state(self) -> str:
        return f"{self.progress()} of {self.steps} steps" if self.steps else "done" if self.done() else "to do"


def trained(name: str, steps: int, *command: str, of: str = "") -> Stage:
    """`of`: the stage whose newest checkpoint this one has to be made from."""

    def progress() -> int:
        return progress_of(name, progress_of(of)) if of else progress_of(name)

    return Stage(name, (*command, "--steps", str(steps)), lambda: progress() >= steps, steps, progress)


def rendered(name: str, instances: int, *command: str) -> Stage:
    upright = "--portrait" in command
    return Stage(name, ("clips.py", "--instances", str(instances), *command), lambda: all_done(instances, upright))


def stages(workers: int, use: int, steps: dict[str, int]) -> list[Stage]:
    """In the order in which they need each other. Clips are rendered by as many processes as later train."""
    crew = ("--workers", str(workers))
    some = (*crew, "--use", str(use))
    both = (*some, "--portrait", str(UPRIGHT))
    return [
        rendered("clips", INSTANCES, *crew),
        rendered("upright", UPRIGHT, *crew, "--portrait"),
        trained("autoencoder", steps["autoencoder"], "autoencoder.py", *crew),
        Stage("texts", ("texts.py",), texts.complete),
        trained("transformer", steps["transformer"], "transformer.py", *both),
        trained("distill", steps["distill"], "distill.py", *both, of="transformer"),
        trained("decoder", steps["decoder"], "decoder.py", *some, of="autoencoder"),
        Stage("assemble", ("assemble.py",), lambda: False),
    ]


STEPS = {
    "autoencoder": autoencoder.STEPS,
    "transformer": transformer.STEPS,
    "distill": distill.STEPS,
    "decoder": decoder.STEPS,
}


class Driver:
    """Runs one stage after the other and hands a wish to stop on to the one that runs."""

    def __init__(self, minutes: float, device: str):
        self.end, self.device = time.monotonic() + 60 * minutes, device
        self.stopped = False
        self.running: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)

    def stop(self, *_: object) -> None:
        self.stopped = True
        self.end_stage()

    def end_stage(self) -> None:
        if self.running:
            os.killpg(self.running.pid, signal.SIGTERM)  # with its workers

    @property
    def minutes_left(self) -> float:
        return (self.end - time.monotonic()) / 60

    def over(self) -> bool:
        return self.stopped or self.minutes_left <= 0

    def run(self, stage: Stage) -> int:
        """The stage's exit status. A stage without a clock of its own is stopped by ours."""
        command = [sys.executable, str(HERE / stage.command[0]), *stage.command[1:]]
        if stage.steps:
            command += ["--device", self.device]
            command += ["--minutes", f"{self.minutes_left:.2f}"] if math.isfinite(self.end) else []
        with LOG.open("ab") as log:
            self.running = subprocess.Popen(
                command, env=os.environ | MALLOC, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        patience = None if stage.steps or not math.isfinite(self.end) else max(1.0, 60 * self.minutes_left)
        try:
            return self.running.wait(patience)
        except subprocess.TimeoutExpired:
            self.end_stage()
            return self.running.wait()
        finally:
            self.running = None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="single-threaded processes, on a CPU")
    parser.add_argument("--use", type=int, default=960, help="clips whose latents are trained on")
    parser.add_argument("--list", action="store_true")
    for name, steps in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps)
    args = parser.parse_args()
    steps = {name: getattr(args, f"{name}_steps") for name in STEPS}
    plan = stages(args.workers if args.device == "cpu" else 1, args.use, steps)
    if args.list:
        print("\n".join(f"{stage.name:12} {stage.state}" for stage in plan))
        return 0
    os.nice(19)
    WORK.mkdir(exist_ok=True)
    driver = Driver(args.minutes, args.device)
    for stage in plan:
        if driver.over() or stage.done():
            continue
        print(f"--- {stage.name}: {stage.state}", flush=True)
        status = driver.run(stage)
        if status and not driver.over():
            print(f"--- {stage.name} failed with status {status}", flush=True)
            return status
        if stage.steps and not stage.done():
            break  # its time was over
    print("\n".join(f"{stage.name:12} {stage.state}" for stage in plan), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
