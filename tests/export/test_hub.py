"""Recipes against a server on loopback that speaks the hub's API and serves tiny checkpoints in the published layouts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.progress import Report
from everframe.export.recipes import PROMPTS, check_options, find, load, overruling, tell_recipe
from everframe.export.texts import read_prompts
from everframe.runtime import Stream

HALF = 12_000_000  # more than the 10 MB that the client takes at a time
COMMIT = "c0ffee" + 34 * "0"
GENERATOR = "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt"
FETCH = (
    "import sys; from everframe.engines.errors import UserError; from everframe.engines.progress import Report; "
    "from everframe.export import hub, recipes; r = recipes.find(sys.argv[1]); f = {'generator': r.generator}\n"
    "try: print(hub.fetch(f, Report(line=print))['generator'])\n"
    "except UserError as e: print('UserError', e); sys.exit(2)\n"
)


class Hub(ThreadingHTTPServer):
    """files: 'owner/name/path' -> content. faults: the same names -> what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, str] = {}
        self.gets: Counter[str] = Counter()
        self.ranges: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub  # type: ignore[assignment]

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.replace("%2B", "+")
        match = re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = f"{match[2]}/{match[4]}" if match else ""
        fault, content = self.server.faults.get(name, ""), self.server.files.get(name)
        if fault.isdigit() or content is None or match is None or match[3] not in ("main", COMMIT):
            gated = {"X-Error-Code": "GatedRepo"} if fault == "403" else {}
            self.start(int(fault) if fault.isdigit() else 404, {"Content-Length": "0"} | gated)
            return
        if len(content) < 1000:
            tag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self.start(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Content-Length": str(len(content))})
            if body:
                self.server.gets[name] += 1
                self.wfile.write(content)
        elif not match[1]:  # large files are elsewhere, their hash and size are told here
            tag, size = hashlib.sha256(content).hexdigest(), 10**15 if fault == "huge" else len(content)
            told = {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(size), "X-Repo-Commit": COMMIT}
            other = f"http://localhost:{self.server.server_address[1]}/cdn{path}"
            self.start(302, told | {"Location": other, "Content-Length": "0"})
        elif body:
            self.send_large(name, content, fault)

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def send_large(self, name: str, content: bytes, fault: str) -> None:
        self.server.gets[name] += 1
        start = 0
        if found := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(found[1])
            self.server.ranges.append(self.headers["Range"])
        if fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.start(206 if start else 200, {"ETag": '"of the cdn"', "Content-Length": str(len(content) - start)} | part)
        half = fault == "breaks" and self.server.gets[name] == 1
        self.wfile.write(content[start : HALF if half else len(content)])
        self.close_connection = True


@pytest.fixture
def hub(wan_home: Path) -> Iterator[Hub]:
    served = Hub()
    text = load_file(wan_home / "text" / "text_encoder" / "model.safetensors")
    torch.save(text, wan_home / "t5.pth")
    recipe = find("self-forcing")
    for file, content in (
        (recipe.generator, wan_home / "self_forcing.pt"),
        (recipe.vaes["taehv"], wan_home / "taew2_1.pth"),
        (recipe.text_encoder, wan_home / "t5.pth"),
    ):
        served.files[f"{file.repo}/{file.path}"] = content.read_bytes()
        for path in file.beside:
            there = wan_home / "text" / "tokenizer" / Path(path).name
            served.files[f"{file.repo}/{path}"] = there.read_bytes() if there.exists() else b"{}"
    Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def run(hub: Hub | None, home: Path, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    port = hub.server_address[1] if hub else 9  # nobody listens on discard
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=kept | own | more, timeout=300)


def fetch(hub: Hub | None, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return run(hub, home, "-c", FETCH, "self-forcing", **more)


CLI = ("-c", "from everframe.runtime.cli import main; main()", "export", "wan", "--recipe")


@pytest.mark.slow
def test_one_line_from_a_name_to_a_bundle(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "film.everframe"
    small = ("--size", "48x32", "--precision", "fp32", "--chunks", "0", "--window", "6")
    dry = run(hub, tmp_path / "hf", *CLI, "self-forcing", "--dry-run", *small)
    assert dry.returncode == 0, dry.stderr
    assert f"{GENERATOR} at c0ffee0000: " in dry.stderr
    assert not sum(hub.gets.values())
    done = run(hub, tmp_path / "hf", *CLI, "self-forcing", "-o", str(out), *small)
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(out).manifest
    assert (manifest.geometry.chunk, manifest.geometry.window, manifest.geometry.sink) == (3, 6, 3)
    assert manifest.prompts == read_prompts(PROMPTS)
    assert manifest.provenance["hub"]["generator"] == f"{GENERATOR}@{COMMIT}"
    digest = hashlib.sha256(hub.files[GENERATOR]).hexdigest()
    assert manifest.provenance["checkpoint"]["self_forcing_dmd.pt"] == digest
    assert "generator_ema is taken" not in done.stderr  # the recipe said it
    assert set(hub.gets.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal-forcing", "causal-forcing++-2step", "causal-forcing++-1step"])
def test_causal_forcing_from_its_name_to_a_stream(hub: Hub, wan_home: Path, tmp_path: Path, name: str) -> None:
    recipe, out = find(name), tmp_path / "film.everframe"
    state = torch.load(wan_home / "self_forcing.pt", weights_only=True)["generator_ema"]
    torch.save({recipe.options["dictionary"]: state}, tmp_path / "generator.pt")
    hub.files[f"{recipe.generator.repo}/{recipe.generator.path}"] = (tmp_path / "generator.pt").read_bytes()
    small = ("--size", "48x32", "--precision", "fp32", "--chunks", "3", "--window", "6")
    done = run(hub, tmp_path / "hf", *CLI, name, "-o", str(out), *small)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(out)
    assert bundle.manifest.geometry.chunk == recipe.options["chunk"]
    with Stream(bundle, seed=1) as stream:  # held against PyTorch's two chunks first
        first, *others = [stream.next_chunk() for _ in range(8)]
    steps, first_steps = recipe.options["steps"], recipe.options.get("first_steps")
    assert len(first.timings.diffuse) == len(first_steps or steps)
    assert {len(chunk.timings.diffuse) for chunk in others} == {len(steps)}
    assert all(chunk.latent.std() > 0.1 for chunk in others)


def test_again_without_a_network(hub: Hub, tmp_path: Path) -> None:
    first = fetch(hub, tmp_path)
    assert first.returncode == 0, first.stdout
    path = first.stdout.splitlines()[-1]
    assert Path(path).read_bytes() == hub.files[GENERATOR]
    for other in (fetch(hub, tmp_path), fetch(None, tmp_path), fetch(None, tmp_path, HF_HUB_OFFLINE="1")):
        assert other.returncode == 0, other.stdout
        assert other.stdout.splitlines()[-1] == path
        assert "to fetch: 0.0 MB" in other.stdout
    assert hub.gets[GENERATOR] == 1


def test_a_connection_that_breaks_half_way_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.faults[GENERATOR] = "breaks"
    done = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(done.stdout.splitlines()[-1]).read_bytes() == hub.files[GENERATOR]
    assert hub.gets[GENERATOR] == 2
    assert len(hub.ranges) == 1
    assert int(hub.ranges[0].removeprefix("bytes=").removesuffix("-")) > HALF // 2


def test_a_file_that_is_not_what_its_hash_says(hub: Hub, tmp_path: Path) -> None:
    hub.faults[GENERATOR] = "corrupt"
    done = fetch(hub, tmp_path)
    assert done.returncode == 2
    assert re.search(r"UserError .*self_forcing_dmd\.pt: has the hash .*…, expected .*…; it was removed", done.stdout)
    del hub.faults[GENERATOR]
    again = fetch(hub, tmp_path)
    assert again.returncode == 0, again.stdout
    assert Path(again.stdout.splitlines()[-1]).read_bytes() == hub.files[GENERATOR]


def test_a_cached_file_is_held_against_the_tables_hash(hub: Hub, tmp_path: Path) -> None:
    """Also where the hub is not asked: the file may have rotted since, or somebody else's be in its place."""
    digest = hashlib.sha256(hub.files[GENERATOR]).hexdigest()
    pinned = FETCH.replace("r.generator}", f"__import__('dataclasses').replace(r.generator, sha256='{digest}')}}")
    assert pinned != FETCH
    first = run(hub, tmp_path, "-c", pinned, "self-forcing")
    assert first.returncode == 0, first.stdout + first.stderr
    path = Path(first.stdout.splitlines()[-1])
    content = path.read_bytes()
    for again, offline in ((hub, {}), (None, {"HF_HUB_OFFLINE": "1"})):
        path.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert fetch(again, tmp_path, **offline).returncode == 0  # without a pinned hash nobody can tell
        done = run(again, tmp_path, "-c", pinned, "self-forcing", **offline)
        assert done.returncode == 2
        assert re.search(
            r"UserError .*self_forcing_dmd\.pt: has the hash .*…, expected .*…; it was removed", done.stdout
        )
        assert not path.exists()
        assert run(hub, tmp_path, "-c", pinned, "self-forcing").returncode == 0
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("401", "says 401: gated, private or not there.*log in"),
        ("403", "says 403: gated, private or not there.*log in"),
        ("404", "not at http.* in revision main"),
        ("500", "says 500"),
        ("huge", r"1000000\.0 GB to fetch, .* GB free.*HF_HOME"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, tmp_path: Path, fault: str, words: str) -> None:
    hub.faults[GENERATOR] = fault
    done = fetch(hub, tmp_path, HF_TOKEN="hf_secret")
    assert done.returncode == 2
    assert re.search(f"UserError .*{words}", done.stdout), done.stdout
    assert "hf_secret" not in done.stdout + done.stderr
    assert not hub.gets[GENERATOR]


def test_no_network(tmp_path: Path) -> None:
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = fetch(None, tmp_path, **more)
        assert done.returncode == 2
        assert re.search(r"UserError .*self_forcing_dmd\.pt: cannot be fetched from http://127", done.stdout), (
            done.stdout
        )


def test_what_lies_in_the_cache_needs_no_space(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another commit of the same files, as where somebody mended a README: they are linked, not fetched."""
    assert fetch(hub, tmp_path).returncode == 0
    before = sum(hub.gets.values())
    monkeypatch.setattr("test_hub.COMMIT", "d" * 40)
    code = FETCH.replace("r = recipes", "hub.SPARE = 10**15; r = recipes")
    done = run(hub, tmp_path, "-c", code, "self-forcing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to fetch: 0.0 MB" in done.stdout
    assert sum(hub.gets.values()) == before


@pytest.mark.skipif(os.name == "nt" or not shutil.which("mount"), reason="needs a file system of its own")
def test_a_disk_that_gets_full(hub: Hub, tmp_path: Path) -> None:
    """The space is asked for before, but somebody else may take it meanwhile."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        asked = fetch(hub, small)
        code = FETCH.replace("r = recipes", "hub.SPARE = 0; hub._check_space = lambda n: None; r = recipes")
        done = run(hub, small, "-c", code, "self-forcing")
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert asked.returncode == done.returncode == 2
    assert "GB free" in asked.stdout
    assert re.search(r"UserError .*No space left on device", done.stdout), done.stdout + done.stderr


def test_the_table() -> None:
    recipes = load()
    wanted = (
        "self-forcing self-forcing-deep-sink longlive longlive-2-5b longlive-2-5b-2step causal-forcing "
        "causal-forcing++-2step causal-forcing++-1step reward-forcing wan2.1-1.3b"
    )
    assert set(recipes) == set(wanted.split())
    dictionaries = {name: recipe.options.get("dictionary") for name, recipe in recipes.items()}
    assert dictionaries["causal-forcing"] == dictionaries["longlive"] == "generator"  # the facts of their authors
    assert dictionaries["causal-forcing++-2step"] == dictionaries["causal-forcing++-1step"] == "generator_ema"
    assert dictionaries["reward-forcing"] is None
    assert dictionaries["longlive-2-5b"] == dictionaries["longlive-2-5b-2step"] == ("generator", "model", "flat")
    assert recipes["longlive"].lora_alpha == 256
    for recipe in recipes.values():
        used = recipe.files("taehv", set())
        assert {"generator", "vae", "text_encoder"} <= set(used)
        own = "2.2" if recipe.name.startswith("longlive-2") else "2.1"
        assert recipe.files("wan", {"generator"})["vae"].path == f"Wan{own}_VAE.pth"
        for file in used.values():
            assert file.revision == "main" or re.fullmatch("[0-9a-f]{40}", file.revision)
        assert recipe.options["window"] % recipe.options["chunk"] == 0
    with pytest.raises(UserError, match="expected one of taehv, wan"):
        recipes["longlive"].files("x", set())
    with pytest.raises(UserError, match=r"--recipe 'x': expected one of self-forcing, longlive"):
        find("x")
    assert (
        recipes["self-forcing"].left(set())["jitter"] == 0
    )  # its sinks follow; where they stay, jitter is the default's
    assert "jitter" not in recipes["self-forcing"].left({"rope"})
    own = overruling(
        recipes["self-forcing"], {"rope": "relative", "shift": 5.0, "window": 9}, {"rope", "shift", "window"}
    )
    assert own == {"window"}  # what the recipe says itself is no other way, and takes nothing of it away
    told: list[str] = []
    tell_recipe(recipes["self-forcing"], {"rope"}, Report(told.append))
    assert any("without the recipe's jitter" in line for line in told)
    with pytest.raises(UserError, match="reward-forcing: needs sink_ema"):
        check_options(find("reward-forcing"), set(find("longlive").options) | {"jitter"})


def test_data_of_the_package_is_installed() -> None:
    root = Path(__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert {"recipes.toml", "prompts.txt"} <= set(data["everframe.export"])


def test_the_list(tmp_path: Path) -> None:
    done = run(None, tmp_path, "-c", "from everframe.runtime.cli import main; main()", "recipes", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["recipe"] for row in rows] == list(load())
    assert all(float(row["card, fp16"].split()[0]) > 5 for row in rows)
