"""Networks for a bundle's post graphs, from files: any ONNX of a fitting signature, super-resolution checkpoints as
spandrel reads them, and RIFE's. Whatever it was, it becomes a `Net`: an ONNX graph of single images, run once before it is
believed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnx import ModelProto, TensorProto, ValueInfoProto
from torch import Tensor, nn

from ..engines.errors import UserError
from ..engines.files import reason
from ..engines.post import TIMES
from ..engines.progress import QUIET, Report
from ..engines.text import first_line
from .graphs import PORTABLE_OPSET
from .names import State
from .onnxfile import save_graph
from .postgraph import Net, has_branches
from .sources import tensors

Kind = Literal["smooth", "upscale"]
OLDEST, NEWEST = 13, 24  # opsets: Split with sizes as an input; what engines read
AGREES = 1e-4  # largest difference between ONNX Runtime and eager PyTorch, of images in [0, 1]
WANTED = {
    "upscale": "one float32 image [1, 3, H, W] in and one [1, 3, sH, sW] out, s 2 or 4",
    "smooth": "two float32 images [1, 3, H, W], and perhaps a position of one number, in, and one image out",
}


def read_net(file: Path, kind: Kind, height: int, width: int, report: Report = QUIET) -> tuple[Net, str]:
    """The network of a file for images of this size, and what it is. `report` is told which of a file's several
    dictionaries is taken. Raises UserError naming what it found."""
    if not file.exists():
        raise UserError(f"--{kind} {file}: no such file")
    if file.suffix.lower() == ".onnx":
        return from_onnx(_load_onnx(file), file, kind, height, width), f"ONNX {file.name}"
    state = tensors(file, report=report)
    if kind == "smooth":
        from .rife import find_ifnet

        try:
            module, what = find_ifnet(state, file)
        except (IndexError, RuntimeError) as error:  # a tensor of another rank than the name says
            raise UserError(f"--smooth {file}: no weights of RIFE's IFNet: {first_line(error)}") from None
    else:
        module, what = _super_resolution(state, file)
    return from_module(module, file, kind, height, width), what


def from_module(module: nn.Module, file: Path, kind: Kind, height: int, width: int) -> Net:
    """Exported for one image, and held against itself in eager PyTorch. Raises UserError."""
    torch.manual_seed(0)
    images = [torch.rand(1, 3, height, width) for _ in range(1 if kind == "upscale" else 2)]
    position = [torch.full((1,), 0.5)] if kind == "smooth" else []
    names = ["image"] if kind == "upscale" else ["before", "after", "position"]
    module = module.eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        target = Path(folder) / "net.onnx"
        try:
            expected = module(*images, *position)
            save_graph(module, (*images, *position), names, ["made"], target, PORTABLE_OPSET)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"--{kind} {file}: cannot be exported at {width}x{height}: {first_line(error)}") from None
        net = from_onnx(_load_onnx(target), file, kind, height, width)
        session = _session(net.model, file, kind)
        told = session.run(None, dict(zip(names, (i.numpy() for i in (*images, *position)), strict=True)))[0]
    apart = float(np.abs(np.asarray(told) - expected.numpy()).max())
    if not apart <= AGREES:
        raise UserError(
            f"--{kind} {file}: its graph differs from PyTorch by {apart:.2g} of white, expected {AGREES:g} at most"
        )
    return net


def from_onnx(model: ModelProto, file: Path, kind: Kind, height: int, width: int) -> Net:
    """Raises UserError for a graph of another signature, or one that cannot run at this size."""

    def refuse(found: str) -> UserError:
        return UserError(f"--{kind} {file}: {found}; expected {WANTED[kind]}")

    _check_operators(model, file, kind)
    graph = model.graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    shape = [1, 3, height, width]
    images = [value for value in inputs if len(_dims(value)) == 4 and _dims(value)[1] in (3, 0)]
    others = [value for value in inputs if value not in images]
    many = 1 if kind == "upscale" else 2
    told = ", ".join(f"{v.name} {_told(v)}" for v in inputs) or "none"
    if len(images) != many or len(others) > (kind == "smooth") or len(graph.output) != 1:
        raise refuse(f"found inputs {told}, and {len(graph.output)} outputs")
    for value in images:
        fits = all(have in (0, want) for have, want in zip(_dims(value), shape, strict=True))
        if not fits or value.type.tensor_type.elem_type != TensorProto.FLOAT:
            raise refuse(f"found input {value.name} {_told(value)}, frames are {shape} float32")
        _fix(value, shape)
    position = None
    for value in others:
        size = [d or 1 for d in _dims(value)]
        if value.type.tensor_type.elem_type != TensorProto.FLOAT or int(np.prod(size)) != 1:
            raise refuse(f"found input {value.name} {_told(value)}")
        _fix(value, size)
        position = value.name, size
    made = _output_shape(model, images, position, file, kind)
    scales = TIMES if kind == "upscale" else (1,)
    scale = next((s for s in scales if made == [1, 3, s * height, s * width]), None)
    if scale is None:
        raise refuse(f"found output {graph.output[0].name} {made} of images {shape}")
    return Net(model, [value.name for value in images], position, graph.output[0].name, scale)


def _check_operators(model: ModelProto, file: Path, kind: Kind) -> None:
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if not OLDEST <= opset <= NEWEST:
        raise UserError(f"--{kind} {file}: opset {opset}, expected {OLDEST} to {NEWEST}")
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign or model.functions:
        raise UserError(
            f"--{kind} {file}: has operators of its own ({', '.join(foreign) or 'functions'}): ONNX's alone"
        )
    if has_branches(model.graph):
        raise UserError(f"--{kind} {file}: has branches or loops (If, Loop, Scan): expected none")


def _load_onnx(file: Path) -> ModelProto:
    try:
        model = onnx.load(file)
        del model.graph.value_info[:]  # of whatever size it was exported with
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except Exception as error:  # protobuf's and onnx's own
        raise UserError(f"{file}: not an ONNX file: {first_line(error)}") from None
    return model


def _session(model: ModelProto, file: Path, kind: Kind) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:  # a protobuf in memory ends at 2 GB
        place = Path(folder) / "net.onnx"
        onnx.save(model, place, save_as_external_data=True, location="net.data")
        onnx.load_external_data_for_model(model, folder)  # saving emptied it
        try:
            return ort.InferenceSession(place, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many unrelated types
            raise UserError(f"--{kind} {file}: ONNX Runtime cannot load it: {first_line(error)}") from None


def _output_shape(
    model: ModelProto, images: Sequence[ValueInfoProto], position: tuple[str, list[int]] | None, file: Path, kind: Kind
) -> list[int]:
    """By one run. Fixes the output's shape in the graph."""
    feeds = {value.name: np.full(_dims(value), 0.5, np.float32) for value in images}
    if position is not None:
        feeds[position[0]] = np.full(position[1], 0.5, np.float32)
    _fix(model.graph.output[0], None)
    try:
        made = list(np.asarray(_session(model, file, kind).run(None, feeds)[0]).shape)
    except UserError:
        raise
    except Exception as error:
        size = _dims(images[0])
        raise UserError(f"--{kind} {file}: does not run on images {size}: {first_line(error)}") from None
    _fix(model.graph.output[0], made)
    return made


def _dims(value: ValueInfoProto) -> list[int]:
    """0 where any size will do."""
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def _told(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = ", ".join(str(d.dim_value or d.dim_param or "?") for d in tensor.shape.dim)
    return f"{TensorProto.DataType.Name(tensor.elem_type).lower()} [{dims}]"


def _fix(value: ValueInfoProto, shape: Sequence[int] | None) -> None:
    tensor = value.type.tensor_type
    tensor.ClearField("shape")
    for size in shape or ():
        tensor.shape.dim.add().dim_value = size


class Padded(nn.Module):
    """A network that wants sides of a least size and a multiple of a number: the picture's edge is repeated for it, and what
    it makes of that cut off."""

    def __init__(self, net: nn.Module, scale: int, least: int, multiple: int):
        super().__init__()
        self.net, self.scale, self.least, self.multiple = net, scale, least, multiple

    def forward(self, image: Tensor) -> Tensor:
        h, w = image.shape[2:]
        down, right = (-(-max(n, self.least) // self.multiple) * self.multiple - n for n in (h, w))
        made = self.net(F.pad(image, (0, right, 0, down), mode="replicate") if down or right else image)
        return made[:, :, : h * self.scale, : w * self.scale]


def _super_resolution(state: State, file: Path) -> tuple[nn.Module, str]:
    """Raises UserError for what spandrel does not know, and for a network that is none of colour pictures."""
    try:
        from spandrel import (  # type: ignore[import-not-found]
            ImageModelDescriptor,
            ModelLoader,
            UnsupportedModelError,
        )
    except (ImportError, RuntimeError) as error:  # torchvision of another build than torch is a RuntimeError
        raise UserError(
            f"--upscale {file}: reading it needs spandrel: pip install 'everframe[post]' ({first_line(error)})"
        ) from None
    try:
        found = ModelLoader("cpu").load_from_state_dict(dict(state))
    except UnsupportedModelError:
        raise UserError(
            f"--upscale {file}: spandrel knows no network with tensors such as {next(iter(state))}"
        ) from None
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        raise UserError(f"--upscale {file}: {first_line(error)}") from None
    if not isinstance(found, ImageModelDescriptor) or (found.input_channels, found.output_channels) != (3, 3):
        raise UserError(
            f"--upscale {file}: {found.architecture.name}: expected a network from RGB images to RGB images"
        )
    if found.scale not in TIMES:
        raise UserError(f"--upscale {file}: {found.architecture.name} with scale {found.scale}, expected 2 or 4")
    needs = found.size_requirements
    if needs.square:
        raise UserError(f"--upscale {file}: {found.architecture.name} wants square images")
    model = found.model.float().eval()
    for part in model.modules():  # SPAN folds its weights anew in every pass, and torch.export crashes on that
        if hasattr(part, "update_params"):
            part.update_params()  # type: ignore[operator]
            part.update_params = lambda: None  # type: ignore[assignment]
    return Padded(model, found.scale, needs.minimum, needs.multiple_of), found.architecture.name
