from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Site, serve


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    with serve(tmp_path_factory.mktemp("site"), bundle_path) as running:
        yield running
