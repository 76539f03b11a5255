"""`everframe export wan` on small random checkpoints in every published layout, end to end."""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false
# (diffusers' types do not tell what its calls return)
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.export.addprompts import add
from everframe.export.lora import Lora
from everframe.export.sources import read, single
from everframe.export.texts import Umt5
from everframe.export.wanexport import export_wan, load_transformer, name_of, provenance
from everframe.runtime import Stream
from everframe.runtime.noise import chunk_noise

from reference import Reference, flow_sigmas
from wanfiles import WAN_PROMPTS, source


@pytest.fixture(scope="module")
def exported(wan_home: Path) -> Bundle:
    out = wan_home / "out.everframe"
    export_wan(source(wan_home, encoder=True), out, chunks=8, force=False)
    return Bundle.open(out)


def test_stream_of_a_wan_bundle(wan_home: Path, exported: Bundle) -> None:
    """Latents against the slow reference with the tokens encoded here; frames against diffusers' whole-clip decode."""
    state = load_file(wan_home / "diffusion_pytorch_model.safetensors")
    config = load_transformer(source(wan_home), single).config
    thetas = (10000.0 * (1 + 0.8 * np.array(exported.manifest.rope.epsilon))).tolist()
    reference = Reference(state, config, chunk=3, sink=3, window=12, thetas=thetas)
    text = Umt5(wan_home / "text").encode(WAN_PROMPTS[0], 512).half().double()
    shape = exported.manifest.geometry.latent_shape
    latents, frames = [], []
    with Stream(exported, seed=3) as stream:
        for c in range(6):
            chunk = stream.next_chunk()
            noise = torch.from_numpy(chunk_noise(3, c, 4, shape))[:, 0].double()
            expected = reference.next_chunk(noise, flow_sigmas([1000, 750, 500, 250], 5.0), text, 3 * c)
            assert (torch.from_numpy(chunk.latent) - expected).abs().max() < 1e-4 * expected.abs().max()
            latents.append(torch.from_numpy(chunk.latent))
            frames.append(chunk.frames)
    assert [len(f) for f in frames] == [9] + 5 * [12]
    vae = AutoencoderKLWan.from_pretrained(wan_home / "vae")
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        clip = vae.decode(torch.cat(latents, 1)[None] * std + mean).sample[0].permute(1, 2, 3, 0)
    assert np.abs(np.concatenate(frames) - ((clip + 1) * 127.5).numpy()).max() < 0.52


def test_a_cut_begins_like_a_stream(exported: Bundle) -> None:
    with Stream(exported, seed=3, overlap=False) as stream:
        counts = []
        for c in range(4):
            if c == 2:
                stream.set_prompt(WAN_PROMPTS[1], "cut")
            counts.append(len(stream.next_chunk().frames))
    assert counts == [9, 12, 9, 12]


@pytest.mark.parametrize("path", ["self_forcing.pt", "diffusion_pytorch_model.safetensors", "sharded", "diffusers"])
def test_every_layout_is_the_same_model(wan_home: Path, path: str) -> None:
    models = [load_transformer(source(wan_home, generator=wan_home / p), single) for p in (path, "diffusers")]
    assert models[0].config == models[1].config
    assert models[0].config.heads == 2
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_other_dictionary(wan_home: Path) -> None:
    ema, plain = (load_transformer(source(wan_home, dictionary=d), single) for d in (None, "generator"))
    assert torch.allclose(plain.head.head.bias, ema.head.head.bias + 1)


def test_lora_changes_what_it_names(wan_home: Path, tmp_path: Path) -> None:
    a, b = torch.randn(4, 256), torch.randn(64, 4)
    name = "base_model.model.blocks.1.ffn.0"
    lora = {f"{name}.lora_A.default.weight": a, f"{name}.lora_B.default.weight": b}
    torch.save({"generator_lora": lora, "step": 1}, tmp_path / "lora.pt")
    plain, merged = (
        load_transformer(source(wan_home, loras=f), single).state_dict() for f in ((), (Lora(tmp_path / "lora.pt"),))
    )
    for key, value in plain.items():
        change = b @ a if key == "blocks.1.ffn.0.weight" else torch.zeros(())
        assert torch.allclose(merged[key], value + change, atol=1e-5), key


@pytest.mark.parametrize("changes", [{"vae": "taew2_1.pth"}, {"vae": "vae", "precision": "fp16"}])
@pytest.mark.slow
def test_other_vaes_and_half_precision(wan_home: Path, tmp_path: Path, changes: dict) -> None:
    changes = changes | {"vae": wan_home / changes["vae"]}
    out = tmp_path / "x.everframe"
    export_wan(source(wan_home, **changes), out, chunks=8, force=False)
    bundle = Bundle.open(out)
    kinds = {s.name: s.dtype for s in bundle.manifest.graphs["step"].inputs}
    assert kinds["k_0"] == ("float16" if changes.get("precision") == "fp16" else "float32")
    assert kinds["latent"] == "float32"
    with Stream(bundle) as stream:
        assert [len(stream.next_chunk().frames) for _ in range(2)] == [9, 12]


def test_prompt_embeddings_are_those_of_the_padded_pipeline(wan_home: Path) -> None:
    """The reference pads to 512, masks, and zeroes what lies behind the prompt: the rows in front are the same."""
    model = UMT5EncoderModel.from_pretrained(wan_home / "text" / "text_encoder").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(wan_home / "text" / "tokenizer")
    for prompt in WAN_PROMPTS:
        tokens = tokenizer(prompt, padding="max_length", max_length=512, return_tensors="pt")
        with torch.no_grad():
            padded = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state[0]
        rows = int(tokens.attention_mask.sum())
        got = Umt5(wan_home / "text").encode(f"  {prompt.replace(' ', '  ')} ", 512)
        assert len(got) == rows
        assert torch.allclose(got, padded[:rows], atol=1e-5)


def test_the_wan_release_of_umt5(wan_home: Path, tmp_path: Path) -> None:
    """Names as in models_t5_umt5-xxl-enc-bf16.pth, made from transformers' by the architecture's definition."""
    theirs = UMT5EncoderModel.from_pretrained(wan_home / "text" / "text_encoder").state_dict()
    state: dict[str, Tensor] = {
        "token_embedding.weight": theirs["shared.weight"],
        "norm.weight": theirs["encoder.final_layer_norm.weight"],
    }
    for i in range(2):
        block = f"encoder.block.{i}.layer"
        state[f"blocks.{i}.norm1.weight"] = theirs[f"{block}.0.layer_norm.weight"]
        state[f"blocks.{i}.norm2.weight"] = theirs[f"{block}.1.layer_norm.weight"]
        bias = theirs[f"{block}.0.SelfAttention.relative_attention_bias.weight"]
        state[f"blocks.{i}.pos_embedding.embedding.weight"] = bias
        for n in "qkvo":
            state[f"blocks.{i}.attn.{n}.weight"] = theirs[f"{block}.0.SelfAttention.{n}.weight"]
        for ours, name in (("gate.0", "wi_0"), ("fc1", "wi_1"), ("fc2", "wo")):
            state[f"blocks.{i}.ffn.{ours}.weight"] = theirs[f"{block}.1.DenseReluDense.{name}.weight"]
    torch.save(state, tmp_path / "models_t5.pth")
    words = tmp_path / "google" / "umt5-xxl"
    PreTrainedTokenizerFast.from_pretrained(wan_home / "text" / "tokenizer").save_pretrained(words)
    (words / "config.json").write_bytes((wan_home / "text" / "text_encoder" / "config.json").read_bytes())
    a, b = (Umt5(p).encode(WAN_PROMPTS[1], 512) for p in (wan_home / "text", tmp_path / "models_t5.pth"))
    assert torch.allclose(a, b, atol=1e-6)


def loud(wan_home: Path, folder: Path) -> Path:
    """A text encoder whose embeddings float16 cannot hold."""
    shutil.copytree(wan_home / "text", folder)
    weights = folder / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    save_file({k: v * 1e6 if "final_layer_norm" in k else v for k, v in state.items()}, weights, {"format": "pt"})
    return folder


def test_prompts_add(wan_home: Path, exported: Bundle, tmp_path: Path) -> None:
    import shutil

    path = Path(shutil.copytree(exported.path, tmp_path / "b.everframe"))
    run = [sys.executable, "-c", "from everframe.runtime.cli import main; main()", "prompts"]
    more = [str(path), "a quiet city", WAN_PROMPTS[0], "--text-encoder", str(wan_home / "text")]
    done = subprocess.run([*run, "add", *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"{path}: 1 prompts added"
    listed = subprocess.run([*run, "-b", str(path)], capture_output=True, text=True)
    assert listed.stdout.splitlines() == [*WAN_PROMPTS, "a quiet city"]
    with Stream(Bundle.open(path), prompt="A quiet city") as stream:
        expected = Umt5(wan_home / "text").encode("a quiet city", 512).half().float().numpy()
        assert (stream.bank.embedding("a quiet city")[0, : len(expected)] == expected).all()
    assert [f.name for f in tmp_path.iterdir()] == ["b.everframe"]
    elsewhere, other = (Path(shutil.copytree(wan_home / "text", tmp_path / name)) for name in ("snapshot", "text"))
    assert add(path, ["the same encoder under another name"], None, str(elsewhere)) == 1
    weights = other / "text_encoder" / "model.safetensors"
    save_file({k: v.flip(0).contiguous() for k, v in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match=r"encodes .* otherwise than text did"):
        add(path, ["another encoder under the same name"], None, str(other))
    with pytest.raises(
        UserError, match=r"--text-encoder loud: makes NaN, or numbers too large for float16, of 'a quiet"
    ):
        add(path, ["a prompt"], None, str(loud(wan_home, tmp_path / "loud")))
    before = sorted((f.name, f.stat().st_size) for f in path.iterdir())
    wrong = subprocess.run(
        [*run, "add", str(path), "x", "--text-encoder", str(wan_home / "vae")], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert sorted((f.name, f.stat().st_size) for f in path.iterdir()) == before


@pytest.mark.slow
def test_a_bundle_with_its_text_encoder_takes_any_prompt(wan_home: Path, speaking_path: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(speaking_path, tmp_path / "x.everframe"))
    bundle = Bundle.open(out)
    model = onnx.load(out / "text.onnx", load_external_data=False)
    packed = [n for n in model.graph.node if n.op_type == "MatMulNBits"]
    assert len(packed) == 2 * 7  # q, k, v, o and three of the FFN, in both layers
    assert all(a.i == 8 for n in packed for a in n.attribute if a.name == "bits")
    with Stream(bundle, prompt=" snow on  a quiet sea ") as stream:
        assert stream.prompt == "snow on a quiet sea"
        chunk = stream.next_chunk()
        got = torch.from_numpy(stream.bank.embedding("snow on a quiet sea"))[0]
        with pytest.raises(UserError):
            stream.set_prompt("  ")
    expected = Umt5(wan_home / "text").encode("snow on a quiet sea", 512)
    assert chunk.prompt == "snow on a quiet sea"
    assert (got[len(expected) :] == 0).all()
    cosine = torch.nn.functional.cosine_similarity(got[: len(expected)], expected, dim=-1)
    assert cosine.min() > 0.99


def test_provenance_has_every_file_of_weights(wan_home: Path, tmp_path: Path) -> None:
    """Folders too, by their files; two that have one name are told apart by their folders."""
    shutil.copytree(wan_home / "vae", tmp_path / "style")
    given = source(wan_home, generator=wan_home / "diffusers", vae=wan_home / "vae", loras=(Lora(tmp_path / "style"),))
    name = "diffusion_pytorch_model.safetensors"
    files = {
        f"{folder.name}/{name}": folder / name
        for folder in (wan_home / "diffusers", wan_home / "vae", tmp_path / "style")
    }
    expected = {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in files.items()}
    assert provenance(given, "t")["checkpoint"] == expected
    shards = sorted((wan_home / "sharded").iterdir())
    found = provenance(source(wan_home, generator=wan_home / "sharded"), "t")["checkpoint"]
    assert len(shards) == 3
    assert found == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (*shards, wan_home / "Wan2.1_VAE.pth")}


def test_a_folder_is_called_what_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "Wan2.1-T2V-1.3B").mkdir()
    assert name_of(tmp_path / "Wan2.1-T2V-1.3B") == "Wan2.1-T2V-1.3B"
    (tmp_path / "self_forcing.v2.pt").write_bytes(b"")
    assert name_of(tmp_path / "self_forcing.v2.pt") == "self_forcing.v2"


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator": "none.pt"}, ["none.pt", "cannot read"]),
        ({"generator": "prompts.txt"}, ["prompts.txt", "expected a .pt"]),
        ({"generator": "harmful.pt"}, ["harmful.pt", "more than tensors"]),
        ({"generator": "cut.pt"}, ["cut.pt", "not a whole PyTorch file"]),
        ({"generator": "taew2_1.pth"}, ["taew2_1.pth", "not a Wan transformer"]),
        ({"generator": "halved.safetensors"}, ["missing blocks.1.cross_attn.k.bias", "unexpected lost", "found [3]"]),
        ({"dictionary": "critic"}, ["self_forcing.pt", "generator_ema", "critic"]),
        ({"vae": "self_forcing.pt"}, ["self_forcing.pt", "neither a Wan VAE nor a TAEHV"]),
        ({"vae": "vae", "loras": "taew2_1.pth"}, ["taew2_1.pth", "no LoRA"]),
        ({"text_encoder": "vae"}, ["not a UMT5 encoder"]),
        ({"text_encoder": "loud"}, ["--text-encoder loud", "too large for float16, of 'a quiet sea'"]),
        ({"text_encoder": "none.pth"}, ["--text-encoder", "none.pth: no such file"]),
        ({"text_encoder": "taew2_1.pth"}, ["taew2_1.pth", "google/umt5-xxl beside it"]),
        ({"vae": "none.pth"}, ["--vae", "none.pth: no such file"]),
        ({"family": "wan2.2-5b", "size": "64x32", "window": 6, "chunk": 1, "sink": 1}, ["--family wan2.2-5b", "48", "16"]),
        ({"text_encoder": "minilm", "text_graph": True}, ["--text-graph", "minilm"]),
        ({"prompts": "nothing.txt"}, ["nothing.txt"]),
        ({"size": "50x32"}, ["50x32", "multiples of 16"]),
        ({"window": 5}, ["window 5"]),
        ({"steps": (250, 500)}, ["--steps 250,500"]),
        ({"shift": -1.0}, ["--shift -1.0"]),
        ({"jitter": 1.0}, ["jitter_sigma"]),
    ],
)  # fmt: skip
def test_refusals(
    wan_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, words: list[str]
) -> None:
    """All before the transformer, which takes minutes, is converted."""
    monkeypatch.setattr("everframe.export.wanexport.fit", None)
    if not (wan_home / "loud").exists():
        loud(wan_home, wan_home / "loud")
    torch.save({"generator": Harmful()}, wan_home / "harmful.pt")
    (wan_home / "cut.pt").write_bytes((wan_home / "self_forcing.pt").read_bytes()[:5000])
    state = dict(read(wan_home / "sharded").state)
    del state["blocks.1.cross_attn.k.bias"]
    save_file(state | {"lost": torch.zeros(1), "head.head.bias": torch.zeros(3)}, wan_home / "halved.safetensors")
    paths = {k: wan_home / v for k, v in changes.items() if k in ("generator", "vae", "prompts")}
    if "loras" in changes:
        paths["loras"] = (Lora(wan_home / changes["loras"]),)  # type: ignore[assignment]
    if changes.get("text_encoder", "minilm") != "minilm":
        paths["text_encoder"] = str(wan_home / changes["text_encoder"])  # type: ignore[assignment]
    with pytest.raises(UserError) as caught:
        export_wan(source(wan_home, **(changes | paths)), tmp_path / "x.everframe", chunks=0, force=False)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
