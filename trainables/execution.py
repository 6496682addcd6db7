"""Settings of how a training is computed: they change its speed and rounding, not its definition.

Used by the configuration, the executors and the training loop.
"""

import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

# Forward passes of a complete training above which a minute of compilation pays off.
MIN_COMPILE_PASSES = 20_000
# TorchInductor needs one of these.
COMPILERS = ("g++", "gcc", "clang++", "c++")

Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Execution:
    """Execution settings for one machine; ``auto`` enables a setting where it helps.

    Attributes:
        precision: of the forward pass; ``auto`` is bf16 autocast on a GPU that supports it, float32
            otherwise.
        channels_last: memory layout of weights and images.
        compile: ``torch.compile`` of the network. Compilation takes a minute before the first step,
            so ``auto`` requires a GPU and a long training. The length is that of the complete
            training, not of the remaining part, because a resumed training must make the same
            choice. On a CPU, compiled networks were measured to be slower.
        fused: optimizer steps over flat buffers instead of tensor by tensor, with torch's fused
            kernels where they exist.
        autotune: cuDNN benchmarks its kernels on the first step and keeps the fastest.
        pinned: page-locked batches, which are copied to a GPU without blocking the host.
        loader_workers: processes that prepare images (threads for images that need no Python).
        checkpoint_every_steps: write a checkpoint every N optimizer steps, in addition to one per
            epoch; 0 is one per epoch only.
    """

    precision: Literal["auto", "float32", "bf16"] = "auto"
    channels_last: Switch = "auto"
    compile: Switch = "auto"
    fused: Switch = "auto"
    autotune: Switch = "auto"
    pinned: Switch = "auto"
    loader_workers: int = 0
    checkpoint_every_steps: int = 0

    def resolve(self, device: "torch.device", passes: int = 0) -> "ResolvedExecution":
        """Resolve ``auto`` for a device and a training of ``passes`` forward passes in total."""
        import torch

        gpu = device.type == "cuda"
        bf16 = (
            gpu and torch.cuda.is_bf16_supported()
            if self.precision == "auto"
            else self.precision == "bf16"
        )
        worthwhile = gpu and passes >= MIN_COMPILE_PASSES and any(map(shutil.which, COMPILERS))
        return ResolvedExecution(
            device=device.type,
            bf16=bf16,
            channels_last=self.channels_last != "off",
            compile=worthwhile if self.compile == "auto" else self.compile == "on",
            fused=self.fused != "off",
            autotune=gpu and self.autotune != "off",
            pinned=gpu and self.pinned != "off",
        )


@dataclass(frozen=True)
class ResolvedExecution:
    """Settings with every ``auto`` resolved."""

    device: str
    bf16: bool
    channels_last: bool
    compile: bool
    fused: bool
    autotune: bool
    pinned: bool

    @property
    def layout(self) -> "torch.memory_format":
        import torch

        return torch.channels_last if self.channels_last else torch.contiguous_format

    def to_json(self) -> dict[str, str | bool]:
        return asdict(self)
