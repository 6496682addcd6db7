"""The setting of a GPU check and its outcome.

The checks in ``speed`` and ``training`` use them, and ``benchmarks.gpu.check`` creates them.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from trainables.execution import Execution
from trainables.modules import pick_device

Verdict = Literal["PASS", "FAIL", "SKIPPED"]


class Skipped(Exception):  # noqa: N818 - a check's outcome
    """The check does not apply in this setting; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Attributes:
        tiny: whether to use the smallest sizes that still execute every line, for a CPU.
        scratch: a temporary folder for the check.
    """

    tiny: bool
    scratch: Path

    @cached_property
    def device(self) -> torch.device:
        return pick_device()

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def bf16(self) -> bool:
        """Whether training on this device uses bf16 by default."""
        return Execution().resolve(self.device).bf16

    def need_gpu(self, reason: str) -> None:
        if not self.gpu:
            raise Skipped(f"needs a GPU: {reason}")

    def pick(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check.

    Attributes:
        passed: None if there is no criterion, such as for the speed of a CPU.
        figure: one line of text.
        figures: the measured values in machine-readable form.
    """

    passed: bool | None
    figure: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        return "FAIL" if self.passed is False else "PASS"
