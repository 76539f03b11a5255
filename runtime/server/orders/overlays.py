"""The overlay that is shown: the configuration's, until another one is ordered, which is kept on disk."""

from __future__ import annotations

import logging
import secrets
import threading
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ....engines.errors import UserError
from ....engines.files import write_whole
from ...overlay.layer import Layer, read_logo
from ...overlay.parts import Logo, Message, Overlay
from .control import Control
from .kept import digest, read_kept, write_kept
from .timetable import zone_of

log = logging.getLogger(__name__)


class Kept(BaseModel):
    """overlay.json. A changed configuration begins anew, but for a message."""

    model_config = ConfigDict(extra="forbid")

    config: str = ""  # digest of the overlay that this started from
    overlay: Overlay  # without a message
    message: Message | None = None  # what covers it
    ordered: bool = False  # it was, and is not the configuration's
    uploaded: bool = False  # the logo is the one that was uploaded


class Overlays:
    """Any thread. `layer` is replaced as a whole, and `version` names it: other lives of the server have other names, for
    pages stay while it starts anew. Raises UserError for what cannot be drawn.

    size: the stream's pictures, width and height.
    """

    def __init__(self, configured: Overlay, folder: Path, control: Control, size: tuple[int, int]):
        self._configured, self._control, self._size = configured, control, size
        self._file, self._logo = folder / "overlay.json", folder / "logo"
        self._lock = threading.Lock()
        self._life, self._shown = secrets.token_hex(4), 0
        self._uploaded: bytes | None = None  # the logo of this life, which the disk may not have taken
        self.kept = self._fresh()
        self.layer = self._layer(self.kept)  # an error of the configuration ends the start
        kept = read_kept(self._file, Kept)
        if kept is None:
            return
        # Nothing but an order takes a message away: neither another configuration nor a file that has gone.
        if kept.config != self.kept.config:
            kept = self._with_ordered(kept)
        try:
            self.layer, self.kept = self._layer(kept), kept
        except UserError as error:
            log.warning("%s: not usable, starting from the configuration: %s", self._file, error)
            kept = self._with_ordered(kept)
            self.layer, self.kept = self._layer(kept, self.layer.logo), kept

    def _with_ordered(self, kept: Kept) -> Kept:
        """The configuration's overlay with the message that was ordered, if one was."""
        return self.kept.model_copy(update={"message": kept.message, "ordered": True}) if kept.ordered else self.kept

    @property
    def version(self) -> str:
        return f"{self._life}-{self._shown}"

    def shown(self) -> Overlay:
        """Without names of files, which are nobody's business."""
        overlay = self.kept.overlay
        logo = overlay.logo and overlay.logo.model_copy(update={"file": None})
        return overlay.model_copy(update={"font": None, "logo": logo, "message": self.kept.message})

    def put(self, overlay: Overlay | None) -> None:
        """Another overlay; None: the configuration's again. A message stays above it. Raises UserError, and what was shown
        stays."""
        with self._lock:
            if overlay is None:
                fresh = self._fresh().model_copy(update={"message": self.kept.message, "ordered": self.kept.ordered})
                self._show(fresh, self._checked(fresh))
                return
            if overlay.font is not None or (overlay.logo is not None and overlay.logo.file is not None):
                raise UserError(
                    "logo.file and font: expected in the configuration only; a logo is uploaded to /api/overlay/logo"
                )
            if overlay.message is not None:
                raise UserError("message: expected at /api/overlay/message, which alone takes it away again")
            font = {"font": self._configured.font}
            kept = self.kept.model_copy(update={"overlay": overlay.model_copy(update=font)})
            self._show(kept, self._checked(kept))

    def tell(self, message: Message | None) -> None:
        """Cover everything with a message; None: show again what was there before it."""
        with self._lock:
            kept = self.kept.model_copy(update={"message": message, "ordered": message is not None})
            # With the logo as it was read: a message must not wait for a file that has gone since, nor its end.
            self._show(kept, self._layer(kept, self.layer.logo))

    def put_logo(self, content: bytes) -> None:
        """Keep a logo, and show it. Raises UserError for what is no picture."""
        with self._lock:
            overlay = self.kept.overlay
            changes = {"overlay": overlay.model_copy(update={"logo": overlay.logo or Logo()}), "uploaded": True}
            kept = self.kept.model_copy(update=changes)
            layer = self._checked(kept, content)
            self._uploaded = content
            try:
                write_whole(self._logo, content)
            except UserError as error:  # a full disk must not refuse an order
                log.warning("the logo is not kept: %s", error)
            self._show(kept, layer)

    def _checked(self, kept: Kept, logo: bytes | None = None) -> Layer:
        """What a message covers can be drawn too, or the message could not be taken away again."""
        uncovered = self._layer(kept.model_copy(update={"message": None}), logo)
        return uncovered if kept.message is None else self._layer(kept, uncovered.logo)

    def _show(self, kept: Kept, layer: Layer) -> None:
        self.layer = layer
        self.kept = kept
        self._shown += 1
        try:
            write_kept(self._file, self.kept)
            if not kept.uploaded:
                self._uploaded = None
                self._logo.unlink(missing_ok=True)
        except (OSError, UserError) as error:  # a full disk must not refuse an order
            log.warning("the overlay is not kept: %s", error)

    def _layer(self, kept: Kept, logo: bytes | None = None) -> Layer:
        overlay = kept.overlay.model_copy(update={"message": kept.message})
        if logo is None and overlay.logo is not None:
            configured = self._configured.logo and self._configured.logo.file
            if kept.uploaded:
                logo = self._uploaded or read_logo(self._logo)
            elif configured is not None:
                logo = read_logo(configured)
        return Layer(overlay, lambda: zone_of(self._control.kept.timetable.timezone), logo, self._size)

    def _fresh(self) -> Kept:
        overlay = self._configured.model_copy(update={"message": None})
        config = digest(self._configured.model_dump_json())
        return Kept(config=config, overlay=overlay, message=self._configured.message)
