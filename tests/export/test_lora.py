"""LoRAs in every naming against peft's own merge, or against W + s·B·A worked out here in float64."""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportCallIssue=false
# (peft's types do not tell what its calls return)
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers.loaders import WanLoraLoaderMixin
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from everframe.engines.errors import UserError
from everframe.engines.progress import Report
from everframe.export import cli, wanexport
from everframe.export.lora import Lora, merge_loras, parse_lora
from everframe.export.recipes import find, tell_recipe
from everframe.export.sources import single
from everframe.export.wanexport import WanSource, load_transformer
from everframe.runtime.cli.app import app

from helpers import TRANSFORMER, random_transformer
from wanfiles import source

Q, K, FFN = "blocks.0.self_attn.q", "blocks.1.cross_attn.k", "blocks.1.ffn.0"
SHAPES = {Q: (64, 64), K: (64, 64), FFN: (96, 64)}
NAMINGS = {  # each as its authors write it: prefix and layers, the two halves
    "PEFT": ("base_model.model.{}", "lora_A", "lora_B"),
    "PEFT, an adapter's name": ("base_model.model.model.{}", "lora_A.default", "lora_B.default"),
    "ComfyUI": ("diffusion_model.{}", "lora_A", "lora_B"),
    "ComfyUI, down and up": ("diffusion_model.{}", "lora_down", "lora_up"),
    "Kohya": ("lora_unet_{_}", "lora_down", "lora_up"),
    "VideoX-Fun": ("lora_unet__{_}", "lora_down", "lora_up"),
    "diffusers": ("transformer.{diffusers}", "lora_A", "lora_B"),
    "diffusers, old": ("transformer.{diffusers}", "lora.down", "lora.up"),
    "LyCORIS": ("lycoris_{_}", "lora_down", "lora_up"),
    "flattened diffusers": ("lora_transformer_{diffusers_}", "lora_down", "lora_up"),
    "bare": ("{}", "lora_A", "lora_B"),
}
DIFFUSERS = {Q: "blocks.0.attn1.to_q", K: "blocks.1.attn2.to_k", FFN: "blocks.1.ffn.net.0.proj"}


def named(naming: str, layer: str) -> str:
    theirs = DIFFUSERS[layer]
    ways = {"_": layer.replace(".", "_"), "diffusers": theirs, "diffusers_": theirs.replace(".", "_")}
    return NAMINGS[naming][0].format(layer, **ways)


def pairs(rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return {n: (torch.randn(rank, columns), torch.randn(rows, rank)) for n, (rows, columns) in SHAPES.items()}


def write(
    file: Path, naming: str = "ComfyUI", alpha: float | None = None, more: dict[str, Tensor] | None = None
) -> Path:
    _, down, up = NAMINGS[naming]
    held = dict(more or {})
    for layer, (a, b) in pairs().items():
        held[f"{named(naming, layer)}.{down}.weight"], held[f"{named(naming, layer)}.{up}.weight"] = a, b
        if alpha is not None:
            held[f"{named(naming, layer)}.alpha"] = torch.tensor(alpha)
    save_file(held, file)
    return file


def state() -> dict[str, Tensor]:
    return {k: v.clone() for k, v in random_transformer(TRANSFORMER).state_dict().items()}


def by_hand(scale: float) -> dict[str, Tensor]:
    out = {k: v.double() for k, v in state().items()}
    for layer, (a, b) in pairs().items():
        out[f"{layer}.weight"] += scale * (b.double() @ a.double())
    return out


def same(got: Mapping[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert (got[name].double() - value).abs().max() < 3e-6, name


@pytest.mark.parametrize("alpha", [None, 1.0, 3.0])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming(tmp_path: Path, naming: str, alpha: float | None) -> None:
    lines: list[str] = []
    file = write(tmp_path / "x.safetensors", naming, alpha)
    got = merge_loras(state(), (Lora(file),), Report(line=lines.append))
    same(got, by_hand(1.0 if alpha is None else alpha / 2))
    assert len(lines) == 1
    assert ("taken as the rank" in lines[0]) == (alpha is None)


def test_strengths_and_the_users_alpha(tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", alpha=1.0)
    same(merge_loras(state(), (Lora(file, 0.8),)), by_hand(0.4))
    same(merge_loras(state(), (Lora(file, -0.5), Lora(file, 2.0))), by_hand(0.75))
    same(merge_loras(state(), (Lora(file, 0.0),)), by_hand(0))
    same(merge_loras(state(), (Lora(file, 0.5, alpha=6.0),)), by_hand(1.5))


def test_full_deltas(tmp_path: Path) -> None:
    torch.manual_seed(2)
    deltas = {
        "blocks.0.norm3.diff": ("blocks.0.norm3.weight", torch.randn(64)),
        "blocks.0.norm3.diff_b": ("blocks.0.norm3.bias", torch.randn(64)),
        f"{Q}.diff_b": (f"{Q}.bias", torch.randn(64)),
        "blocks.1.modulation.diff": ("blocks.1.modulation", torch.randn(1, 6, 64)),
        "blocks.0.diff_m": ("blocks.0.modulation", torch.randn(1, 6, 64)),
        "patch_embedding.diff": ("patch_embedding.weight", torch.randn(64, 8, 1, 2, 2)),
    }
    file = write(
        tmp_path / "x.safetensors", alpha=1.0, more={f"diffusion_model.{k}": v for k, (_, v) in deltas.items()}
    )
    expected = by_hand(0.5 * 0.7)
    for name, value in deltas.values():
        expected[name] += 0.7 * value.double()
    same(merge_loras(state(), (Lora(file, 0.7),)), expected)
    save_file({"diffusion_model.blocks.0.norm3.diff": deltas["blocks.0.norm3.diff"][1]}, file)
    merge_loras(state(), (Lora(file),))


def test_a_convolutions_pair(tmp_path: Path) -> None:
    torch.manual_seed(3)
    a, b = torch.randn(2, 8, 1, 2, 2), torch.randn(64, 2, 1, 1, 1)
    save_file(
        {"lora_unet_patch_embedding.lora_down.weight": a, "lora_unet_patch_embedding.lora_up.weight": b},
        tmp_path / "x.safetensors",
    )
    expected = {k: v.double() for k, v in state().items()}
    expected["patch_embedding.weight"] += torch.einsum("or,rithw->oithw", b[:, :, 0, 0, 0].double(), a.double())
    same(merge_loras(state(), (Lora(tmp_path / "x.safetensors"),)), expected)


def adapter(base: torch.nn.Module, settings: LoraConfig, folder: Path) -> dict[str, Tensor]:
    """A random adapter as peft saves it, and the weights with it merged by peft."""
    adapted = get_peft_model(base, settings)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.2)
    adapted.save_pretrained(str(folder))
    return {k: v.double() for k, v in adapted.merge_and_unload().state_dict().items()}  # type: ignore[operator]


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 6, "lora_alpha": 6},
        {"r": 2, "lora_alpha": 4},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"ffn.0": 3, r"blocks\.1\..*\.v": 6}, "alpha_pattern": {"ffn.0": 9}},
        {"r": 4, "lora_alpha": 8, "alpha_pattern": {r"blocks.0.*": 2, "ffn.2": 5}, "use_rslora": True},
        {"r": 4, "lora_alpha": 2, "lora_bias": True},
    ],
)  # fmt: skip
def test_an_adapter_as_peft_saves_it(tmp_path: Path, settings: dict) -> None:
    """The folder, and its file by name, against peft's merge."""
    base = random_transformer(TRANSFORMER)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    linear = [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("blocks.")]
    expected = adapter(base, LoraConfig(target_modules=linear, **settings), tmp_path / "adapter")
    assert sum(not torch.equal(expected[k], before[k].double()) for k in before) >= len(linear)
    for path in (tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"):
        lines: list[str] = []
        same(merge_loras(before, (Lora(path),), Report(line=lines.append)), expected)
        assert "adapter_config.json" in lines[0]


@pytest.mark.parametrize("inside", ["model", "transformer.model"])
def test_patterns_match_a_modules_whole_name(tmp_path: Path, inside: str) -> None:
    """As peft matches them, of a model inside others: names from its beginning, and one that only looks like a beginning."""
    base = random_transformer(TRANSFORMER)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    whole: torch.nn.Module = base
    for name in reversed(inside.split(".")):
        outer = torch.nn.Module()
        setattr(outer, name, whole)
        whole = outer
    linear = [n for n, m in whole.named_modules() if isinstance(m, torch.nn.Linear) and ".blocks." in n]
    q = f"{inside}.blocks.0.self_attn.q"
    settings = LoraConfig(
        target_modules=linear,
        r=4,
        lora_alpha=8,
        rank_pattern={f"^{inside}.blocks.1.ffn.0": 2, r"^blocks\..*": 3},
        alpha_pattern={r"^blocks\.0\.self_attn\.q": 5, q: 3, "cross_attn.q": 2},
    )
    expected = adapter(whole, settings, tmp_path / "adapter")
    expected = {k.removeprefix(f"{inside}."): v for k, v in expected.items()}
    same(merge_loras(before, (Lora(tmp_path / "adapter"),)), expected)


def test_patterns_of_a_trainer_with_a_prefix_of_its_own(tmp_path: Path) -> None:
    """diffusers matched a transformer's own names, and wrote `transformer.` before them."""
    file = write(tmp_path / "x.safetensors", "diffusers")
    said = {"r": 2, "lora_alpha": 2, "alpha_pattern": {r"^blocks\..*": 6, "to_q": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    same(merge_loras(state(), (Lora(file),)), by_hand(3.0))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_users_alpha_is_scaled_as_peft_scales_the_adapters_own(tmp_path: Path, rslora: bool) -> None:
    """--lora-alpha 7 is what peft makes of the same adapter with lora_alpha 7: rslora or not is not the alpha's to say."""
    torch.manual_seed(5)
    base = random_transformer(TRANSFORMER)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    settings = LoraConfig(target_modules=["blocks.0.self_attn.q"], r=4, lora_alpha=7, use_rslora=rslora)
    expected = adapter(base, settings, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1}))
    same(merge_loras(before, (Lora(tmp_path / "adapter", alpha=7.0),)), expected)


@pytest.mark.parametrize("more", [[], ["--lora-alpha", "6"]], ids=["without", "with"])
def test_a_recipes_own_lora_keeps_its_alpha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    """--lora-alpha is of the files that --lora names."""
    own, mine = write(tmp_path / "own.safetensors"), write(tmp_path / "mine.safetensors", alpha=4.0)
    seen: list[WanSource] = []
    fetched = {use: tmp_path / use for use in ("generator", "vae")} | {"text_encoder": "t", "lora": own}
    monkeypatch.setattr(cli, "recipe_files", lambda name, *_: (dict(fetched), find(name).lora_alpha))
    monkeypatch.setattr(wanexport, "export_wan", lambda source, *_, **__: seen.append(source))
    words = [
        "export",
        "wan",
        "--recipe",
        "longlive",
        "-o",
        str(tmp_path / "x.everframe"),
        "--lora",
        f"{mine}:0.5",
        *more,
    ]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    scale = 256 / 2 + 0.5 * (6 if more else 4) / 2
    for name, value in by_hand(scale).items():
        assert torch.allclose(merge_loras(state(), seen[0].loras)[name].double(), value, rtol=1e-5, atol=1e-4), name


def test_a_recipes_lora_belongs_to_its_generator() -> None:
    """One that is given may have it merged in already."""
    recipe, told = find("longlive"), []
    assert "lora" in recipe.files("taehv", set())
    assert "lora" in recipe.files("taehv", {"lora", "vae"})  # the user's comes on top
    assert "lora" not in recipe.files("taehv", {"generator"})
    tell_recipe(recipe, {"generator"}, Report(line=told.append))
    assert "without the recipe's lora, which belongs to its generator: as without a recipe" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wan", "--recipe", "longlive", "--lora-alpha", "0"], "--lora-alpha: expected --lora FILE with it"),
        (["wan", "--recipe", "longlive", "--lora-alpha", "8"], "--lora-alpha: expected --lora FILE with it"),
        (
            ["wan", "--recipe", "longlive", "--lora", "x", "--lora-alpha", "0"],
            "--lora-alpha 0: would merge nothing",
        ),
        (["wan", "--recipe", "longlive", "--decoder", "wan", "--vae", "x"], "--decoder: expected no --vae with it"),
    ],
)
def test_options_that_would_do_nothing(tmp_path: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["export", *words, "-o", str(tmp_path / "x.everframe")])
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)


def test_the_metadata_of_diffusers(tmp_path: Path) -> None:
    file = write(tmp_path / "plain.safetensors", "diffusers")
    metadata = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 5, "transformer.peft_type": "LORA"})
    save_file(load_file(file), tmp_path / "x.safetensors", {"lora_adapter_metadata": metadata})
    same(merge_loras(state(), (Lora(tmp_path / "x.safetensors"),)), by_hand(2.5))


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_lora_as_diffusers_saves_it(tmp_path: Path, form: str) -> None:
    """Its alpha and its kind stand in the metadata alone."""
    pairs_of: dict[str, torch.nn.Module | Tensor] = {
        f"{DIFFUSERS[n]}.lora_{half}.weight": t for n, ab in pairs().items() for half, t in zip("AB", ab, strict=True)
    }

    def saved(name: str, **settings) -> Path:
        said = LoraConfig(r=2, target_modules=list(DIFFUSERS.values()), **settings).to_dict()
        said = {k: sorted(v) if isinstance(v, set) else v for k, v in said.items()}
        WanLoraLoaderMixin.save_lora_weights(
            tmp_path / name, transformer_lora_layers=pairs_of, transformer_lora_adapter_metadata=said
        )
        assert [f.name for f in (tmp_path / name).iterdir()] == ["pytorch_lora_weights.safetensors"]
        return tmp_path / name if form == "folder" else tmp_path / name / "pytorch_lora_weights.safetensors"

    same(merge_loras(state(), (Lora(saved("plain", lora_alpha=5)),)), by_hand(2.5))
    for name, settings, words in (
        ("dora", {"use_dora": True}, "metadata: use_dora: DoRA"),
        ("pissa", {"init_lora_weights": "pissa"}, "metadata: init_lora_weights pissa"),
    ):
        with pytest.raises(UserError, match=words):
            merge_loras(state(), (Lora(saved(name, **settings)),))


def test_half_precision_weights_are_not_rounded_before_the_last(tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", alpha=1.0)
    halved = {k: v.bfloat16() for k, v in state().items()}
    got = merge_loras(halved, (Lora(file, 0.001), Lora(file, 0.001)))
    for layer, (a, b) in pairs().items():
        expected = halved[f"{layer}.weight"].double() + 0.001 * (b.double() @ a.double())
        assert (got[f"{layer}.weight"].double() - expected).abs().max() < 1e-6


def test_lora_of_a_published_layout(wan_home: Path, tmp_path: Path) -> None:
    """Whichever naming the generator came in, the same LoRA gives the same model."""
    torch.manual_seed(4)
    a, b = torch.randn(2, 256), torch.randn(256, 2)
    for name in ("lora_unet_blocks_0_self_attn_q", "transformer.blocks.0.attn1.to_q"):
        save_file({f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}, tmp_path / "x.safetensors")
        models = [
            load_transformer(
                source(wan_home, generator=wan_home / g, loras=(Lora(tmp_path / "x.safetensors"),)), single
            )
            for g in ("diffusers", "self_forcing.pt")
        ]
        plain = load_transformer(source(wan_home), single)
        for (key, x), y in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
            assert torch.equal(x, y)
            assert torch.equal(x, plain.state_dict()[key]) == (key != "blocks.0.self_attn.q.weight"), key


KINDS = {
    "DoRA": {"base_model.model.blocks.0.self_attn.q.lora_magnitude_vector": (64,)},
    "LoHa": {"lora_unet_blocks_0_self_attn_q.hada_w1_a": (64, 2)},
    "LoKr": {"lora_unet_blocks_0_self_attn_q.lokr_w1": (8, 8)},
    "whole weights": {"diffusion_model.blocks.0.self_attn.q.set_weight": (64, 64)},
    "LoCon": {"lora_unet_patch_embedding.lora_mid.weight": (2, 2, 1, 1, 1)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_merged_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / "x.safetensors", more={k: torch.ones(shape) for k, shape in KINDS[kind].items()})
    with pytest.raises(UserError, match=kind):
        merge_loras(state(), (Lora(file),))


CONFIGS = {
    "use_dora": ({"use_dora": True, "r": 2, "lora_alpha": 4}, "DoRA"),
    "peft_type": ({"peft_type": "LOHA"}, "LOHA"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4", "r": 2, "lora_alpha": 4}, "pissa_niter_4"),
    "alpha": ({"r": 2, "lora_alpha": "four"}, "lora_alpha 'four'"),
    "rank": ({"r": 3, "lora_alpha": 4}, "rank 3 for .*have 2"),
    "pattern": ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"(": 3}}, "no regular expression"),
    "list": ([1], "expected an object"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_adapter_configs_that_are_refused(tmp_path: Path, case: str) -> None:
    file = write(tmp_path / "x.safetensors", "PEFT")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIGS[case][0]))
    with pytest.raises(UserError, match=CONFIGS[case][1]):
        merge_loras(state(), (Lora(file),))


def test_a_lora_of_something_else(tmp_path: Path) -> None:
    def pair(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        return {f"{name}.lora_A.weight": torch.zeros(2, columns), f"{name}.lora_B.weight": torch.zeros(rows, 2)}

    many = {k: v for i in range(300) for k, v in pair(f"blocks.{i + 9}.ffn.0", 96, 64).items()}
    good, file = pair(Q, 64, 64), tmp_path / "x.safetensors"
    for change, words in (
        (pair("blocks.9.ffn.0", 64, 64), "blocks.9.ffn.0.weight: not in the model"),
        ({"blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 64)}, "one half"),
        (pair(Q, 64, 63), r"\[64, 2\].\[2, 63\] for \[64, 64\]"),
        ({"something": torch.zeros(1)}, "unexpected something"),
        (many, "and 292 more"),
        ({f"lora_te_layer_{i}.lora_down.weight": torch.zeros(1) for i in range(300)}, "and 292 more"),
        ({f"diffusion_model.{Q}.diff_b": torch.zeros(3)}, r"q.bias: \[3\] for \[64\]"),
        ({f"{Q}.alpha": torch.zeros(2)}, "expected one number"),
        ({f"{K}.alpha": torch.ones(())}, "without a pair"),
        ({f"diffusion_model.{Q}.lora_A.weight": torch.ones(2, 64)}, "twice"),
        ({f"{Q}.lora_B.weight": torch.full((64, 2), torch.inf)}, "not finite"),
    ):  # fmt: skip
        save_file(good | change, file)
        with pytest.raises(UserError, match=words) as caught:
            dict(merge_loras(state(), (Lora(file),)))  # merged when they are asked for
        assert len(str(caught.value)) < 1200


def test_what_the_option_says(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    odd = tmp_path / "b:0.5"
    odd.write_bytes(b"")
    file.write_bytes(b"")
    assert parse_lora(str(file)) == Lora(file)
    assert parse_lora(f"{file}:0.8") == Lora(file, 0.8)
    assert parse_lora(f"{file}:-1", 4.0) == Lora(file, -1.0, 4.0)
    assert parse_lora(str(odd)) == Lora(odd)
    assert parse_lora(f"{odd}:2") == Lora(odd, 2.0)
    assert parse_lora("C:\\loras\\x.safetensors") == Lora(Path("C:\\loras\\x.safetensors"))
    for wrong in ("nan", "inf", "strong"):
        with pytest.raises(UserError, match="strength"):
            parse_lora(f"{file}:{wrong}")
