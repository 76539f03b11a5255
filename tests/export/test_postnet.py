"""Networks from files into post graphs: RIFE's against a reference that shares no code with it, super-resolution checkpoints
against their own modules, ONNX files of every signature that does not fit, and bundles that stay whole."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.trtbuild import BuildOptions, build_graph
from everframe.export.post import add, remove
from everframe.export.postnet import read_net
from everframe.runtime.cli.app import app

from postfiles import image, smooth_file, upscale_file, write

H, W = 32, 64
# Of every published layout: blocks' widths, the encoder's widths and features, values that a block makes.
IFNETS = {
    "4.6": ([24, 16, 12, 8], None, 6),
    "4.7": ([24, 16, 12, 8], ("sequential", 16, 4), 6),
    "4.14": ([24, 16, 12, 8], ("head", 12, 8), 6),
    "4.26": ([24, 16, 12, 8, 8], ("head", 16, 4), 13),
}


def ifnet_state(version: str) -> dict[str, Tensor]:
    """Random weights under the published names, of training's leftovers too."""
    torch.manual_seed(0)
    widths, encoder, made = IFNETS[version]
    state: dict[str, Tensor] = {}

    def conv(name: str, *shape: int, bias: int | None = None) -> None:
        state[f"module.{name}.weight"] = 1.2 * torch.randn(shape) / np.sqrt(np.prod(shape[1:]))
        state[f"module.{name}.bias"] = 0.1 * torch.randn(shape[0] if bias is None else bias)

    features = encoder[2] if encoder else 0
    for i, width in enumerate(widths):
        taken = 7 + 2 * features if i == 0 else 12 + 2 * features + (made - 5 if made > 6 else 0)
        conv(f"block{i}.conv0.0.0", width // 2, taken, 3, 3)
        conv(f"block{i}.conv0.1.0", width, width // 2, 3, 3)
        for j in range(8):
            conv(f"block{i}.convblock.{j}.conv", width, width, 3, 3)
            state[f"module.block{i}.convblock.{j}.beta"] = 0.3 * torch.randn(1, width, 1, 1)
        conv(f"block{i}.lastconv.0", width, 4 * made, 4, 4, bias=4 * made)
    if encoder and encoder[0] == "sequential":
        conv("encode.0", encoder[1], 3, 3, 3)
        conv("encode.1", encoder[1], features, 4, 4, bias=features)
    elif encoder:
        conv("encode.cnn0", encoder[1], 3, 3, 3)
        conv("encode.cnn1", encoder[1], encoder[1], 3, 3)
        conv("encode.cnn2", encoder[1], encoder[1], 3, 3)
        conv("encode.cnn3", encoder[1], features, 4, 4, bias=features)
    conv("caltime.0", 4, 9, 3, 3)
    return state


def moved(picture: Tensor, flow: Tensor) -> Tensor:
    """[C, H, W], [2, H, W] -> every pixel by hand: the four around the place it looks at, edges repeated."""
    _, h, w = picture.shape
    y, x = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    x, y = (x + flow[0]).clamp(0, w - 1), (y + flow[1]).clamp(0, h - 1)
    left, up = x.floor().long().clamp(max=w - 2), y.floor().long().clamp(max=h - 2)
    a, b = x - left, y - up
    top = picture[:, up, left] * (1 - a) + picture[:, up, left + 1] * a
    low = picture[:, up + 1, left] * (1 - a) + picture[:, up + 1, left + 1] * a
    return top * (1 - b) + low * b


def rife(state: dict[str, Tensor], before: Tensor, after: Tensor, t: float, additive: bool) -> Tensor:
    """The frame at t between two [3, H, W] whose sides are multiples of what the coarsest block wants."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    count = sum(f"block{i}.conv0.0.0.weight" in state for i in range(9))

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, 1)

    def up(name: str, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], 2, 1)

    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    def features(frame: Tensor) -> list[Tensor]:
        x = frame[None]
        if "encode.0.weight" in state:
            return [up("encode.1", conv("encode.0", x, 2))[0]]
        if "encode.cnn0.weight" not in state:
            return []
        x = leaky(conv("encode.cnn0", x, 2))
        return [up("encode.cnn3", leaky(conv("encode.cnn2", leaky(conv("encode.cnn1", x)))))[0]]

    ours, theirs = features(before), features(after)
    place = torch.full_like(before[:1], t)
    flow, mask, extra = None, torch.zeros(1), torch.zeros(0)
    for i in range(count):
        scale = 2 ** (count - 1 - i)
        if flow is None:
            parts = [before, after, *ours, *theirs, place]
        else:
            parts = [moved(before, flow[:2]), moved(after, flow[2:])]
            parts += [moved(f, flow[:2]) for f in ours] + [moved(f, flow[2:]) for f in theirs]
            parts += [place, mask, extra]
        x = F.interpolate(torch.cat(parts)[None], scale_factor=1 / scale, mode="bilinear")
        if flow is not None:
            x = torch.cat([x, F.interpolate(flow[None], scale_factor=1 / scale, mode="bilinear") / scale], 1)
        x = leaky(conv(f"block{i}.conv0.1.0", leaky(conv(f"block{i}.conv0.0.0", x, 2)), 2))
        for j in range(8):
            x = leaky(conv(f"block{i}.convblock.{j}.conv", x) * state[f"block{i}.convblock.{j}.beta"] + x)
        made = F.pixel_shuffle(up(f"block{i}.lastconv.0", x), 2)
        made = F.interpolate(made, scale_factor=float(scale), mode="bilinear")[0]
        flow = made[:4] * scale + (0 if flow is None else flow)
        mask = made[4:5] + (mask if additive else 0)
        extra = made[5:] if made.shape[0] > 6 else extra
    assert flow is not None
    share = 1 / (1 + torch.exp(-mask))
    return moved(before, flow[:2]) * share + moved(after, flow[2:]) * (1 - share)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    return np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, feeds)[0])


NEWEST = max(IFNETS, key=lambda version: int(version.partition(".")[2]))


@pytest.mark.parametrize("version", [v if v == NEWEST else pytest.param(v, marks=pytest.mark.slow) for v in IFNETS])
def test_rife_is_the_published_network(tmp_path: Path, version: str) -> None:
    """Pictures of 64×128, which every layout takes as they are."""
    state, file = ifnet_state(version), tmp_path / "flownet.pkl"
    torch.save(state, file)
    net, what = read_net(file, "smooth", 64, 128)
    assert "RIFE" in what
    a, b = torch.rand(2, 3, 64, 128)
    for t in (0.25, 0.5):
        expected = rife(state, a, b, t, additive=version == "4.6")
        feeds = {"before": a[None].numpy(), "after": b[None].numpy(), "position": np.array([t], np.float32)}
        assert np.abs(run(net.model, **feeds)[0] - expected.numpy()).max() < 1e-3  # hundreds of convolutions
        assert float((expected - (a + b) / 2).abs().max()) > 0.1  # it does something


def test_rife_of_other_sizes_and_files(tmp_path: Path) -> None:
    state = ifnet_state("4.26")
    save_file({name.removeprefix("module."): value for name, value in state.items()}, tmp_path / "f.safetensors")
    net, _ = read_net(tmp_path / "f.safetensors", "smooth", 40, 72)  # padded within
    a, b = np.random.default_rng(0).random((2, 1, 3, 40, 72), np.float32)
    made = run(net.model, before=a, after=b, position=np.array([0.5], np.float32))
    assert made.shape == a.shape
    del state["module.block2.lastconv.0.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(UserError, match=r"less\.pth.*block2\.lastconv\.0\.bias.*RIFE's IFNet, 4\.5 to 4\.26"):
        read_net(tmp_path / "less.pth", "smooth", H, W)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="found 0 blocks; expected the weights of RIFE's IFNet"):
        read_net(tmp_path / "other.pth", "smooth", H, W)


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("run",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "flownet.pkl").write_bytes(pickle.dumps({"module.block0": Evil()}))
    with pytest.raises(UserError, match=r"holds more than tensors|not a whole PyTorch file"):
        read_net(tmp_path / "flownet.pkl", "smooth", H, W)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("net", ["formula", pytest.param("rife", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_post_graph_builds_with_tensorrt(bundle_path: Path, tmp_path: Path, precision: str, net: str) -> None:
    """RIFE's too: GridSample is TensorRT's own. Its dozen copies take a minute to compile, and many on a busy machine."""
    pytest.importorskip("tensorrt_rtx")
    smooth = smooth_file(tmp_path / "s.onnx")
    if net == "rife":
        smooth = tmp_path / "flownet.pkl"
        torch.save(ifnet_state("4.26"), smooth)
    path = Path(shutil.copytree(bundle_path, tmp_path / "b.everframe"))
    add(path, upscale_file(tmp_path / "u.onnx"), smooth)
    for graph in ("smooth", "upscale"):
        built = build_graph(Bundle.open(path), graph, BuildOptions(precision=precision, targets=("sm_89",)))
        assert len(built.engine) > 1000


def spandrel_nets() -> dict[str, torch.nn.Module]:
    """Published architectures with random weights."""
    try:
        from spandrel.architectures.Compact import Compact  # type: ignore[import-not-found]
        from spandrel.architectures.ESRGAN import ESRGAN  # type: ignore[import-not-found]
        from spandrel.architectures.SPAN import SPAN  # type: ignore[import-not-found]
    except (ImportError, RuntimeError) as error:  # torchvision is missing, or of another build than torch
        pytest.skip(f"spandrel: {error}")
    torch.manual_seed(0)
    return {
        "SPAN": SPAN(num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=2),
        "Compact": Compact(num_feat=16, num_conv=3, upscale=4),
        "ESRGAN": ESRGAN(num_filters=16, num_blocks=2, scale=4),
    }


@pytest.mark.parametrize("container", ["params_ema", "plain"])
@pytest.mark.parametrize("name", ["SPAN", "Compact", "ESRGAN"])
def test_super_resolution_checkpoints(tmp_path: Path, name: str, container: str) -> None:
    module = spandrel_nets()[name].eval()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    file = tmp_path / "net.pth"
    torch.save({"params_ema": state} if container == "params_ema" else state, file)
    net, what = read_net(file, "upscale", H, W)
    assert what.endswith(name)
    picture = torch.rand(1, 3, H, W)
    with torch.no_grad():
        expected = module(picture).numpy()
    assert expected.shape == (1, 3, net.scale * H, net.scale * W)
    assert np.abs(run(net.model, image=picture.numpy()) - expected).max() < 1e-4


def one_op(file: Path, inputs: list, opset: int = 17, kind: str = "Relu") -> Path:
    return write(file, [helper.make_node(kind, [inputs[0].name], ["made"])], inputs, "made", {}, opset)


def wrong(name: str, folder: Path) -> Path:
    file = folder / "net.onnx"
    if name == "text":
        file.write_text("no network")
    elif name == "same size":
        one_op(file, [image("x")])
    elif name == "another size":
        upscale_file(file, height=64, width=64)
    elif name == "three times":
        upscale_file(file, scale=3)
    elif name == "half":
        one_op(file, [image("x", kind=TensorProto.FLOAT16)])
    elif name == "old":
        one_op(file, [image("x")], opset=11)
    elif name == "two pictures":
        smooth_file(file)
    elif name == "six channels":
        one_op(file, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, "h", "w"])])
    return file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text", "not an ONNX file"),
        ("same size", r"found output made \[1, 3, 32, 64\] of images \[1, 3, 32, 64\]; expected one float32 image"),
        ("another size", r"found input image float \[1, 3, 64, 64\], frames are \[1, 3, 32, 64\]"),
        ("three times", r"found output made \[1, 3, 96, 192\]"),
        ("half", r"found input x float16 \[1, 3, h, w\]"),
        ("old", "opset 11, expected 13 to 24"),
        ("two pictures", r"found inputs before float \[1, 3, h, w\], after"),
        ("six channels", r"found inputs x float \[1, 6, h, w\]"),
        ("missing", "no such file"),
    ],
)
def test_onnx_that_does_not_fit(bundle_path: Path, tmp_path: Path, name: str, words: str) -> None:
    file = wrong(name, tmp_path)
    with pytest.raises(UserError, match=words) as found:
        add(bundle_path, file, None)
    assert str(found.value).startswith(("--upscale", str(file)))
    assert "\n" not in str(found.value)


def hashes(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.is_file()}


def test_the_bundle_stays_whole(bundle_path: Path, tmp_path: Path) -> None:
    """What was there stays, byte for byte; a file that fails changes nothing; what is taken out leaves what was before."""
    path = Path(shutil.copytree(bundle_path, tmp_path / "b.everframe"))
    before = hashes(path)
    good = upscale_file(tmp_path / "u.onnx")
    with pytest.raises(UserError, match="no such file"):
        add(path, good, tmp_path / "none.onnx")
    assert hashes(path) == before
    shows = add(path, good, None).output
    assert (shows.width, shows.height, shows.fps) == (128, 64, 16)
    shows = add(path, None, smooth_file(tmp_path / "s.onnx"), 4).output  # beside the other one
    assert (shows.width, shows.height, shows.fps) == (128, 64, 64)
    kept = Bundle.open(path).manifest
    assert {k: v["from"] for k, v in kept.provenance["post"].items()} == {
        "upscale": "ONNX u.onnx",
        "smooth": "ONNX s.onnx",
    }
    after = hashes(path)
    assert {k: v for k, v in after.items() if k in before and k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }
    assert remove(path) == ["smooth", "upscale"]
    assert hashes(path) == before
    assert [f.name for f in tmp_path.iterdir() if "part" in f.name or "old" in f.name] == []
    with pytest.raises(UserError, match="has no post graphs"):
        remove(path)


def test_the_command(bundle_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(bundle_path, tmp_path / "b.everframe")
    upscale, smooth = upscale_file(tmp_path / "u.onnx"), smooth_file(tmp_path / "s.onnx")
    done = CliRunner().invoke(app, ["post", "add", str(path), "--upscale", str(upscale), "--smooth", str(smooth)])
    assert done.exit_code == 0
    assert "shows 128x64 at 32 fps" in done.output
    for more, words in (
        ([], "give --upscale FILE, --smooth FILE or both"),
        (["--smooth", str(smooth), "--times", "3"], "--times 3: expected 2 or 4"),
        (["--upscale", str(upscale), "--times", "4"], "--times 4: expected --smooth FILE with it"),
    ):
        assert words in str(CliRunner().invoke(app, ["post", "add", str(path), *more]).exception)
    assert Bundle.open(path).post == ("smooth", "upscale")
    done = CliRunner().invoke(app, ["post", "add", str(path), "--upscale", str(upscale), "--off"])
    assert "shows 128x64 at 32 fps with --post all" in done.output
    assert Bundle.open(path).post == ()
    CliRunner().invoke(app, ["post", "add", str(path), "--upscale", str(upscale)])  # another, and off as before
    assert Bundle.open(path).post == ()
    done = CliRunner().invoke(app, ["post", "add", str(path), "--upscale", str(upscale), "--on"])
    assert done.output.strip().endswith("shows 128x64 at 32 fps")
    assert Bundle.open(path).post == ("smooth", "upscale")
    CliRunner().invoke(app, ["post", "add", str(path), "--upscale", str(upscale), "--off"])
    done = CliRunner().invoke(app, ["inspect", str(path)])
    assert "with --post all 128x64 at 32 fps by smooth and upscale" in " ".join(done.output.split())
    done = CliRunner().invoke(app, ["post", "remove", str(path)])
    assert "smooth and upscale taken out" in done.output
    assert Bundle.open(path).manifest.post == "all"
