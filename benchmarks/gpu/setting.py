"""Where a check runs and what it says."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from trainables.execution import Execution
from trainables.modules import pick_device

Verdict = Literal["PASS", "FAIL", "SKIPPED"]


class Skipped(Exception):  # noqa: N818 - a check's outcome
    """The check does not apply here; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Attributes:
        tiny: the least that still runs every line, for a CPU.
        scratch: a folder of the check's own.
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
        """What a training does here unless it is told otherwise."""
        return Execution().on(self.device).bf16

    def need_gpu(self, why: str) -> None:
        if not self.gpu:
            raise Skipped(f"needs a GPU: {why}")

    def pick(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        passed: None where there is nothing to judge by, as of a CPU's speed.
        figure: one line for people.
        figures: the same and more for programs.
    """

    passed: bool | None
    figure: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        return "FAIL" if self.passed is False else "PASS"
