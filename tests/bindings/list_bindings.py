"""What the Python bindings of each TensorRT have: names of the module's classes, functions and enums, and of their members.

    python tests/bindings/list_bindings.py      needs pip's index and gcc; writes the JSON files beside this one

The wheels hold bindings alone: a stub of each library that they want, with the few functions they import, is enough to
import them, without a GPU and without TensorRT. `stand_in.py` gives its module these names and no others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
WHEELS = {
    "classic-10.3": "tensorrt-cu12-bindings==10.3.0",
    "classic-10.7": "tensorrt-cu12-bindings==10.7.0",
    "classic-11.4": "tensorrt-cu13-bindings==11.4.0.106",
    "rtx-1.7": "tensorrt-rtx-cu13-bindings==1.7.1.116",
}
LIST = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
names = {}
for name in sorted(n for n in dir(module) if not n.startswith("_")):
    thing = getattr(module, name)
    if isinstance(thing, type):
        members = getattr(thing, "__members__", None)
        own = sorted(n for n in dir(thing) if not n.startswith("__"))
        names[name] = {"values": {n: int(v) for n, v in members.items()}} if members else {"has": own}
    elif type(thing).__name__ != "module":
        names[name] = {}
print(json.dumps({"version": module.__version__, "names": names}))
"""


def run(*words: str | Path, **environment: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | environment).stdout


def listed(wheel: str, work: Path) -> dict:
    """Download, put stubs beside it, import in a process of its own."""
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", wheel, "-d", work)
    with zipfile.ZipFile(next(work.glob("*.whl"))) as archive:
        archive.extractall(work)
    library = next(work.glob("*/tensorrt*.so"))
    linked = [w.split()[1] for w in run("objdump", "-p", library).splitlines() if "NEEDED" in w]
    needed = [name for name in linked if name.startswith(("libnv", "libtensorrt"))]
    symbols = [w.split()[-1] for w in run("nm", "-D", "--undefined-only", library).splitlines()]
    wanted = [s for s in symbols if not s.startswith("_") and ("Nv" in s or "Infer" in s or "Plugin" in s)]
    (work / "stub.c").write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in wanted))
    for name in needed:
        run("gcc", "-shared", "-fPIC", "-o", work / name, work / "stub.c", f"-Wl,-soname,{name}")
    said = run(sys.executable, "-c", LIST, library.parent.name, PYTHONPATH=str(work), LD_LIBRARY_PATH=str(work))
    return {"wheel": wheel, **json.loads(said.splitlines()[-1])}


def main() -> None:
    for name, wheel in WHEELS.items():
        with tempfile.TemporaryDirectory() as work:
            found = listed(wheel, Path(work))
        (HERE / f"{name}.json").write_text(json.dumps(found, separators=(",", ":"), sort_keys=True) + "\n")
        print(name, found["version"], len(found["names"]), "names")


if __name__ == "__main__":
    main()
