"""Who may import what: runtime and engines work where torch and the ONNX tools are not to be had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = """
import sys
from importlib.abc import MetaPathFinder

GONE = ('torch', 'onnx', 'onnxscript', 'transformers', 'diffusers', 'tokenizers', 'cuda', 'tensorrt_rtx')


class Gone(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in GONE:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


sys.meta_path.insert(0, Gone())
"""


def run(code: str, *args: object) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCK + code, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ["runtime", "engines"])
def test_every_module_imports_without_torch(room: str) -> None:
    modules = [f"everframe.{room}.{f.stem}" for f in (ROOT / room).glob("*.py") if f.stem != "__init__"]
    assert len(modules) >= 5
    run("import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", f"everframe.{room}", *modules)


def test_video_without_torch(bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.mp4"
    run(
        "from everframe.runtime.cli import main; sys.argv = ['everframe', *sys.argv[1:]]; main()",
        *("generate", "-b", bundle_path, "--seconds", "1", "-o", out),
    )
    assert out.stat().st_size > 1000


def test_export_without_torch_says_what_is_missing(tmp_path: Path) -> None:
    code = "from everframe.runtime.cli import main; sys.argv = ['everframe', *sys.argv[1:]]; main()"
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code, "export", "x", "-o", "y.everframe"],
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
        *("UserError", "open_bundle", "open_output"),
    }
    for name in everframe.runtime.__all__:
        assert getattr(everframe.runtime, name) is not None


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
