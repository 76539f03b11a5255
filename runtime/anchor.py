"""Sinks from a picture: a picture or clip to the latents that a stream starts with and stays anchored to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Backend
from ..engines.bundle import Bundle
from ..engines.errors import UserError


def require_encoder(bundle: Bundle) -> None:
    """Raises UserError."""
    if "encode" not in bundle.manifest.graphs:
        raise UserError(f"{bundle.path}: has no encoder for an anchor; export it with --encoder")


def encode_anchor(backend: Backend, bundle: Bundle, frames: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """A picture or clip -> latent chunks [1, C, F, h, w] for the sinks. Raises UserError."""
    require_encoder(bundle)
    engine = backend.load(bundle, "encode")
    spec, out = engine.graph.inputs[0], engine.graph.outputs[0]
    clip = frames[None] if frames.ndim == 3 else frames
    if clip.ndim != 4 or not len(clip) or list(clip.shape[1:]) != spec.shape[1:] or clip.dtype != np.uint8:
        raise UserError(
            f"anchor: found {frames.dtype} {list(frames.shape)}, expected uint8 {spec.shape[1:]} or a clip of such frames"
        )
    length = spec.shape[0]
    clip = np.concatenate([clip[:length], *[clip[-1:]] * max(0, length - len(clip))])
    buffers = {s.name: engine.device.zeros(s.shape, s.dtype) for s in (spec, out)}
    buffers[spec.name].write(clip)
    engine.bind({spec.name: buffers[spec.name]}, {out.name: buffers[out.name]})()
    latents, chunk = buffers[out.name].read(), bundle.manifest.geometry.chunk
    return [latents[:, :, i : i + chunk] for i in range(0, latents.shape[2], chunk)]
