"""Export a network to ONNX and run it in ONNX Runtime.

    python examples/export_onnx.py [DIRECTORY]

The weights are random in this example. Pass ``weights="tinynet_e.in1k"`` to use timm's, or the
folder of a trial as the network to use the trial's own.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from search_spaces.networks import get_named
from tinynet_search.export import ExportRequest, export_network


def main(directory: str = "exported") -> None:
    folder = Path(directory)
    weights = folder / "random.pth"
    if not weights.exists():
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        torch.save(get_named("tinynet_e").network().build().state_dict(), weights)

    # The file is compared with torch before it is written.
    exported = export_network(
        ExportRequest("tinynet_e", "onnx", folder / "tinynet_e", weights=str(weights))
    )
    file = Path(exported.folder) / exported.written[0]
    print(f"wrote {file.name}, {file.stat().st_size / 1e6:.1f} MB")

    session = onnxruntime.InferenceSession(file)
    pixels = exported.config.network.resolution
    images = np.random.default_rng(0).random((2, 3, pixels, pixels), dtype=np.float32)
    logits = np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])
    print(f"{images.shape} images, {logits.shape} logits")


if __name__ == "__main__":
    main(*sys.argv[1:])
