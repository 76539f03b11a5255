"""The house: who may import what, how large a module gets, and that no room is loaded before it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("export", "calibration", "engines", "runtime")
SUBROOMS = ("server", "measure", "plan", "cli")
BLOCK = """
import sys
from importlib.abc import MetaPathFinder

GONE = ('torch', 'onnx', 'onnxscript', 'transformers', 'diffusers', 'tokenizers', 'cuda', 'tensorrt_rtx', 'openvino')


class Gone(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in GONE:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


sys.meta_path.insert(0, Gone())
"""
MAIN = "from everframe.runtime.cli import main; sys.argv = ['everframe', *sys.argv[1:]]; main()"


def run(code: str, *args: object) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCK + code, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def modules(*rooms: str) -> list[Path]:
    return [file for room in rooms for file in sorted((ROOT / room).rglob("*.py"))]


def dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(("everframe", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def room_of(name: str) -> str:
    """'everframe.runtime.server.orders.osc' -> 'runtime.server'."""
    parts = name.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] == "runtime" and len(parts) > 1 and parts[1] in SUBROOMS else parts[0]


def imports(file: Path) -> Iterator[str]:
    """Full names of everframe modules (or names in them) that a module imports anywhere in it, for running."""
    package = dotted(file) if file.name == "__init__.py" else dotted(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            home = f"{base}.{node.module}" if node.module else base
            yield from (f"{home}.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("everframe."):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("everframe."))


def allowed() -> dict[str, dict[str, str]]:
    """The table of docs/architecture.md: room -> room -> '', 'yes' or 'cli'."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines = re.search(r"## Who may import whom\n.*?\n(\|.*?)\n\n", text, re.S)
    assert lines
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1].splitlines()]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def test_imports_are_those_of_the_table() -> None:
    table, used = allowed(), set()
    for file in modules(*ROOMS):
        here = room_of(dotted(file))
        for name in imports(file):
            there = room_of(name)
            if there == here:
                continue
            word = table[here].get(there, "")
            used.add((here, there))
            assert word, f"{file.relative_to(ROOT)} imports {name}: {here} may not import {there}"
            assert word == "yes" or file.name == "cli.py", f"{file.relative_to(ROOT)} imports {name}"
    named = {(row, column) for row, cells in table.items() for column, word in cells.items() if word}
    assert named == used  # the table promises nothing that nobody needs


def test_only_the_command_line_prints() -> None:
    for file in modules(*ROOMS):
        if file.name == "cli.py" or room_of(dotted(file)) == "runtime.cli":
            continue
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), file


def test_the_architecture_names_every_module() -> None:
    named = (ROOT / "docs" / "architecture.md").read_text()
    for file in modules(*ROOMS):
        if file.name not in ("__init__.py", "__main__.py", "cli.py"):
            assert f"`{file.name}`" in named, file


def test_sizes() -> None:
    """No module over 400 lines, no function whose body is over 60: signature and docstring do not count."""
    for file in modules(*ROOMS):
        text = file.read_text()
        assert text.count("\n") <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
                assert lines <= 60, f"{file}: {node.name} has {lines} lines"


def test_every_folder_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {dotted(file) for file in modules(*ROOMS) if file.name == "__init__.py"}
    assert set(listed) == folders


def test_tests_mirror_the_rooms() -> None:
    """Every folder of tests with tests in it is a folder of the house."""
    for file in (ROOT / "tests").rglob("test_*.py"):
        folder = file.relative_to(ROOT / "tests").parent
        assert folder.parts[:1] in ((), ("gpu",), ("field",), ("training",)) or (ROOT / folder).is_dir(), file


@pytest.mark.parametrize("room", ["runtime", "engines"])
def test_every_module_imports_without_torch(room: str) -> None:
    names = [dotted(file) for file in modules(room) if file.name not in ("__main__.py", "cli.py")]
    assert len(names) >= 5
    run("import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *names)


def test_help_imports_no_room() -> None:
    code = (
        "import contextlib\n"
        "sys.argv = ['everframe', '--help']\n"
        "from everframe.runtime.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "heavy = {'numpy', 'onnxruntime', 'av', 'pydantic', 'fastapi', 'ray', 'PIL', 'torch', 'onnx'}\n"
        "assert not heavy & {name.split('.')[0] for name in sys.modules}, heavy & set(sys.modules)\n"
    )
    run(code)


def test_every_command_is_where_the_table_says() -> None:
    """And its line in `everframe --help` is the first line of its own help."""
    from everframe.runtime.cli.app import load
    from everframe.runtime.cli.commands import COMMANDS

    for name, place in COMMANDS.items():
        assert (load(name).help or "").splitlines()[0] == place.line, name


def test_video_without_torch(bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.mp4"
    run(MAIN, "generate", "-b", bundle_path, "--seconds", "1", "-o", out)
    assert out.stat().st_size > 1000


def test_export_without_torch_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + MAIN, "export", "x", "-o", "y.everframe"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "everframe[export]" in done.stderr


def test_public_names() -> None:
    import everframe.runtime

    assert set(everframe.runtime.__all__) == {
        *("DEMO_BUNDLE", "TRANSITIONS", "Bundle", "Chunk", "EngineOptions", "Stream", "Timings", "Transition"),
        *("PromptChange", "UserError", "generate", "open_bundle", "open_output"),
    }
    for _ in range(2):  # importing a module of the room must not put it in the place of a name
        for name in everframe.runtime.__all__:
            assert not isinstance(getattr(everframe.runtime, name), types.ModuleType), name


def test_the_ten_line_quick_start(bundle_path: Path) -> None:
    from everframe.runtime import Stream, open_bundle

    shown = []
    with Stream(open_bundle(bundle_path), seed=7) as stream:
        for chunk in stream:
            shown.append(chunk.frames)
            if len(shown) == 2:
                break
    assert shown[0].shape == (12, 32, 64, 3)
    assert shown[0].dtype == "uint8"
