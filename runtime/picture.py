"""Pictures in: a file to the frame's size, and a picture or clip to the latents of the sinks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..engines.base import Backend
from ..engines.bundle import Bundle
from ..engines.errors import UserError
from ..engines.files import reason


def read_picture(file: Path, width: int, height: int) -> NDArray[np.uint8]:
    """A picture file as RGB [height, width, 3], filling the frame, its middle kept. Raises UserError."""
    try:
        with Image.open(file) as picture:
            return np.asarray(ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.LANCZOS))
    except UnidentifiedImageError:
        raise UserError(f"{file}: not a picture that can be read") from None
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None


def encode_anchor(backend: Backend, bundle: Bundle, frames: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """A picture or clip -> latent chunks [1, C, F, h, w] for the sinks. Raises UserError."""
    if "encode" not in bundle.manifest.graphs:
        raise UserError(f"{bundle.path}: has no encoder for an anchor; export it with --encoder")
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
