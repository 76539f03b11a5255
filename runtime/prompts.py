"""The prompt bank: text embeddings made at export, so that no text encoder is needed on the edge."""

from __future__ import annotations

import difflib

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..engines.bundle import Bundle
from ..engines.errors import UserError


class PromptBank:
    """Prompts of a bundle in the manifest's order, and their embeddings."""

    def __init__(self, bundle: Bundle):
        self.file = bundle.path / bundle.manifest.prompt_bank.file
        self.prompts = tuple(bundle.manifest.prompts)
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

    def find(self, prompt: str) -> str:
        """The bank's own spelling of prompt (case and outer blanks don't matter). Raises UserError listing the prompts."""
        wanted = prompt.strip().casefold()
        for known in self.prompts:
            if known.casefold() == wanted:
                return known
        near = difflib.get_close_matches(wanted, [p.casefold() for p in self.prompts], 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        listing = "; ".join(self.prompts)
        raise UserError(f"prompt {prompt!r} is not in the bundle's prompt bank{hint}; there are: {listing}")

    def embedding(self, prompt: str) -> NDArray[np.float32]:
        """Embedding of a prompt of the bank, zero rows after its tokens: float32 [1, text_len, text_dim]."""
        rows = self._bank[self.find(prompt)]
        out = np.zeros((1, self._rows, self._dim), np.float32)
        out[0, : len(rows)] = rows
        return out
