"""User-defined spaces whose networks hang, raise an error or kill their process when built."""

import os
import signal
import time
from typing import Any

import torch

from search_spaces import Network, get_space
from search_spaces.efficientnet import EfficientNetSpace


class MiniSpace(EfficientNetSpace):
    def __init__(self) -> None:
        table: Any = get_space("efficientnet_mini").table  # type: ignore[attr-defined]
        super().__init__(table)


class Deadly(MiniSpace):
    """Resolutions divisible by three kill the process, as the kernel does without free memory."""

    def build(self, network: Network, **options: Any) -> torch.nn.Module:
        if network.resolution % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().build(network, **options)


class Unruly(MiniSpace):
    """Resolutions raise an error, hang or work, depending on their remainder modulo three."""

    def build(self, network: Network, **options: Any) -> torch.nn.Module:
        if network.resolution % 3 == 0:
            raise ValueError(f"{network.resolution} pixels are not supported")
        if network.resolution % 3 == 1:
            time.sleep(3600)
        return super().build(network, **options)
