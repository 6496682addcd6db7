"""Checks of built modules, shared by the tests of the ResNet and GhostNet families."""

import timm
import torch
from torch import nn

from search_spaces import SearchSpace


def assert_matches_timm(module: nn.Module, name: str) -> None:
    """Check that timm's weights load strictly and that the outputs are bit-identical."""
    torch.manual_seed(0)
    reference = timm.create_model(name).eval()
    # The last gain of a new timm block is 0, so the block would not affect the output.
    state = {
        key: tensor + 0.1 * torch.rand_like(tensor) if tensor.ndim == 1 else tensor
        for key, tensor in reference.state_dict().items()
    }
    reference.load_state_dict(state)
    module.eval().load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = module(images)
        assert logits.isfinite().all()
        assert torch.equal(logits, reference(images))


def assert_every_parameter_gets_a_gradient(
    space: SearchSpace, rdw: tuple[float, float, float]
) -> None:
    """Check a training step with dropout and stochastic depth."""
    torch.manual_seed(0)
    module = space.network(rdw, num_classes=5).build(drop_rate=0.2, drop_path_rate=0.1)
    module.train()(torch.randn(8, 3, 33, 33)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
