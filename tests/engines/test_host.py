"""The thread that runs passes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FORKS = """
import os, signal, sys
from everframe.engines.host import HostLaunch

def passes_run() -> int:
    launch = HostLaunch([lambda: None], [], True)
    launch.start()
    return len(launch.main())

assert passes_run() == 1
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if passes_run() == 1 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_thread_of_its_own() -> None:
    """As a program does that makes a chunk, then starts workers by fork: the parent's threads are not there."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
