"""The pictures of prompts that no stream has shown yet: `everframe serve --pictures`, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from ....engines.base import EngineOptions
from ....engines.machine import choose_gpu
from ...choice import open_engines
from ...demo import open_bundle
from ...stream import Stream
from ..config import Config
from .thumbs import Thumbs

CHUNKS = 2  # of a scene, of whose last one the picture is


def make_missing(config: Config, tell: Callable[[str], None]) -> None:
    """A picture of every prompt that has none, by the configured engines, without an anchor. Raises
    UserError."""
    settings = config.stream
    bundle = open_bundle(settings.bundle).with_post(settings.post)
    thumbs = Thumbs(config.state_dir / "pictures", bundle)
    missing = [prompt for prompt in bundle.manifest.prompts if prompt not in thumbs.there()]
    if not missing:
        return tell("every prompt has a picture")
    options = EngineOptions(settings.provider, settings.threads, settings.device, settings.precision)
    choose_gpu(settings.gpu)
    backend = open_engines(bundle, settings.backend, options, tell, settings.verify)
    with Stream(
        bundle,
        prompt=missing[0],
        seed=settings.seed,
        jitter_sigma=settings.jitter,
        rope_mode=settings.rope,
        sink_distance=settings.sink_distance,
        overlap=False,
        verify=settings.verify,
        backend=backend,
    ) as stream:
        for prompt in missing:
            stream.set_prompt(prompt, "cut")
            for _ in range(1, CHUNKS):
                stream.next_chunk()
            thumbs.keep(prompt, stream.next_chunk().frames)
            tell(f"{thumbs.file(prompt)}: {prompt}")
