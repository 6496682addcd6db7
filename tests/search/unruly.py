"""Users' own spaces: of one some networks hang while they are built, and some raise; of another some end their process."""

import os
import signal
import time
from typing import Any

import torch

from search_spaces import Network, get_space
from search_spaces.efficientnet import EfficientNetSpace


class Own(EfficientNetSpace):
    def __init__(self) -> None:
        table: Any = get_space("efficientnet_mini").table  # type: ignore[attr-defined]
        super().__init__(table)


class Deadly(Own):
    """Of three pixels in a row one ends the process, as the kernel does where memory runs out."""

    def build(self, network: Network, **options: Any) -> torch.nn.Module:
        if network.resolution % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().build(network, **options)


class Unruly(Own):
    """Of three pixels in a row one hangs and one raises."""

    def build(self, network: Network, **options: Any) -> torch.nn.Module:
        if network.resolution % 3 == 0:
            raise ValueError(f"{network.resolution} pixels are not to my taste")
        if network.resolution % 3 == 1:
            time.sleep(3600)
        return super().build(network, **options)
