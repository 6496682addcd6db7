"""Weights for a built network: from a file, or timm's published ones from the hub."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def load_weights(module: "torch.nn.Module", source: str | Path) -> None:
    """Load weights into a module, every parameter and buffer by its name."""
    raise NotImplementedError(source)
