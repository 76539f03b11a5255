"""The API against its own OpenAPI description, by Schemathesis: no answer that the schema does not know, no crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving import TOKEN, Site

# Schemathesis has no way of its own to write a body of this type, and calls that an error when it happens to draw one.
HOOKS = """
import schemathesis

@schemathesis.serializer("application/sdp")
def sdp(context, value):
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")
"""


@pytest.mark.slow
def test_the_api_is_what_its_schema_says(site: Site, tmp_path: Path) -> None:
    (tmp_path / "sdp_hooks.py").write_text(HOOKS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{site.url}/api/openapi.json"),
            *("--header", f"Authorization: Bearer {TOKEN}", "--max-examples", "8", "--seed", "1"),
            *("--exclude-path", "/video.mjpeg"),  # it never ends
            *(
                "--checks",
                "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            ),
            "--no-color",
        ],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "sdp_hooks", "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert site.ask("/readyz")[0] == 200
    assert "Traceback" not in site.log.read_text()
