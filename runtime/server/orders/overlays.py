"""The overlay that is shown: the configuration's, until another one is ordered, which is kept on disk."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ....engines.bundle import first_problem
from ....engines.errors import UserError
from ....engines.files import reason, write_whole
from ...overlay.draw import picture_of
from ...overlay.layer import Layer, read_logo
from ...overlay.parts import Logo, Message, Overlay
from .control import Control
from .timetable import zone_of

log = logging.getLogger(__name__)


class Kept(BaseModel):
    """overlay.json. A changed configuration begins anew."""

    model_config = ConfigDict(extra="forbid")

    config: str = ""  # digest of the overlay that this started from
    overlay: Overlay
    before: Overlay | None = None  # what a message covers, and what comes back when it goes


class Overlays:
    """Any thread. `layer` is replaced as a whole, and `version` counts these. Raises UserError for what cannot be drawn."""

    def __init__(self, configured: Overlay, folder: Path, control: Control):
        self._configured, self._control = configured, control
        self._file, self._uploaded = folder / "overlay.json", folder / "logo"
        self._lock = threading.Lock()
        self.version = 0
        self.layer = self._layer(configured)  # an error of the configuration ends the start
        self.kept = self._load()
        if self.kept.overlay != configured or self._uploaded.is_file():
            try:
                self.layer = self._layer(self.kept.overlay)
            except UserError as error:
                log.warning("%s: not usable, starting from the configuration: %s", self._file, error)
                self.kept = self._fresh()

    def shown(self) -> Overlay:
        """Without names of files, which are nobody's business."""
        overlay = self.kept.overlay
        return overlay.model_copy(
            update={"font": None, "logo": overlay.logo and overlay.logo.model_copy(update={"file": None})}
        )

    def put(self, overlay: Overlay | None) -> None:
        """Another overlay; None: the configuration's again. Raises UserError, and what was shown stays."""
        if overlay is not None and (
            overlay.font is not None or (overlay.logo is not None and overlay.logo.file is not None)
        ):
            raise UserError(
                "logo.file and font: expected in the configuration only; a logo is uploaded to /api/overlay/logo"
            )
        with self._lock:
            self._show(
                self._configured if overlay is None else overlay.model_copy(update={"font": self._configured.font})
            )

    def tell(self, message: Message | None) -> None:
        """Cover everything with a message; None: show again what was there before it."""
        with self._lock:
            kept = self.kept
            if message is not None:
                before = kept.before or (
                    kept.overlay.model_copy(update={"message": None}) if kept.overlay.message else kept.overlay
                )
                self._show(kept.overlay.model_copy(update={"message": message}), before)
            elif kept.overlay.message is not None:
                self._show(kept.before or kept.overlay.model_copy(update={"message": None}))

    def put_logo(self, content: bytes) -> None:
        """Keep a logo, and show it. Raises UserError for what is no picture."""
        picture_of(content, 64)
        with self._lock:
            write_whole(self._uploaded, content)
            overlay = self.kept.overlay
            self._show(overlay.model_copy(update={"logo": overlay.logo or Logo()}), self.kept.before)

    def _show(self, overlay: Overlay, before: Overlay | None = None) -> None:
        self.layer = self._layer(overlay)
        self.kept = Kept(config=self.kept.config, overlay=overlay, before=before)
        self.version += 1
        try:
            write_whole(self._file, self.kept.model_dump_json(indent=1).encode() + b"\n")
        except UserError as error:  # a full disk must not refuse an order
            log.warning("the overlay is not kept: %s", error)

    def _layer(self, overlay: Overlay) -> Layer:
        logo = None
        if overlay.logo is not None:
            if self._uploaded.is_file():
                logo = read_logo(self._uploaded)
            elif self._configured.logo is not None and self._configured.logo.file is not None:
                logo = read_logo(self._configured.logo.file)
        return Layer(overlay, lambda: zone_of(self._control.kept.timetable.timezone), logo)

    def _fresh(self) -> Kept:
        digest = hashlib.sha256(self._configured.model_dump_json().encode()).hexdigest()[:16]
        return Kept(config=digest, overlay=self._configured)

    def _load(self) -> Kept:
        fresh = self._fresh()
        try:
            kept = Kept.model_validate_json(self._file.read_bytes())
            return kept if kept.config == fresh.config else fresh
        except FileNotFoundError:
            return fresh
        except ValidationError as error:
            log.warning("%s: not usable, starting from the configuration: %s", self._file, first_problem(error))
        except OSError as error:
            log.warning("%s: not usable, starting from the configuration: %s", self._file, reason(error))
        return fresh
