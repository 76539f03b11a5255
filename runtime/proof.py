"""No engine streams before it has shown here that it computes what its bundle means.

Compilers and drivers make wrong engines without an error: attention in bfloat16 that ignores its mask, a convolution that is
off on one card. So the first time a backend meets a bundle on a machine, it makes the two chunks of the bundle's reference
and is held against them; what it showed is kept beside the compiled models, for the same files, engines, versions,
device and precision only.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from ..engines.base import Backend, Computing
from ..engines.bundle import Bundle
from ..engines.errors import UserError
from ..engines.files import cache_place, keep_record, kept_records, record_key
from ..engines.store import FOLDER
from .passes import Passes
from .prompts import PromptBank
from .reference import Deviation, Reference, deviation, no_reference, observe

FILE = "verified.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bound:
    """The largest deviation that arithmetic of one precision explains."""

    latents: float  # root mean square error of x0, in the reference's own root mean square
    frames: float  # root mean square error of frames, grey levels


# Several times what was measured of right engines (docs/openvino.md), and far below any fault that a viewer would see.
# FP16 rounds eight times finer than bfloat16: right engines were off by under 0.0034 (tests/gpu/test_thresholds.py), and
# ones that ignore the ring's length by as little as 0.076, where the first chunks need it least.
BOUNDS = {"float": Bound(0.005, 0.3), "fp16": Bound(0.03, 3.2), "half": Bound(0.1, 3.2), "int8": Bound(0.35, 8.0)}


@dataclass(frozen=True)
class Proof:
    """What a backend showed."""

    computing: Computing
    deviation: Deviation
    bound: Bound

    @property
    def holds(self) -> bool:
        d, b = self.deviation, self.bound
        return d.latents <= b.latents and d.frames <= b.frames  # false too for what is not finite

    def __str__(self) -> str:
        d, b = self.deviation, self.bound
        return (
            f"{self.computing}: latents off by {d.latents:.2g} (at most {b.latents:g}), "
            f"frames by {d.frames:.2g} grey levels (at most {b.frames:g})"
        )


def kind_of(bundle: Bundle, computing: Computing) -> str:
    """Which bound holds: that of the coarsest arithmetic in the chain."""
    manifest = bundle.manifest
    if manifest.calibration is not None:
        return "int8"
    kept = {spec.dtype for spec in manifest.graphs["step"].inputs if spec.name.startswith(("k_", "v_"))}
    if "int8" in kept:
        return "int8"
    if "bfloat16" in kept or computing.precision not in ("f32", "f16"):
        return "half"
    fine = "float16" not in kept and manifest.provenance.get("precision") != "fp16" and computing.precision == "f32"
    return "float" if fine else "fp16"


def prove(loop: Passes, bundle: Bundle, bank: PromptBank, computing: Computing) -> Proof:
    """Hold the engines of `loop`, whose stream has not begun, against the reference of a bundle that has one."""
    reference = Reference.read(bundle)
    found = observe(loop, bundle, bank, reference)
    return Proof(computing, deviation(found, reference), BOUNDS[kind_of(bundle, computing)])


def proven(bundle: Bundle, backend: Backend) -> bool:
    """Whether it is on record here that the backend computes what the bundle means, or nothing could show it."""
    return no_reference(bundle) is not None or _key(bundle, backend.computes(bundle)) in kept_records(_place(bundle))


def require(loop: Passes, bundle: Bundle, bank: PromptBank, backend: Backend) -> None:
    """Prove them, unless that is on record here. Raises UserError for engines that compute something else."""
    if (why := no_reference(bundle)) is not None:
        log.info("%s: has no reference%s: its engines are not verified", bundle.path, why)
        return
    if proven(bundle, backend):
        return
    computing = backend.computes(bundle)
    proof = prove(loop, bundle, bank, computing)
    if not proof.holds:
        raise UserError(
            f"{bundle.path}: these engines do not compute what the bundle means: {proof}; take another --precision or "
            "--backend; generate, play and bench stream all the same with --unverified"
        )
    log.info("verified: %s", proof)
    keep_record(
        _place(bundle),
        _key(bundle, computing),
        {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **asdict(proof)},
    )


def _place(bundle: Bundle) -> Path:
    return cache_place(bundle.path / FOLDER) / FILE


def _key(bundle: Bundle, computing: Computing) -> str:
    graphs = {name: graph.digest for name, graph in sorted(bundle.manifest.graphs.items())}
    reference = bundle.manifest.reference
    what = [graphs, reference and reference.sha256, asdict(computing), bundle.manifest.form, version("everframe")]
    return record_key(what)
