"""The prompt bank: text embeddings made at export, so that no text encoder is needed on the edge."""

from __future__ import annotations

import unicodedata
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..engines.base import Backend, EngineOptions
from ..engines.bundle import Bundle
from ..engines.errors import UserError
from ..engines.ort import OrtBackend
from ..engines.text import key, quoted, tidy

Transition = Literal["swap", "smooth", "flush", "cut"]  # what becomes of the ring when the prompt changes
TRANSITIONS: tuple[Transition, ...] = ("swap", "smooth", "flush", "cut")
KEPT = 64  # free prompts whose embeddings are remembered
SUGGESTIONS, SURE = 5, 80  # prompts that a message names; likeness in percent from which one of them is what was meant
LONGEST = 500  # characters of a prompt that are compared


class FreeText:
    """The bundle's own text encoder: any text -> embedding. Loaded when it is first asked, into ONNX Runtime whatever the
    stream's backend is; needs `tokenizers`."""

    def __init__(self, bundle: Bundle, backend: Backend):
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UserError("a prompt that is not in the bank needs tokenizers: pip install tokenizers") from None
        assert bundle.manifest.tokenizer is not None
        if not isinstance(backend, OrtBackend):  # compiled engines leave the text encoder out: it runs once a prompt
            backend = OrtBackend(EngineOptions())
        self._tokenizer = Tokenizer.from_file(str(bundle.path / bundle.manifest.tokenizer.file))
        engine = backend.load(bundle, "text")
        self._buffers = {
            s.name: engine.device.zeros(s.shape, s.dtype) for s in (*engine.graph.inputs, *engine.graph.outputs)
        }
        inputs = {s.name: self._buffers[s.name] for s in engine.graph.inputs}
        self._run = engine.bind(inputs, {"text": self._buffers["text"]})

    def embedding(self, prompt: str) -> NDArray[np.float32]:
        """float32 [1, text_len, text_dim], zero rows behind the tokens."""
        rows = self._buffers["ids"].shape[1]
        ids = self._tokenizer.encode(prompt).ids
        if len(ids) > rows:  # as where it was exported: what is too long still has its end mark
            ids = [*ids[: rows - 1], ids[-1]]
        for name, values in (("ids", ids), ("mask", [1] * len(ids))):
            padded = np.zeros((1, rows), np.int64)
            padded[0, : len(ids)] = values
            self._buffers[name].write(padded)
        self._run()
        return self._buffers["text"].read()


class PromptBank:
    """Prompts of a bundle in the manifest's order, and their embeddings. With the bundle's own text encoder, any prompt."""

    def __init__(self, bundle: Bundle, backend: Backend | None = None):
        self._bundle, self._backend, self._shots = bundle, backend, bundle.manifest.shots
        self._encoder: FreeText | None = None
        self._free: dict[str, NDArray[np.float32]] = {}
        self.file = bundle.path / bundle.manifest.prompt_bank.file
        self.prompts = tuple(bundle.manifest.prompts)
        self._index = {key(prompt): prompt for prompt in reversed(self.prompts)}  # of equal ones, the first
        self._rows, self._dim = bundle.manifest.network.text_len, bundle.manifest.network.text_dim
        try:
            self._bank = load_file(self.file)
        except SafetensorError as error:
            raise UserError(f"{self.file}: not a safetensors file: {error}") from None
        for prompt in self.prompts:
            shape = self._bank[prompt].shape if prompt in self._bank else None
            if shape is None or len(shape) != 2 or shape[0] > self._rows or shape[1] != self._dim:
                found = "nothing" if shape is None else f"shape {list(shape)}"
                raise UserError(
                    f"{self.file}: prompt {prompt!r}: found {found}, expected [up to {self._rows}, {self._dim}]"
                )

    def begins_shot(self, prompt: str) -> bool:
        """Whether the prompt has the prefix by which the bundle's model knows the first chunk of a shot."""
        return self.of_shot(prompt) != prompt

    def of_shot(self, prompt: str) -> str:
        """Without that prefix."""
        return self._shots.without(prompt) if self._shots is not None else prompt

    def spelled(self, prompt: str) -> str:
        """As a stream will say it, whether the bank has it or a text encoder takes it."""
        plain = self.of_shot(prompt)
        return self._index.get(key(plain)) or free_words(plain)

    def shot_embedding(self, prompt: str) -> NDArray[np.float32]:
        """As `embedding`, of a prompt behind that prefix. Raises UserError where nothing here can make it."""
        assert self._shots is not None
        whole = self._shots.prefix + prompt
        if whole in self._bank:
            return self._padded(self._bank[whole])
        if self._backend is not None and "text" in self._bundle.manifest.graphs:
            return self._free[self._encode(whole)]
        raise UserError(
            f"{self.file}: prompt {quoted(prompt)} is not there as the first of a shot, behind {self._shots.prefix!r}; "
            "everframe prompts add puts both in"
        )

    def find(self, prompt: str, shot: bool = False) -> str:
        """The bank's own spelling of prompt (case, blanks and the form of accents don't matter); where the bundle has its
        text encoder, a prompt that is not in the bank is encoded here. Without the prefix of shots, if it has that; with
        shot, it must be there behind that prefix too. Raises UserError naming the nearest."""
        whole, prompt = prompt, self.of_shot(prompt)
        # Banks of before may hold one with the prefix alone.
        known = self._index.get(key(prompt), self._index.get(key(whole)))
        if known is not None:
            if shot and self._shots is not None:
                self.shot_embedding(known)
            return known
        if not free_words(prompt):
            raise UserError("prompt: is empty; expected one of the bundle's prompt bank")
        if self._backend is not None and "text" in self._bundle.manifest.graphs:
            return self._encode(free_words(prompt))
        raise UserError(
            f"prompt {quoted(prompt)} is not in the bundle's prompt bank of {len(self.prompts)}; {self._nearest(prompt)}"
        )

    def change(self, prompt: str, transition: Transition) -> tuple[str, Transition]:
        """A change as a stream makes it: the bank's own spelling, and a cut where the prompt begins a shot by its prefix.
        Raises UserError as `find` does."""
        begins = self.begins_shot(prompt)
        return self.find(prompt, shot=begins or transition == "cut"), "cut" if begins else transition

    def _nearest(self, prompt: str) -> str:
        """The prompts that look most like this one, best first."""
        wanted, keys = key(prompt)[:LONGEST], list(self._index)
        found = process.extract(wanted, keys, scorer=fuzz.ratio, limit=SUGGESTIONS)
        near = [quoted(self._index[match]) for match, score, _ in found]
        sure = bool(found) and found[0][1] >= SURE
        return (f"did you mean {near[0]}? " if sure else "") + f"nearest: {'; '.join(near)}"

    def embedding(self, prompt: str) -> NDArray[np.float32]:
        """Embedding of a prompt that `find` finds, zero rows after its tokens: float32 [1, text_len, text_dim]. Free text
        is encoded again where it is not remembered, as that of a saved state or one before many others is not."""
        known = self.find(prompt)
        return self._free[known] if known in self._free else self._padded(self._bank[known])

    def _padded(self, rows: NDArray) -> NDArray[np.float32]:
        out = np.zeros((1, self._rows, self._dim), np.float32)
        out[0, : len(rows)] = rows
        return out

    def _encode(self, prompt: str) -> str:
        if prompt not in self._free:
            if self._encoder is None:
                assert self._backend is not None
                self._encoder = FreeText(self._bundle, self._backend)
            while len(self._free) >= KEPT:
                del self._free[next(iter(self._free))]
            self._free[prompt] = self._encoder.embedding(prompt)
        return prompt


def free_words(text: str) -> str:
    """Any text as one line. Raises UserError for a control character that is no blank: nobody means one, and a terminal or
    a log would obey it."""
    words = tidy(text)
    if any(unicodedata.category(letter) == "Cc" for letter in words):
        raise UserError(f"prompt {quoted(words)}: has a control character")
    return words


def check_transition(transition: str) -> None:
    """Raises UserError."""
    if transition not in TRANSITIONS:
        raise UserError(f"transition {transition!r}: expected one of {', '.join(TRANSITIONS)}")
