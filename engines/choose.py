"""A backend by its name; the modules of the others are never imported."""

from __future__ import annotations

from .base import Backend, EngineOptions
from .errors import UserError

BACKENDS = ("onnxruntime", "openvino", "tensorrt-rtx", "tensorrt")
DEFAULT = EngineOptions()


def open_backend(name: str, options: EngineOptions) -> Backend:
    """One of BACKENDS. Raises UserError for another, for options that are another's, and when it cannot work here."""
    if name not in BACKENDS:
        raise UserError(f"--backend {name!r}: expected one of {', '.join(BACKENDS)}, or auto")
    if name != "openvino" and (options.device, options.precision) != (DEFAULT.device, DEFAULT.precision):
        raise UserError(f"--device and --precision are of --backend openvino, not of {name}")
    if name in ("tensorrt", "tensorrt-rtx") and options.threads != DEFAULT.threads:
        raise UserError(f"--threads is of backends on a CPU, not of {name}")
    if name != "onnxruntime" and options.provider != DEFAULT.provider:
        raise UserError(f"--provider is of --backend onnxruntime, not of {name}")
    if name == "onnxruntime":
        from .ort import OrtBackend

        return OrtBackend(options)
    if name == "openvino":
        from .openvino import OvBackend

        return OvBackend(options)
    from .tensorrt import TrtBackend

    return TrtBackend(name)
