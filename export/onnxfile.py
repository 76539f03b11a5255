"""From a PyTorch module to a checked ONNX file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ..engines.bundle import Graph, describe
from ..engines.graphfile import EMBED_UP_TO, describe_graph
from .graphs import OPSET
from .weightfile import WeightFile

STORE_FROM = 1024  # elements; smaller constants stay as they are


def save_graph(
    module: nn.Module,
    args: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    file: Path,
    opset: int = OPSET,
    weights: WeightFile | None = None,
    large: bool | None = None,
) -> Graph:
    """Export module with static shapes, check it with onnx.checker, write it, and describe it for the manifest. Inputs that
    nothing reads are left out of the graph. weights: where the constants of a large graph go, which is described when all
    graphs are written (`with_weights`); default: a file of its own, FILE.data. large: whether it is one; default: by its
    constants."""
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it reports that torchvision is missing, which we don't use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of its own deprecated functions
        program = torch.onnx.export(
            module.eval(),
            args,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    if large is None:
        large = sum(value.const_value.nbytes for value in program.model.graph.initializers.values()) > EMBED_UP_TO  # type: ignore[union-attr]
    own = WeightFile(file.with_name(f"{file.name}.data"))
    if large:
        (weights or own).take(program.model.graph, file)
        model = ir.to_proto(program.model)
    else:
        model = program.model_proto
        store_small(model)
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    drop_unread(model)
    onnx.save(model, file)
    return describe_graph(file, [own.file.name] if own.users else [])


def is_large(model: nn.Module) -> bool:
    """Of all graphs that have a model's blocks: calibrate finds a layer of one in another by where its weights are, or by
    what they are, so that these must be kept in one way."""
    return sum(parameter.nbytes for parameter in model.parameters()) > EMBED_UP_TO


def with_weights(graphs: dict[str, Graph], weights: WeightFile) -> dict[str, Graph]:
    """The graphs, those that refer to the shared weights with its description."""
    if not weights.users:
        return graphs
    data = [describe(weights.file)]
    return {n: g.model_copy(update={"data": data}) if g.model.file in weights.users else g for n, g in graphs.items()}


def drop_unread(model: onnx.ModelProto) -> None:
    """Of a decoder for first chunks, the states that only frames read which are not shown: engines refuse to bind them."""
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [value for value in model.graph.input if value.name in read]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def store_small(model: onnx.ModelProto) -> None:
    """Keep float32 constants as float16 behind a Cast wherever that loses nothing, as for weights trained and saved in
    half precision. Every engine folds the Cast away when it loads, so only the file gets smaller."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < STORE_FROM:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
