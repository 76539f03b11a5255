"""Compiled models of OpenVINO, kept for the next start in the bundle's `engines/`, or in the user's cache folder where the
bundle cannot be written. A name tells what decided the content; what is damaged or of another version is made anew."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .errors import UserError
from .files import cache_place, record_key, write_whole
from .store import FOLDER

READER = 3  # raised when openvino.read_graph makes another model of the same graph
DIGEST = hashlib.sha256().digest_size

log = logging.getLogger(__name__)
Settings = dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """One graph of a bundle as one device compiles it."""

    bundle: Bundle
    name: str
    version: str  # of OpenVINO
    device: str  # CPU, GPU or NPU, and its full name
    settings: Settings

    def get(self, read: Callable[[], Any], masked: bool) -> Any:
        """The kept model, or the one that `read` gives, compiled and kept. Raises RuntimeError as OpenVINO does."""
        import openvino

        core, device = openvino.Core(), self.device.split()[0]
        file = self.file(masked)
        kept = read_blob(file)
        if kept is not None:
            with contextlib.suppress(RuntimeError):  # another build of the same version: compiled anew
                return core.import_model(io.BytesIO(kept), device, self.settings)
        compiled = core.compile_model(read(), device, self.settings)
        try:
            blob = compiled.export_model().getvalue()
        except RuntimeError:  # a device that cannot export
            return compiled
        keep_blob(file, blob)
        # What later starts will run is what runs now, and so what is proven: one comes back from its bytes changed. Two
        # compilations of a large model beside its bytes would be several times its size.
        del compiled
        try:
            return core.import_model(io.BytesIO(blob), device, self.settings)
        except RuntimeError:
            file.unlink(missing_ok=True)
            return core.compile_model(read(), device, self.settings)

    def file(self, masked: bool) -> Path:
        """openvino-NAME-SETTINGS-VERSION.blob: of one graph and setting only the newest version is kept."""
        what = [self.bundle.manifest.graphs[self.name].digest, self.device, self.settings, masked]
        parts = (record_key(what)[:16], record_key([self.version, READER])[:16])
        return cache_place(self.bundle.path / FOLDER) / f"openvino-{self.name}-{parts[0]}-{parts[1]}.blob"


def read_blob(file: Path) -> bytes | None:
    """The kept bytes, or None where there are none, or not those that were written."""
    try:
        whole = file.read_bytes()
    except OSError:
        return None
    blob, digest = whole[:-DIGEST], whole[-DIGEST:]
    if hashlib.sha256(blob).digest() != digest:
        log.warning("%s: damaged, made anew", file)
        return None
    return blob


def keep_blob(file: Path, blob: bytes) -> None:
    """Keep it in place of other versions of itself. What cannot be kept is made again at the next start."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(file.parent).free < 2 * len(blob):
            log.info("%s: too little space to keep %d MiB for the next start", file.parent, len(blob) >> 20)
            return
        write_whole(file, [blob, hashlib.sha256(blob).digest()])
        for other in file.parent.glob(f"{file.stem.rpartition('-')[0]}-*.blob"):
            if other != file:
                other.unlink(missing_ok=True)
    except (OSError, UserError) as error:
        log.info("not kept for the next start: %s", error)
