"""What the tests of several families ask of a module."""

import timm
import torch
from torch import nn

from search_spaces import SearchSpace


def assert_computes_what_timms_does(ours: nn.Module, name: str) -> None:
    """timm's weights load strictly, and the outputs are equal to the bit."""
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    # A fresh block of timm's adds nothing: its last gain is 0.
    state = {
        key: tensor + 0.1 * torch.rand_like(tensor) if tensor.ndim == 1 else tensor
        for key, tensor in theirs.state_dict().items()
    }
    theirs.load_state_dict(state)
    ours.eval().load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = ours(images)
        assert logits.isfinite().all()
        assert torch.equal(logits, theirs(images))


def assert_a_backward_pass_reaches_every_parameter(
    space: SearchSpace, rdw: tuple[float, float, float]
) -> None:
    """With dropout and stochastic depth on."""
    torch.manual_seed(0)
    module = space.network(rdw, num_classes=5).build(drop_rate=0.2, drop_path_rate=0.1)
    module.train()(torch.randn(8, 3, 33, 33)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
