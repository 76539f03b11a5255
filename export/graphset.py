"""All modules that a bundle's graphs are exported from, and that these are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .graphs import PromptGraph, StepGraph
from .recachegraph import RecacheGraph
from .sinkgraph import SinkGraph


@dataclass(frozen=True)
class GraphSet:
    steps: dict[str, StepGraph]  # "step", and "probe" where it is asked for
    prompt: PromptGraph
    decoders: dict[str, nn.Module]
    encoder: nn.Module | None = None
    recache: RecacheGraph | None = None
    sinks: SinkGraph | None = None
