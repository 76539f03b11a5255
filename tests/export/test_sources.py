"""Files as people have them: wrappers, whole repositories, eight bits, and what only looks like weights."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5Config

from everframe.engines.errors import UserError
from everframe.engines.progress import Report
from everframe.export.names import Part
from everframe.export.scaled import descale
from everframe.export.schedule import warped_from
from everframe.export.sources import RELEASES, read, single
from everframe.export.texts import Umt5, encoder_places, original_names, umt5_numbers
from everframe.export.vaes import load_vae
from everframe.export.wan import Wan
from everframe.export.wanexport import WanSource, check_schedule, load_transformer

from wanfiles import WAN_PROMPTS, source

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def flat(home: Path) -> dict[str, Tensor]:
    return load_file(home / "diffusion_pytorch_model.safetensors")


def loaded(
    home: Path, file: Path, dictionary: str | tuple[str, ...] | None = None, report: Report | None = None
) -> Wan:
    given = source(home, generator=file, dictionary=dictionary)
    return load_transformer(given, single, report or Report())


def same(a: Wan, b: Wan) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


WRAPPED = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.model.", "_orig_mod.")


@pytest.mark.parametrize("prefix", [*WRAPPED, "model._fsdp_wrapped_module."])
def test_wrappers(wan_home: Path, tmp_path: Path, prefix: str) -> None:
    save_file({prefix + k: v for k, v in flat(wan_home).items()}, tmp_path / "x.safetensors")
    same(loaded(wan_home, tmp_path / "x.safetensors"), loaded(wan_home, wan_home / "diffusers"))


def test_a_name_that_is_there_twice(wan_home: Path, tmp_path: Path) -> None:
    state = flat(wan_home)
    save_file(state | {"model.head.head.bias": torch.zeros(64)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"head\.head\.bias twice"):
        loaded(wan_home, tmp_path / "x.safetensors")


def test_a_whole_pipeline_in_one_file(wan_home: Path, tmp_path: Path) -> None:
    vae = torch.load(wan_home / "Wan2.1_VAE.pth", weights_only=True)
    text = load_file(wan_home / "text" / "text_encoder" / "model.safetensors")
    one = {f"model.diffusion_model.{k}": v for k, v in flat(wan_home).items()}
    one |= {f"vae.{k}": v for k, v in vae.items()}
    one |= {f"text_encoders.umt5xxl.transformer.{k}": v for k, v in text.items()}
    beside = {"logit_scale": torch.tensor(4.6), "spiece_model": torch.zeros(9, dtype=torch.uint8)}
    one |= {f"text_encoders.umt5xxl.{k}" if k == "logit_scale" else f"text_encoders.{k}": v for k, v in beside.items()}
    save_file({k: v.contiguous() for k, v in one.items()}, tmp_path / "x.safetensors")
    same(loaded(wan_home, tmp_path / "x.safetensors"), loaded(wan_home, wan_home / "diffusers"))
    parts: tuple[tuple[Part, dict[str, Tensor]], ...] = (("vae", vae), ("text_encoder", text | beside))
    for part, expected in parts:
        got = read(tmp_path / "x.safetensors", part=part).state
        assert set(got) == set(expected)
        assert all(torch.equal(got[k], expected[k]) for k in got)
    shutil.copytree(wan_home / "text" / "tokenizer", tmp_path / "google" / "umt5-xxl")
    encoded, plain = (
        Umt5(path).encode(WAN_PROMPTS[0], 512) for path in (tmp_path / "x.safetensors", wan_home / "text")
    )
    assert torch.equal(encoded, plain)


def test_the_root_of_a_repository(wan_home: Path, tmp_path: Path) -> None:
    """diffusers' folder of folders, and the folder of a Wan release."""
    root = tmp_path / "root"
    shutil.copytree(wan_home / "diffusers", root / "transformer")
    shutil.copytree(wan_home / "vae", root / "vae")
    shutil.copytree(wan_home / "text", root, dirs_exist_ok=True)
    (root / "model_index.json").write_text("{}")
    same(loaded(wan_home, root), loaded(wan_home, wan_home / "diffusers"))
    assert set(read(root, part="vae").state) == set(read(wan_home / "vae", part="vae").state)
    assert torch.equal(Umt5(root).encode(WAN_PROMPTS[0], 512), Umt5(wan_home / "text").encode(WAN_PROMPTS[0], 512))
    release = tmp_path / "release"
    release.mkdir()
    shutil.copy(wan_home / "diffusion_pytorch_model.safetensors", release)
    shutil.copy(wan_home / "Wan2.1_VAE.pth", release)
    torch.save(
        load_file(wan_home / "text" / "text_encoder" / "model.safetensors"), release / RELEASES["text_encoder"][0]
    )
    shutil.copytree(wan_home / "text" / "tokenizer", release / "google" / "umt5-xxl")
    assert torch.equal(Umt5(release).encode(WAN_PROMPTS[0], 512), Umt5(wan_home / "text").encode(WAN_PROMPTS[0], 512))
    (release / "config.json").write_text(json.dumps({"model_type": "t2v", "_class_name": "WanModel", "num_heads": 2}))
    same(loaded(wan_home, release), loaded(wan_home, wan_home / "diffusers"))
    assert set(read(release, part="vae").state) == set(torch.load(wan_home / "Wan2.1_VAE.pth", weights_only=True))


def test_the_config_of_another_model_in_the_folder(wan_home: Path, tmp_path: Path) -> None:
    """UMT5 has 64 heads, which would divide a Wan's channels as well."""
    shutil.copy(wan_home / "self_forcing.pt", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["UMT5EncoderModel"], "num_heads": 64}))
    assert loaded(wan_home, tmp_path / "self_forcing.pt").config.heads == 2


def test_which_dictionary_is_said_aloud(wan_home: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    loaded(wan_home, wan_home / "self_forcing.pt", report=Report(line=lines.append))
    assert lines == [
        f"{wan_home / 'self_forcing.pt'}: holds generator and generator_ema: generator_ema is taken; "
        "--dictionary picks the other"
    ]
    lines.clear()
    loaded(wan_home, wan_home / "self_forcing.pt", "generator", Report(line=lines.append))
    assert lines == []
    reward = {f"model.{k}": v for k, v in flat(wan_home).items()}  # flat, as Reward Forcing's
    torch.save(reward, tmp_path / "flat.pt")
    same(loaded(wan_home, tmp_path / "flat.pt"), loaded(wan_home, wan_home / "diffusers"))
    with pytest.raises(UserError, match=r"flat\.pt: found .* and \d+ more; expected tensors or one of generator$"):
        loaded(wan_home, tmp_path / "flat.pt", "generator")
    with pytest.raises(UserError, match="--dictionary generator"):
        loaded(wan_home, wan_home / "diffusion_pytorch_model.safetensors", "generator")


def test_a_recipe_takes_the_first_dictionary_that_is_there(wan_home: Path, tmp_path: Path) -> None:
    """As LongLive 2.0's code does: `generator`, else `model`, else the tensors themselves, never an average."""
    first = ("generator", "model", "flat")
    own, other = flat(wan_home), {name: tensor + 1 for name, tensor in flat(wan_home).items()}
    expected = loaded(wan_home, wan_home / "diffusers")
    for number, content in enumerate(
        (own, {"model": own}, {"generator": own, "model": other}, {"generator_ema": other, "model": own})
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        same(loaded(wan_home, tmp_path / f"{number}.pt", first), expected)
    same(loaded(wan_home, wan_home / "diffusion_pytorch_model.safetensors", first), expected)
    torch.save({"generator_ema": own}, tmp_path / "ema.pt")
    with pytest.raises(UserError, match=r"ema\.pt: found generator_ema; expected tensors or one of generator, model$"):
        loaded(wan_home, tmp_path / "ema.pt", first)


def scaled(state: dict[str, Tensor], kind: torch.dtype, suffix: str, rows: bool) -> tuple[dict, dict]:
    """A file of scaled fp8, and what it means, in float64."""
    held: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, value in state.items():
        if not (name.startswith("blocks") and name.endswith(".weight") and value.ndim == 2):
            held[name], meant[name] = value, value.double()
            continue
        top = value.abs().amax(1, keepdim=True) if rows else value.abs().max()
        scale = top / torch.finfo(kind).max
        held[name] = (value / scale).to(kind)
        held[name.removesuffix(".weight") + suffix] = scale
        meant[name] = held[name].double() * scale.double()
    return held, meant


@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_scaled_fp8(wan_home: Path, tmp_path: Path, kind: torch.dtype, rows: bool, suffix: str) -> None:
    held, meant = scaled(flat(wan_home), kind, suffix, rows)
    held |= {"scaled_fp8": torch.zeros(0, dtype=kind), "blocks.0.self_attn.q.scale_input": torch.ones(())}
    lines: list[str] = []
    save_file({f"model.diffusion_model.{k}": v for k, v in held.items()}, tmp_path / "x.safetensors")
    got = read(tmp_path / "x.safetensors", report=Report(line=lines.append)).state
    assert set(got) == set(meant)
    for name, value in meant.items():
        assert torch.allclose(got[name].double(), value, rtol=1e-6, atol=0), name
    assert "scaled fp8: 20 weights" in lines[0]
    assert lines[1:] == []
    loaded(wan_home, tmp_path / "x.safetensors")


def test_plain_fp8_is_cast(wan_home: Path, tmp_path: Path) -> None:
    state = {k: v.to(E4M3) if k.startswith("blocks") else v for k, v in flat(wan_home).items()}
    save_file(state, tmp_path / "x.safetensors")
    lines: list[str] = []
    got = read(tmp_path / "x.safetensors", report=Report(line=lines.append)).state
    assert all(torch.equal(got[k].double(), v.double()) for k, v in state.items())
    assert "plain fp8" in lines[0]


def test_eight_bits_that_can_not_be_right() -> None:
    state = {f"blocks.{i}.q.weight": torch.randn(4, 4) for i in range(300)}
    held, _ = scaled(state, E4M3, ".scale_weight", False)
    one, where = "blocks.7.q.scale_weight", Path("x.safetensors")
    bare = {k: v for k, v in held.items() if k in state}
    for change, words in (
        ({k: v for k, v in held.items() if k != one}, "blocks.7.q.weight without its scale"),
        ({k: v for k, v in held.items() if k != "blocks.7.q.weight"}, "scale_weight without its weight"),
        (bare, "scaled fp8 without its scales"),
        ({k: v.to(E4M3) for k, v in state.items()} | {"scaled_fp8": torch.zeros(0)}, "scaled fp8 without its scales"),
        (held | {one: torch.ones(2, 2)}, r"\[2, 2\] for \[4, 4\]"),
        (held | {one: torch.ones(1, 4)}, r"\[1, 4\] for \[4, 4\]"),
        (bare | {k.replace("weight", "weight_scale_inv"): torch.ones(1, 1) for k in state}, "by blocks.*and 292 more"),
        ({k: v.to(torch.int8) for k, v in state.items()}, "whole numbers without scales.*and 292 more"),
        (bare | {one: torch.ones(())}, "without its scale.*and 291 more"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            descale(change, where)
        assert len(str(caught.value)) < 800


def test_lines_stay_short_with_thousands_of_names(wan_home: Path, tmp_path: Path) -> None:
    state = flat(wan_home)
    long = {f"{'layer.' * 500}{i}": torch.zeros(1) for i in range(3000)}
    del state["blocks.1.cross_attn.k.bias"]
    save_file(state | long | {"head.head.bias": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError) as caught:
        loaded(wan_home, tmp_path / "x.safetensors")
    message = str(caught.value)
    assert "missing blocks.1.cross_attn.k.bias, unexpected layer." in message
    assert "head.head.bias: found [3], expected [64]" in message
    assert "and 2994 more" in message
    assert len(message) < 1500


def test_what_only_looks_like_weights(tmp_path: Path) -> None:
    for name, content, words in (
        ("x.gguf", b"GGUF\x03", "GGUF"),
        ("x.safetensors", b"GGUF\x03", "GGUF"),
        ("y.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("z.pt", b"<!DOCTYPE html><html>", "web page"),
        ("y.pt", b"\r\n<html>\r\n<head><title>403 Forbidden</title></head>", "web page"),
        ("x.safetensors", b"<HTML lang=en><body>", "web page"),
        ("empty.safetensors", b"", "not a whole safetensors file"),
        ("empty.pt", b"", "not a whole PyTorch file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / "two" / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"2 \.safetensors files and no index; name one of them: a\."):
        read(tmp_path / "two")


def test_damaged_and_strange_pt_files(tmp_path: Path) -> None:
    """Files older than PyTorch 1.6 are bare pickles: every cut and many a changed byte makes another program of one."""
    file = tmp_path / "old.pt"
    torch.save({"a.weight": torch.ones(3, 2)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    damaged = [whole[:n] for n in range(2, len(whole), 7)]
    damaged += [whole[:n] + bytes([whole[n] ^ 0x55]) + whole[n + 1 :] for n in range(0, len(whole), 3)]
    refusals = []
    for content in damaged:
        file.write_bytes(content)
        try:
            read(file)
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > len(damaged) // 2  # a byte of a number only makes another number
    assert not any("\n" in line for line in refusals)
    torch.save({0: torch.ones(1)}, file)
    with pytest.raises(UserError, match=r"old\.pt: found 0; expected tensors or one of"):
        read(file)


def test_each_tensor_is_from_the_file_that_the_index_says(tmp_path: Path) -> None:
    index = tmp_path / "x.safetensors.index.json"

    def write(places: object, **files: dict[str, Tensor]) -> None:
        for name, state in files.items():
            save_file(state, tmp_path / f"{name}.safetensors")
        index.write_text(json.dumps({"weight_map": places}))

    one, two, three = (n * torch.ones(1) for n in (1, 2, 3))
    places = {"x": "a.safetensors", "y": "b.safetensors"}
    write(places, a={"x": one}, b={"x": two, "y": three})  # the last by the alphabet has an older x
    got = read(tmp_path).state
    assert (got["x"], got["y"]) == (one, three)
    write(places, a={"x": one}, b={"y": two, "z": three})
    with pytest.raises(UserError, match=r"hold tensors that it does not name: z in b\.safetensors"):
        read(tmp_path)
    write(places, a={"x": one}, b={"z": two})
    with pytest.raises(UserError, match="names tensors that its files do not hold: y"):
        read(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(UserError, match=r"b\.safetensors: a Git LFS pointer"):
        read(tmp_path)
    for wrong, words in (
        ({"x": 3}, "3 is not a plain"),
        ({"x": "../a"}, "'../a' is not a plain"),
        ([], "no weight_map"),
    ):
        write(wrong)
        with pytest.raises(UserError, match=words):
            read(tmp_path)
    index.write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"text_len": "512"}, "text_len '512': expected a whole number"),
        ({"text_len": 0}, "text_len 0: expected a whole number"),
        ({"text_len": None}, "text_len None: expected"),
        ({"eps": "1e-6"}, "eps '1e-6': expected a number above 0"),
        ({"eps": -1.0}, r"eps -1\.0: expected"),
        ({"num_heads": 0}, "heads 0: expected a whole number"),
        ({"num_heads": "2"}, "heads '2': expected"),
        ({"num_heads": 3}, "3 heads for dim 256; expected a number that divides it"),
    ],
    ids=str,
)
def test_a_config_that_says_what_cannot_be(wan_home: Path, tmp_path: Path, said: dict, words: str) -> None:
    shutil.copy(wan_home / "self_forcing.pt", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=words):
        loaded(wan_home, tmp_path / "self_forcing.pt")


def test_autoencoders_that_are_not_whole(wan_home: Path, tmp_path: Path) -> None:
    wan = torch.load(wan_home / "Wan2.1_VAE.pth", weights_only=True)
    torch.save({k: v for k, v in wan.items() if not k.startswith("encoder.")}, tmp_path / "half.pth")
    tiny = torch.load(wan_home / "taew2_1.pth", weights_only=True)
    torch.save(tiny | {"decoder.1.weight": torch.zeros(8)}, tmp_path / "taew2_1.pth")
    torch.save(tiny | {"encoder.3.weight": torch.zeros(())}, tmp_path / "taew2_2.pth")
    shutil.copytree(wan_home / "vae", tmp_path / "vae")
    for name, words in (
        ("half.pth", r"half\.pth: not a whole Wan VAE: missing encoder\.conv1\.weight"),
        ("taew2_1.pth", "other numbers of axes"),
        ("taew2_2.pth", "other numbers of axes"),
    ):
        with pytest.raises(UserError, match=words):
            load_vae(tmp_path / name, single)
    config = tmp_path / "vae" / "config.json"
    said = json.loads(config.read_text())
    for wrong in (None, "0.1", [None] * 16, [float("nan")] * 16):
        config.write_text(json.dumps(said | {"latents_mean": wrong}))
        with pytest.raises(UserError, match=r"its config\.json says latents_mean .*; expected a list of numbers"):
            load_vae(tmp_path / "vae", single)


def test_another_model_as_a_text_encoder_is_refused(wan_home: Path, tmp_path: Path) -> None:
    """A T5-v1.1 has all names of a UMT5 but the positions of its later blocks, which transformers then draws by chance."""
    shutil.copytree(wan_home / "text", tmp_path / "text")
    config = tmp_path / "text" / "text_encoder" / "config.json"
    weights = config.with_name("model.safetensors")
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"model_type": "t5"}))
    with pytest.raises(UserError, match="model_type 't5', expected 'umt5'"):
        Umt5(tmp_path / "text")
    config.write_text(json.dumps(said))
    state = load_file(weights)
    save_file(
        {k: v for k, v in state.items() if "block.1.layer.0.SelfAttention.relative" not in k}, weights, {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"missing encoder\.block\.1\.layer\.0\.SelfAttention\.relative_attention_bias"):
        Umt5(tmp_path / "text")
    save_file(state | {"encoder.final_layer_norm.weight": torch.ones(7)}, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"does not fit its config\.json") as caught:
        Umt5(tmp_path / "text")
    assert "\n" not in str(caught.value)


def wan_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names of UMT5 as the Wan release has them, by trying which of its names come out as ours."""
    layers = range(2)
    theirs = ["token_embedding.weight", "norm.weight"]
    for i in layers:
        theirs += [f"blocks.{i}.{n}.weight" for n in ("norm1", "norm2", "pos_embedding.embedding")]
        theirs += [f"blocks.{i}.attn.{n}.weight" for n in "qkvo"]
        theirs += [f"blocks.{i}.ffn.{n}.weight" for n in ("gate.0", "fc1", "fc2")]
    places = {next(iter(original_names({n: torch.zeros(1)}))): n for n in theirs}
    return {n: state[k] for k, n in places.items()}


@pytest.mark.parametrize("layout", ["Wan", "ComfyUI, scaled", "folder"])
def test_text_encoders_in_fp8(wan_home: Path, tmp_path: Path, layout: str) -> None:
    """Against the same numbers in float32: what differs is bf16 alone."""
    theirs = load_file(wan_home / "text" / "text_encoder" / "model.safetensors")
    words = tmp_path / "google" / "umt5-xxl"
    shutil.copytree(wan_home / "text" / "tokenizer", words)
    shutil.copy(wan_home / "text" / "text_encoder" / "config.json", words)
    narrow = {k: v.to(E4M3) for k, v in theirs.items()}
    file = tmp_path / "umt5.safetensors"
    if layout == "Wan":
        save_file(wan_names(narrow), file)
    elif layout == "folder":
        file = tmp_path / "text"
        shutil.copytree(wan_home / "text", file)
        save_file(narrow, file / "text_encoder" / "model.safetensors", {"format": "pt"})
    else:
        held = {k: v.float() for k, v in narrow.items()}
        for name in theirs:
            if theirs[name].ndim == 2 and "shared" not in name:
                held[name], scale = (theirs[name] / 0.25).to(E4M3), torch.tensor(0.25)
                narrow[name] = held[name].float() * scale
                held[name.removesuffix(".weight") + ".scale_weight"] = scale
        held |= {"spiece_model": torch.zeros(9, dtype=torch.uint8), "scaled_fp8": torch.zeros(0, dtype=E4M3)}
        save_file(held, file)
    plain = tmp_path / "plain"
    shutil.copytree(wan_home / "text", plain)
    save_file({k: v.float() for k, v in narrow.items()}, plain / "text_encoder" / "model.safetensors", {"format": "pt"})
    encoder = Umt5(file)
    assert encoder.model.shared.weight.data_ptr() == encoder.model.encoder.embed_tokens.weight.data_ptr()  # held once
    got, expected = (one.encode(WAN_PROMPTS[1], 512) for one in (encoder, Umt5(plain)))
    assert (got - expected).abs().max() < 0.03 * expected.abs().max()


def loud(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's weights in float16, whose feed-forward layers make numbers beyond it, as a trained UMT5's do."""
    torch.manual_seed(6)
    wide = {k: 10 * torch.randn_like(v) if "DenseReluDense" in k else v for k, v in state.items()}
    return {k: v.half() for k, v in wide.items()}


@pytest.mark.parametrize("layout", ["ComfyUI", "folder"])
def test_text_encoders_in_fp16(wan_home: Path, tmp_path: Path, layout: str) -> None:
    """Against the same numbers in float32."""
    state = loud(load_file(wan_home / "text" / "text_encoder" / "model.safetensors"))
    shutil.copytree(wan_home / "text" / "tokenizer", tmp_path / "google" / "umt5-xxl")
    shutil.copytree(wan_home / "text", tmp_path / "plain")
    file = tmp_path / "umt5_xxl_fp16.safetensors"
    save_file(state, file)
    if layout == "folder":
        shutil.copytree(wan_home / "text", tmp_path / "half")
        save_file(state, tmp_path / "half" / "text_encoder" / "model.safetensors", {"format": "pt"})
        file = tmp_path / "half"
    floats = {k: v.float() for k, v in state.items()}
    save_file(floats, tmp_path / "plain" / "text_encoder" / "model.safetensors", {"format": "pt"})
    plain = Umt5(tmp_path / "plain")
    made: list[float] = []
    for block in plain.model.encoder.block:
        block.layer[1].DenseReluDense.wo.register_forward_hook(lambda *a: made.append(float(a[2].abs().max())))
    expected, got = (one.encode(WAN_PROMPTS[1], 512) for one in (plain, Umt5(file)))
    assert max(made) > torch.finfo(torch.float16).max
    assert (got - expected).abs().max() < 0.01 * expected.abs().max()


def test_a_text_encoders_numbers_from_its_shapes(wan_home: Path) -> None:
    said = UMT5Config.from_pretrained(wan_home / "text" / "text_encoder")
    got = umt5_numbers(load_file(wan_home / "text" / "text_encoder" / "model.safetensors"), wan_home)
    assert got == {name: getattr(said, name) for name in got}
    with pytest.raises(UserError, match="not a UMT5 encoder"):
        umt5_numbers({"x": torch.zeros(1)}, wan_home)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", r"model\.safetensors: a Git LFS pointer"),
        (b"<html><head>", r"model\.safetensors: a web page"),
        (b"\x10\0\0\0\0\0\0\0{}", "not a UMT5 encoder with its tokenizer"),
    ],
)
def test_a_damaged_text_encoder(wan_home: Path, tmp_path: Path, content: bytes, words: str) -> None:
    text = Path(shutil.copytree(wan_home / "text", tmp_path / "text"))
    (text / "text_encoder" / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        Umt5(text)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_its_vocabulary(wan_home: Path, tmp_path: Path) -> None:
    """As it is where only the small files were copied: transformers would know no word, and every prompt be the same."""
    text = Path(shutil.copytree(wan_home / "text", tmp_path / "text"))
    (text / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer: not a UMT5 encoder's tokenizer: expected tokenizer\.json or"):
        Umt5(text)


def test_a_vocabulary_that_only_sentencepiece_reads(wan_home: Path, tmp_path: Path) -> None:
    text = Path(shutil.copytree(wan_home / "text", tmp_path / "text"))
    (text / "tokenizer" / "tokenizer.json").rename(text / "tokenizer" / "spiece.model")
    if find_spec("sentencepiece") is None:
        with pytest.raises(UserError, match=r"tokenizer: spiece\.model alone found, .* pip install sentencepiece$"):
            Umt5(text)
    else:
        assert encoder_places(text)[1] == text / "tokenizer"


def test_a_text_encoder_without_its_tokenizer(wan_home: Path, tmp_path: Path) -> None:
    shutil.copy(wan_home / "text" / "text_encoder" / "model.safetensors", tmp_path / "umt5.safetensors")
    with pytest.raises(UserError, match="google/umt5-xxl beside it"):
        Umt5(tmp_path / "umt5.safetensors")


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ((1000, 937, 833, 625), (1000, 750, 500, 250)),
        ((1000, 938, 833, 625), (1000, 750, 500, 250)),
        ((1000, 833), (1000, 500)),
        ((1000, 750, 500, 250), None),
        ((1000, 500), None),
        ((1000,), None),
        ((1000, 757, 522), None),  # CausVid's own, not warped
        ((1000, 800, 600, 400, 200), None),
        ((1000, 900, 750, 500), None),
    ],
)
def test_schedules_that_are_warped_already(steps: tuple[int, ...], found: tuple[int, ...] | None) -> None:
    assert warped_from(steps, 5.0) == ((found, 5.0) if found else None)
    given = WanSource(Path(), Path(), "", Path(), steps=steps)
    if found is None:
        check_schedule(given)
        return
    with pytest.raises(UserError, match=f"--steps {','.join(map(str, steps))}: look like .*--shift 1 with these"):
        check_schedule(given)
    check_schedule(WanSource(Path(), Path(), "", Path(), steps=steps, shift=1.0))


def test_a_schedule_of_another_shift() -> None:
    assert warped_from((1000, 889), 5.0) == ((1000, 500), 8.0)
    assert warped_from((1000, 923, 800, 571), 4.0) == ((1000, 750, 500, 250), 4.0)
