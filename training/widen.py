"""Start an autoencoder: from nothing, or from a narrower one whose function it keeps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from everframe.export.taehv import MemBlock, Taehv, TGrow, TPool


def initialise(ae: Taehv) -> None:
    """MemBlocks start as the identity, everything between them as an orthogonal map."""
    for block in (*ae.encoder, *ae.decoder):
        if isinstance(block, MemBlock):
            first, second, last = block.conv[0], block.conv[2], block.conv[4]
            for c in (first, second):
                nn.init.kaiming_normal_(c.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            for c in (first, second, last):
                nn.init.zeros_(c.bias)  # type: ignore[arg-type]
        elif isinstance(block, TPool | TGrow):
            nn.init.orthogonal_(block.conv.weight)
        elif isinstance(block, nn.Conv2d):
            nn.init.orthogonal_(block.weight, gain=1.4)
            if block.bias is not None:
                nn.init.zeros_(block.bias)


@torch.no_grad()
def widen(ae: Taehv, narrow: Mapping[str, Tensor]) -> None:
    """Put a narrower autoencoder's weights into an initialised wider one, which then computes the same.

    The old channels come first and read nothing of the new ones; the new ones start as they were initialised. Where a
    convolution reads several frames side by side (MemBlock, TPool) or makes several (TGrow), that holds in each of them.
    """
    groups = frames_of(ae)
    for name, wide in ae.state_dict().items():
        old = narrow[name].float()
        if name.endswith("bias"):
            wide[: len(old)] = old
            continue
        read, made = groups.get(name.removesuffix(".weight"), (1, 1))
        rows, columns = indices(len(old), len(wide), made), indices(old.shape[1], wide.shape[1], read)
        new = torch.zeros(len(rows), *wide.shape[1:])
        new[:, columns] = old
        wide[rows] = new.to(wide.device)


def indices(old: int, new: int, parts: int) -> Tensor:
    """Where the old channels stand among the new ones: first in each of `parts` equal parts."""
    return torch.cat([torch.arange(old // parts) + k * (new // parts) for k in range(parts)])


def frames_of(ae: Taehv) -> dict[str, tuple[int, int]]:
    """Convolution's name -> how many frames stand side by side in its input and in its output."""
    found = {}
    for name, block in ae.named_modules():
        if isinstance(block, MemBlock):
            found[f"{name}.conv.0"] = 2, 1
        elif isinstance(block, TPool):
            found[f"{name}.conv"] = block.stride, 1
        elif isinstance(block, TGrow):
            found[f"{name}.conv"] = 1, block.stride
    return found
