"""The log's file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_prompts_of_any_script_are_in_the_file(tmp_path: Path) -> None:
    """Whatever the machine's own encoding is."""
    file = tmp_path / "log"
    code = (
        "import logging, pathlib, sys\n"
        "from everframe.runtime.server.config import Logging\n"
        "from everframe.runtime.server.survival.logs import set_up\n"
        "set_up(Logging(file=pathlib.Path(sys.argv[1])))\n"
        "logging.getLogger('x').warning('\\u96ea and \\ud800')\n"
    )
    subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, file], env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, check=True
    )
    assert file.read_text("utf-8").endswith("WARNING x: 雪 and \\ud800\n")
