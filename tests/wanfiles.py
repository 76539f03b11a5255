"""A small random checkpoint of the Wan family, as a user downloads it, in every published layout."""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false
# (diffusers' types do not tell what its calls return)
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from everframe.export.families import MEAN_22, STD_22
from everframe.export.names import public_names, vae_names
from everframe.export.taehv import Taehv, TaehvConfig
from everframe.export.wanexport import WanSource
from everframe.export.wanvae import WanVae

WAN_PROMPTS = ["a quiet sea", "snow falling on a quiet city"]


def write_wan_files(folder: Path) -> Path:
    """A generator, VAEs, a text encoder and a prompt file."""
    torch.manual_seed(0)
    theirs = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=16,
        ffn_dim=64,
        num_layers=2,
    )
    theirs.save_pretrained(folder / "diffusers")
    state = {k: v.clone() for k, v in public_names(theirs.state_dict()).items()}
    wrapped = {f"model._fsdp_wrapped_module.{k}": v for k, v in state.items()}
    other = {f"model.{k}": v + 1 for k, v in state.items()}
    torch.save({"generator": other, "generator_ema": wrapped, "step": 7}, folder / "self_forcing.pt")
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    (folder / "sharded").mkdir()
    places = {k: f"diffusion_pytorch_model-0000{1 + i % 2}-of-00002.safetensors" for i, k in enumerate(state)}
    for name in set(places.values()):
        save_file({k: v for k, v in state.items() if places[k] == name}, folder / "sharded" / name)
    index = folder / "sharded" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    vae = AutoencoderKLWan(base_dim=8)
    vae.save_pretrained(folder / "vae")
    torch.save(vae_names(vae.state_dict()), folder / "Wan2.1_VAE.pth")
    tiny = Taehv(TaehvConfig(encoder_widths=(8, 8, 8), decoder_widths=(16, 8, 8, 8)))
    torch.save(tiny.state_dict(), folder / "taew2_1.pth")
    words = sorted({w for p in WAN_PROMPTS for w in p.split()})
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = UMT5Config(vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    encoder = UMT5EncoderModel(config).eval()
    encoder.save_pretrained(folder / "text" / "text_encoder")
    fast.save_pretrained(folder / "text" / "tokenizer")
    (folder / "prompts.txt").write_text(f"# two prompts\n{WAN_PROMPTS[0]}\n\n  {WAN_PROMPTS[1]} \n")
    return folder


def wan22_vae(base_dim: int, decoder_base_dim: int) -> AutoencoderKLWan:
    """diffusers' VAE of Wan2.2-TI2V-5B, as its config.json makes it, but for the widths."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        temperal_downsample=[False, True, True],
        latents_mean=list(MEAN_22),
        latents_std=list(STD_22),
    )


def write_wan22_files(folder: Path, wan_home: Path) -> Path:
    """A generator in LongLive 2.0's layout, the 5B's VAEs, and the text encoder of the other files."""
    torch.manual_seed(1)
    theirs = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=48,
        out_channels=48,
        text_dim=32,
        freq_dim=16,
        ffn_dim=64,
        num_layers=2,
    )
    state = {k: v.clone() for k, v in public_names(theirs.state_dict()).items()}
    torch.save({"generator": {f"model.{k}": v for k, v in state.items()}}, folder / "longlive2.pt")
    vae = wan22_vae(base_dim=8, decoder_base_dim=8)
    vae.save_pretrained(folder / "vae")
    torch.save(vae_names(vae.state_dict()), folder / "Wan2.2_VAE.pth")
    tiny = Taehv(TaehvConfig(48, (8, 8, 8), (16, 8, 8, 8), patch=2))
    torch.save(tiny.state_dict(), folder / "taew2_2.pth")
    (folder / "text").symlink_to(wan_home / "text")
    (folder / "prompts.txt").write_bytes((wan_home / "prompts.txt").read_bytes())
    return folder


def source22(home: Path, **changes) -> WanSource:
    """Chunks of two frames, in a window of four of them."""
    given = {
        "generator": home / "longlive2.pt",
        "vae": home / "Wan2.2_VAE.pth",
        "text_encoder": str(home / "text"),
        "prompts": home / "prompts.txt",
        "size": "96x64",
        "chunk": 2,
        "window": 8,
        "sink": 2,
        "precision": "fp32",
    }
    return WanSource(**(given | changes))


def source(home: Path, **changes) -> WanSource:
    given = {
        "generator": home / "self_forcing.pt",
        "vae": home / "Wan2.1_VAE.pth",
        "text_encoder": str(home / "text"),
        "prompts": home / "prompts.txt",
        "size": "48x32",
        "precision": "fp32",
    }
    return WanSource(**(given | changes))


def encoded(vae: WanVae, clip: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    """Piece by piece, each with the states that the one before it left."""
    states, parts = None, []
    for i, piece in enumerate(clip.split(pieces, 2)):
        latents, states = vae.encode(piece, states, first=i == 0)
        parts.append(latents)
    return torch.cat(parts, 2)
