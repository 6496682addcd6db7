"""Flat buffers, optimizers, the average and a step's sums against reference implementations."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import get_space
from trainables.optim.flat import FlatBuffers
from trainables.optim.optimizers import (
    OPTIMIZERS,
    Average,
    StepSums,
    float_state,
    make_optimizer,
    set_lr,
)
from trainables.optim.state import optimizer_state, restore_optimizer
from trainables.recipe import RECIPES, Recipe, get_recipe, lr_at

pytestmark = pytest.mark.quick


def _net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )


def _mini() -> nn.Module:
    torch.manual_seed(0)
    return (
        get_space("efficientnet_mini")
        .network((0.4, 0.4, 0.5), 24)
        .build()
        .to(memory_format=torch.channels_last)
    )  # type: ignore[call-overload]


def _gradients(model: nn.Module, steps: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        [torch.randn(p.shape, generator=generator) * 0.1 for p in model.parameters()]
        for _ in range(steps)
    ]


def test_a_model_on_flat_buffers_is_unchanged() -> None:
    """Outputs, gradients and strides are the same as those of a module with its own tensors."""
    plain, model = _mini().train(), _mini().train()
    flat = FlatBuffers(model)
    images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    for module in (plain, model):
        module(images).square().sum().backward()
    for (name, a), b in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert a.stride() == b.stride()
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=1e-6)
    weights, vectors = flat.pieces()
    assert sum(p.numel() for p in (*weights, *vectors)) == len(flat.parameters)
    assert sum(int((p != 0).sum()) for p in weights) == sum(
        int((p != 0).sum()) for p in model.parameters() if p.ndim > 1
    )
    flat.gradients.zero_()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    flat.parameters.fill_(2.0)
    assert all((p == 2).all() for p in model.parameters())


def _reference_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """timm's RMSpropTF or torch's SGD with the settings of section 4.1, on the parameters."""
    from timm.optim.rmsprop_tf import RMSpropTF

    groups: Any = [
        {
            "params": [p for p in model.parameters() if p.ndim > 1],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.4, momentum=0.9, foreach=False)
    return RMSpropTF(groups, lr=0.048, alpha=0.9, momentum=0.9, eps=1e-3)


@pytest.mark.parametrize("name", ["efficientnet", "resnet"])
@pytest.mark.parametrize("fused", [True, False])
def test_first_ten_steps_match_timm_and_torch(name: str, fused: bool) -> None:
    """Section 4.1's optimizers on a real network during warm-up: equal weights after every step."""
    recipe = replace(RECIPES[name], schedule="cosine", epochs=10, warmup_epochs=4)
    tested_model, reference_model = _mini(), _mini()
    flat = FlatBuffers(tested_model)
    tested = make_optimizer(recipe, tested_model, flat if fused else None)
    reference = _reference_optimizer(recipe, reference_model)
    for step, gradients in enumerate(_gradients(tested_model, 10)):
        for model in (tested_model, reference_model):
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = (
                    gradient.clone() if parameter.grad is None else parameter.grad.copy_(gradient)
                )
        for optimizer in (tested, reference):
            set_lr(optimizer, lr_at(recipe, step, 1))
            optimizer.step()
        pairs = zip(tested_model.named_parameters(), reference_model.parameters(), strict=True)
        for (key, a), b in pairs:
            torch.testing.assert_close(
                a, b, rtol=2e-6, atol=1e-7, msg=lambda m, k=key, s=step: f"step {s}, {k}: {m}"
            )


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizer_state_can_be_loaded_with_and_without_flat_buffers(name: str) -> None:
    """Each form loads the other's state by parameter name, and the next step is the same."""
    recipe = get_recipe("short", optimizer=name, weight_decay=0.01)
    models = [_mini(), _mini()]
    flats = [FlatBuffers(model) for model in models]
    forms = [flats[0], None]
    optimizers = [
        make_optimizer(recipe, model, form) for model, form in zip(models, forms, strict=True)
    ]
    gradients = _gradients(models[0], 3)
    for turn, gradient in enumerate(gradients):
        for model, optimizer in zip(models, optimizers, strict=True):
            for parameter, value in zip(model.parameters(), gradient, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(value)
            optimizer.step()
        if turn == 1:
            states = [
                optimizer_state(o, f, m) for o, f, m in zip(optimizers, forms, models, strict=True)
            ]
            assert states[0][0].keys() == states[1][0].keys()
            assert states[0][1] == states[1][1]
            for i in (0, 1):
                restore_optimizer(optimizers[i], forms[i], models[i], *states[1 - i])
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


def test_average_matches_its_definition() -> None:
    net = _net()
    average = Average(net, FlatBuffers(net))
    plain = {k: v.clone() for k, v in net.state_dict().items() if v.is_floating_point()}
    for step in range(5):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        net(torch.randn(2, 3, 8, 8))
        decay = 0.5 + step / 20
        average.update(decay)
        plain = {k: decay * v + (1 - decay) * net.state_dict()[k] for k, v in plain.items()}
    assert average.state().keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(average.state()[key], value)


def test_applied_average_is_removed_on_exit() -> None:
    net = _net()
    average = Average(net, FlatBuffers(net))
    start = {k: v.clone() for k, v in float_state(net).items()}
    with torch.no_grad():
        net[0].weight.add_(1.0)
    with average.applied():
        assert all(torch.equal(v, start[k]) for k, v in float_state(net).items())
    assert torch.equal(net[0].weight, start["0.weight"] + 1)
    average.load({k: v + 5 for k, v in start.items()})
    assert torch.equal(net[0].weight, start["0.weight"] + 1)
    assert torch.equal(average.state()["1.running_var"], start["1.running_var"] + 5)


def test_statistics_and_loss_are_means_over_micro_batches() -> None:
    net = _net().train()
    flat = FlatBuffers(net)
    batches = [torch.randn(4, 3, 8, 8) + i for i in range(3)]
    start = net[1].running_mean.clone()
    conv = [net[0](b) for b in batches]
    expected = torch.stack([0.9 * start + 0.1 * c.mean((0, 2, 3)) for c in conv]).mean(0)
    sums = StepSums(flat.statistics, 3)
    sums.begin()
    for loss, batch in enumerate(batches):
        net(batch)
        sums.collect(torch.tensor(float(loss)))
    assert sums.finish(lambda t: t).item() == 1.0
    torch.testing.assert_close(net[1].running_mean, expected)


def test_weight_decay_excludes_vectors() -> None:
    net = _net()
    for flat in (None, FlatBuffers(net)):
        groups = make_optimizer(get_recipe("short", weight_decay=0.1), net, flat).param_groups
        assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
        # 4 x 27 and 2 x 36 weights, each aligned to 16 floats; six vectors of 4 or 2 floats.
        assert [sum(p.numel() for p in g["params"]) for g in groups] == (
            [108 + 72, 18] if flat is None else [112 + 80, 96]
        )


def test_rmsprop_matches_tensorflow() -> None:
    """Ten steps computed here: mean square starts at one, eps in the root, rate in the momentum."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = OPTIMIZERS["rmsprop_tf"]([weight], 0.048, True)
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
    net = nn.Linear(2, 2)
    sums = StepSums(FlatBuffers(net).statistics, 2)
    sums.begin()
    sums.collect(torch.tensor(3.0))
    sums.collect(torch.tensor(1.0))
    assert sums.finish(lambda flat: flat).item() == 2.0


@pytest.mark.slow
def test_compiled_training_matches_up_to_rounding() -> None:
    """A compiled module on flat buffers draws the same dropout masks and ends in the same state."""
    from trainables.modules import compile_module

    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(8 * 36, 5),
        )
        return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    states = []
    for transform in (lambda model: model, compile_module):
        model = build().train()
        flat = FlatBuffers(model)
        optimizer, forward = make_optimizer(get_recipe("short"), model, flat), transform(model)
        for step in range(3):
            torch.manual_seed(step)
            forward(torch.randn(4, 3, 8, 8)).square().sum().backward()
            optimizer.step()
            flat.gradients.zero_()
        states.append(float_state(model))
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)
