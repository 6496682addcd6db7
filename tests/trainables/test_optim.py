"""The average and the micro-batch statistics against their plain definitions."""

from typing import Any

import pytest
import torch
from torch import nn

from trainables.optim import OPTIMIZERS, Average, MicroBatchStatistics, make_optimizer
from trainables.recipe import get_recipe


def _net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))


def test_average_is_the_plain_definition() -> None:
    net = _net()
    average = Average(net)
    plain = {k: v.clone() for k, v in net.state_dict().items() if v.is_floating_point()}
    for step in range(5):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        net(torch.randn(2, 3, 8, 8))
        decay = 0.5 + step / 20
        average.update(decay)
        plain = {k: decay * v + (1 - decay) * net.state_dict()[k] for k, v in plain.items()}
    for key, value in plain.items():
        torch.testing.assert_close(average.state[key], value)


def test_swap_twice_is_nothing() -> None:
    net = _net()
    average = Average(net)
    with torch.no_grad():
        net[0].weight.add_(1.0)
    own, mean = net[0].weight.clone(), average.state["0.weight"].clone()
    average.swap()
    assert torch.equal(net[0].weight, mean)
    average.swap()
    assert torch.equal(net[0].weight, own)
    assert torch.equal(average.state["0.weight"], mean)


def test_statistics_are_the_mean_over_micro_batches() -> None:
    net = _net().train()
    batches = [torch.randn(4, 3, 8, 8) + i for i in range(3)]
    start = net[1].running_mean.clone()
    conv = [net[0](b) for b in batches]
    expected = torch.stack([0.9 * start + 0.1 * c.mean((0, 2, 3)) for c in conv]).mean(0)
    statistics = MicroBatchStatistics(net)
    statistics.begin()
    for batch in batches:
        net(batch)
        statistics.collect()
    statistics.finish(3, lambda t: t)
    torch.testing.assert_close(net[1].running_mean, expected)


def test_weight_decay_spares_vectors() -> None:
    groups = make_optimizer(get_recipe("short", weight_decay=0.1), _net()).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_steps(name: str) -> None:
    net = _net()
    optimizer = make_optimizer(get_recipe("short", optimizer=name), net)
    before = net[0].weight.clone()
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


def test_rmsprop_the_tensorflow_way() -> None:
    """Mean square from one, eps inside the root, the learning rate inside the momentum: ten steps by hand."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = OPTIMIZERS["rmsprop_tf"]([weight], 0.048)
    value, square, momentum = weight.detach().clone(), torch.ones(1, 2), torch.zeros(1, 2)
    for step in range(10):
        gradient = torch.tensor([[0.3 * (step + 1), -0.1]])
        weight.grad = gradient.clone()
        optimizer.step()
        square += 0.1 * (gradient**2 - square)
        momentum = 0.9 * momentum + 0.048 * gradient / (square + 1e-3).sqrt()
        value -= momentum
        torch.testing.assert_close(weight.detach(), value)


def test_a_network_without_batch_norm_has_no_statistics() -> None:
    statistics = MicroBatchStatistics(nn.Linear(2, 2))
    statistics.begin()
    statistics.collect()
    statistics.finish(1, lambda flat: flat)
