"""The API against its own OpenAPI description, by Schemathesis: no answer that the schema does not know, no crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving import TOKEN, Site


@pytest.mark.slow
def test_the_api_is_what_its_schema_says(site: Site, tmp_path: Path) -> None:
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
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert site.ask("/readyz")[0] == 200
    assert "Traceback" not in site.log.read_text()
