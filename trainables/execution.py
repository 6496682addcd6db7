"""How a training is computed: its speed, and its bits in the last places, but no part of what is asked of it."""

import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

# Forward passes of a whole training from which a minute of compilation pays, and what TorchInductor needs.
COMPILE_FROM = 20_000
COMPILERS = ("g++", "gcc", "clang++", "c++")

Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Execution:
    """Settings of the machine at hand; ``auto`` is on where it helps there.

    Attributes:
        precision: of the forward pass; ``auto`` is bf16 autocast on a GPU that has it, float32 elsewhere.
        channels_last: memory layout of weights and images.
        compile: ``torch.compile`` of the network; it costs a minute before the first step, so ``auto`` wants a GPU and a long
            training (the whole of it, not what is left: a resumed one must do the same). On a CPU it was measured slower.
        fused: optimizer steps over flat buffers, by torch's fused kernels where there is one, instead of tensor by tensor.
        autotune: cuDNN tries its kernels on the first step and keeps the fastest.
        pinned: page-locked batches, which a GPU fetches without the host waiting.
        loader_workers: processes (or threads, where images need no Python) that prepare images.
        checkpoint_every_steps: a checkpoint after so many optimizer steps of an epoch too; 0 is one an epoch.
    """

    precision: Literal["auto", "float32", "bf16"] = "auto"
    channels_last: Switch = "auto"
    compile: Switch = "auto"
    fused: Switch = "auto"
    autotune: Switch = "auto"
    pinned: Switch = "auto"
    loader_workers: int = 0
    checkpoint_every_steps: int = 0

    def on(self, device: "torch.device", passes: int = 0) -> "Chosen":
        """What the settings mean on a device, for a training of so many forward passes in all."""
        import torch

        gpu = device.type == "cuda"
        bf16 = (
            gpu and torch.cuda.is_bf16_supported()
            if self.precision == "auto"
            else self.precision == "bf16"
        )
        pays = gpu and passes >= COMPILE_FROM and any(map(shutil.which, COMPILERS))
        return Chosen(
            device=device.type,
            bf16=bf16,
            channels_last=self.channels_last != "off",
            compile=pays if self.compile == "auto" else self.compile == "on",
            fused=self.fused != "off",
            autotune=gpu and self.autotune != "off",
            pinned=gpu and self.pinned != "off",
        )


@dataclass(frozen=True)
class Chosen:
    """Settings with every ``auto`` decided."""

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
