"""A backend by its name; the modules of the others are never imported."""

from __future__ import annotations

from .base import Backend, EngineOptions


def open_backend(name: str, options: EngineOptions) -> Backend:
    """onnxruntime, openvino, tensorrt-rtx or tensorrt. Raises UserError, also when it cannot work on this machine."""
    if name == "onnxruntime":
        from .ort import OrtBackend

        return OrtBackend(options)
    if name == "openvino":
        from .openvino import OvBackend

        return OvBackend(options)
    from .tensorrt import TrtBackend

    return TrtBackend(name)
