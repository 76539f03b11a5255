"""The exported modules as a backend that runs them in PyTorch, in float32: what a bundle's reference is made with.

Slow, and right by definition: the runtime's own passes run over it as over any other engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..engines.base import Buffer, Computing, check_bindings
from ..engines.bundle import Bundle, Graph
from ..engines.host import HostBuffer, HostDevice
from ..runtime.passes import Passes
from ..runtime.prompts import PromptBank
from ..runtime.reference import FILE, observe
from .graphs import PromptGraph, StepGraph

Forward = Callable[[dict[str, Tensor]], Sequence[Tensor]]  # inputs by name -> outputs in the graph's order


@dataclass(frozen=True)
class EagerEngine:
    graph: Graph
    device: HostDevice
    forward: Forward

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        check_bindings(self.graph, inputs, outputs, Path(self.graph.model.file))
        given = {name: _tensor(buffer) for name, buffer in inputs.items()}
        made = [_tensor(outputs[spec.name]) for spec in self.graph.outputs]

        def run() -> None:
            with torch.no_grad():
                for target, values in zip(made, self.forward(given), strict=True):
                    if target.data_ptr() != values.data_ptr():
                        target.copy_(values)

        return run


class EagerBackend:
    """step, prompt, and the decoders by graph name; their weights float32."""

    def __init__(self, step: StepGraph, prompt: PromptGraph, decoders: Mapping[str, nn.Module]):
        self.device = HostDevice(1)
        self._forward: dict[str, Forward] = {
            "step": lambda given: step_forward(step, given),
            "prompt": lambda given: prompt(given["text"]),
            **{name: _decoding(module) for name, module in decoders.items()},
        }

    def computes(self, bundle: Bundle) -> Computing:
        return Computing(f"torch {torch.__version__}", "CPU", "f32")

    def load(self, bundle: Bundle, name: str, beside: bool = False) -> EagerEngine:
        return EagerEngine(single(bundle.manifest.graphs[name]), self.device, self._forward[name])


def step_forward(step: StepGraph, given: dict[str, Tensor]) -> Sequence[Tensor]:
    """A pass of the step module on the graph's inputs by name."""
    layers = range(len(step.model.blocks))
    place = [given[name] for name in ("mask", "slot", "kv_len", "sink_cos", "sink_sin") if name in given]
    lists = ([given[f"{s}_{i}"] for i in layers] for s in ("k", "v", "prompt_k", "prompt_v"))
    read = [given[n] for n in step.sampler.reads]
    return step(given["latent"], given["step"], read, given["rope_cos"], given["rope_sin"], place, *lists)


def _decoding(module: nn.Module) -> Forward:
    def forward(given: dict[str, Tensor]) -> Sequence[Tensor]:
        states = module.zero_states(given["latent"])  # type: ignore[operator] - the graph of a first chunk reads not all
        for i in range(len(states)):
            states[i] = given.get(f"state_{i}", states[i])
        return module(given["latent"], *states)

    return forward


def single(graph: Graph) -> Graph:
    """The graph with float32 wherever it has half precision."""

    def change(specs):
        return [s.model_copy(update={"dtype": "float32"}) if s.dtype in ("float16", "bfloat16") else s for s in specs]

    return graph.model_copy(update={"inputs": change(graph.inputs), "outputs": change(graph.outputs)})


def write_reference(bundle: Bundle, step: StepGraph, prompt: PromptGraph, decoders: Mapping[str, nn.Module]) -> Path:
    """Make the bundle's reference and write it into its folder. The modules are float32 afterwards."""
    modules = (step.float(), prompt.float(), {name: module.float() for name, module in decoders.items()})
    needed = {name: graph for name, graph in bundle.manifest.graphs.items() if name in ("step", "prompt", *decoders)}
    alone = Bundle(bundle.path, bundle.manifest.model_copy(update={"graphs": needed, "recache": "chunks"}))
    loop = Passes(EagerBackend(*modules), alone, "step", lanes=1)
    file = bundle.path / FILE
    observe(loop, alone, PromptBank(alone)).write(file)
    return file


def _tensor(buffer: Buffer) -> Tensor:
    assert isinstance(buffer, HostBuffer)
    return torch.from_numpy(buffer.array)
