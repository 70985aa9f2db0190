"""Muon and AdamW as one, against slow transcriptions of their equations."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from zipcli.models.local_unet import LocalUNet, LocalUNetConfig, build_local_unet
from zipcli.training.optimizer import SMALLEST_MATRIX, Optimizer, as_matrix

ORDERS = [torch.contiguous_format, torch.channels_last]


class Net(nn.Module):
    """One convolution of each kind, whose gradients are given from outside."""

    def __init__(self, order: torch.memory_format = torch.contiguous_format) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 24, 3)
        self.wide = nn.Conv2d(16, 18, 2)
        self.tall = nn.Conv2d(16, 70, 2)
        self.point = nn.Conv2d(20, 16, 1)
        self.out = nn.Conv2d(16, 15, 3)
        self.linear = nn.Linear(32, 32)
        self.to(memory_format=order)  # type: ignore[call-overload]

    def push(self, seed: int, scale: float = 1.0) -> None:
        """Give every parameter a gradient, small enough to escape the clipping."""
        g = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            grad = 1e-3 * scale * torch.randn(p.shape, generator=g)
            p.grad = grad.contiguous(memory_format=torch.channels_last) if p.ndim == 4 else grad


MUON = ("wide.weight", "tall.weight", "point.weight")


def copies(net: Net) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def slow_muon_step(weight: list, momentum: list, grad: list, lr: float) -> tuple[list, list]:
    """One step on a matrix, in float64 and plain loops.

    Source: Jordan et al. 2024, "Muon": B_t = mu B_(t-1) + (1 - mu) g_t and Nesterov's
    (1 - mu) g_t + mu B_t with mu 0.95, five Newton-Schulz steps X <- a X + (b A + c A^2) X with
    A = X X^T; Liu et al. 2025: times 0.2 sqrt(max(rows, columns)).
    """
    rows, columns = len(weight), len(weight[0])
    momentum = [
        [0.95 * m + 0.05 * g for m, g in zip(*pair, strict=True)] for pair in zip(momentum, grad, strict=True)
    ]
    x = [
        [0.05 * g + 0.95 * m for m, g in zip(*pair, strict=True)] for pair in zip(momentum, grad, strict=True)
    ]
    is_tall = rows > columns
    if is_tall:
        x = transposed(x)
    norm = math.sqrt(sum(value**2 for row in x for value in row))
    x = [[value / norm for value in row] for row in x]
    for _ in range(5):
        gram = product(x, transposed(x))
        squared = product(gram, gram)
        inner = [
            [-4.7750 * g + 2.0315 * s for g, s in zip(*pair, strict=True)]
            for pair in zip(gram, squared, strict=True)
        ]
        moved = product(inner, x)
        x = [[3.4445 * v + m for v, m in zip(*pair, strict=True)] for pair in zip(x, moved, strict=True)]
    if is_tall:
        x = transposed(x)
    scale = lr * 0.2 * math.sqrt(max(rows, columns))
    moved = [[w - scale * v for w, v in zip(*pair, strict=True)] for pair in zip(weight, x, strict=True)]
    return moved, momentum


def transposed(x: list) -> list:
    return [list(column) for column in zip(*x, strict=True)]


def product(a: list, b: list) -> list:
    columns = transposed(b)
    return [[sum(p * q for p, q in zip(row, column, strict=True)) for column in columns] for row in a]


@pytest.mark.parametrize("order", ORDERS)
def test_matrices_are_views_of_the_weights(order: torch.memory_format) -> None:
    net = Net(order)
    for weight in (net.wide.weight.data, net.point.weight.data):
        assert weight.is_contiguous(memory_format=order)
        matrix = as_matrix(weight)
        assert matrix.shape == (weight.shape[0], weight[0].numel())
        assert matrix.data_ptr() == weight.data_ptr()
        before = weight.clone()
        matrix += 1
        assert torch.equal(weight, before + 1)
        for row, kernel in zip(matrix, weight, strict=True):  # one row is one output channel
            assert sorted(row.tolist()) == sorted(kernel.flatten().tolist())


def test_a_weight_that_would_be_copied_is_refused() -> None:
    with pytest.raises(AssertionError, match="copy"):
        as_matrix(torch.zeros(32, 16, 3, 3).transpose(0, 1))


@pytest.mark.parametrize("order", ORDERS)
def test_muon_moves_the_wide_convolutions_and_adamw_the_rest(order: torch.memory_format) -> None:
    net = Net(order)
    optimizer = Optimizer(net, 0.01)
    where = {name: p.data_ptr() for name, p in net.named_parameters()}
    net.push(1)
    optimizer.step(1.0)
    assert sum(name.startswith("muon.") for name in optimizer.state()) == len(MUON)
    adamw = {name.split(".")[1] for name in optimizer.state() if name.startswith("adamw.")}
    assert len(adamw) == len(where) - len(MUON)
    assert where == {name: p.data_ptr() for name, p in net.named_parameters()}
    assert min(net.point.weight.shape[:2]) >= SMALLEST_MATRIX > min(net.out.weight.shape[:2])


@pytest.mark.parametrize("order", ORDERS)
def test_three_steps_of_muon_are_those_of_a_slow_transcription(order: torch.memory_format) -> None:
    """Torch multiplies in bfloat16 (8 bits), whose error five steps carry on.

    Measured: at most 0.05 of the size of a step, per element 0.1; a wrong coefficient, momentum or
    scale is off by more than that.
    """
    net = Net(order)
    optimizer = Optimizer(net, 0.01)
    slow = {name: as_matrix(copy).double().tolist() for name, copy in copies(net).items() if name in MUON}
    momenta = {name: [[0.0] * len(rows[0]) for _ in rows] for name, rows in slow.items()}
    for step, share in enumerate((1.0, 0.5, 0.25)):
        net.push(step)
        grads = {
            name: as_matrix(p.grad.contiguous(memory_format=order)).double().tolist()
            for name, p in net.named_parameters()
            if name in MUON and p.grad is not None
        }
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimizer.step(share)
        for name in MUON:
            started = as_matrix(before[name]).double().tolist()
            expected, momenta[name] = slow_muon_step(started, momenta[name], grads[name], 0.01 * share)
            wanted = torch.tensor(expected, dtype=torch.float64) - torch.tensor(started, dtype=torch.float64)
            moved = as_matrix(net.get_parameter(name).data).double() - as_matrix(before[name]).double()
            assert ((moved - wanted).norm() / wanted.norm()).item() < 0.05
            assert (moved - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_the_memory_order_changes_nothing_that_counts() -> None:
    nets = []
    for order in ORDERS:
        net = Net(order)
        optimizer = Optimizer(net, 0.01)
        for step in range(3):
            net.push(step)
            optimizer.step(1.0)
        nets.append(copies(net))
    for name, value in nets[0].items():
        # The columns of a matrix are in another order, and so bfloat16 sums them in another one.
        torch.testing.assert_close(value, nets[1][name], rtol=0, atol=2e-3 if name in MUON else 0)


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_the_rest_moves_as_torch_says(order: torch.memory_format, muon: bool) -> None:
    net, twin = Net(order), Net(order)
    optimizer = Optimizer(net, 0.01, muon=muon)
    rest = {name: p for name, p in twin.named_parameters() if not (muon and name in MUON)}
    reference = torch.optim.AdamW(rest.values(), betas=(0.9, 0.99), weight_decay=0.0)
    for step, share in enumerate((0.2, 1.0, 0.6)):
        for n in (net, twin):
            n.push(step)
        optimizer.step(share)
        reference.param_groups[0]["lr"] = (0.005 if muon else 0.01) * share
        reference.step()
        for name, p in rest.items():
            assert torch.equal(net.get_parameter(name), p), name


def test_gradients_are_clipped_together_and_then_forgotten() -> None:
    net, twin = Net(), Net()
    optimizer, other = Optimizer(net, 0.01), Optimizer(twin, 0.01)
    net.push(0, scale=1e4)
    twin.push(0, scale=1e4)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in net.parameters() if p.grad is not None))
    assert norm > 1
    for p in twin.parameters():
        assert p.grad is not None
        p.grad /= norm
    optimizer.step(1.0)
    other.step(1.0)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        # AdamW divides by the size of the gradient: only its epsilon knows the clipping.
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)
    assert all(p.grad is None for p in net.parameters())
    moments = [value for name, value in optimizer.state().items() if name.endswith("exp_avg")]
    total = math.sqrt(sum(value.square().sum().item() for value in moments)) / 0.1
    assert total < 1.01


def test_a_share_of_zero_moves_nothing() -> None:
    net = Net()
    before = copies(net)
    optimizer = Optimizer(net, 0.5)
    net.push(0)
    optimizer.step(0.0)
    for name, value in before.items():
        assert torch.equal(value, net.get_parameter(name))


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_a_state_that_was_saved_goes_on_exactly(
    order: torch.memory_format, muon: bool, tmp_path: Path
) -> None:
    net, rest = Net(order), Net(order)
    optimizer = Optimizer(net, 0.01, muon=muon)
    for step in range(3):
        net.push(step)
        optimizer.step(1.0)
    kept = {name: value.clone().contiguous() for name, value in optimizer.state().items()}  # as a file does
    rest.load_state_dict(net.state_dict())
    again = Optimizer(rest, 0.01, muon=muon)
    again.load(kept)
    loaded = again.state()
    assert loaded.keys() == kept.keys()
    for name, value in kept.items():
        assert torch.equal(value, loaded[name]), name
    for step in range(3, 6):
        for n, o in ((net, optimizer), (rest, again)):
            n.push(step)
            o.step(0.5)
        for (name, a), b in zip(net.named_parameters(), rest.parameters(), strict=True):
            assert torch.equal(a, b), name


def test_a_new_optimizer_has_no_state_and_takes_none() -> None:
    optimizer = Optimizer(Net(), 0.01)
    assert optimizer.state() == {}
    optimizer.load({})
    assert optimizer.state() == {}


@pytest.mark.parametrize("order", ORDERS)
def test_the_network_of_the_prior_is_moved_by_both(order: torch.memory_format) -> None:
    torch.manual_seed(0)
    net = LocalUNet(LocalUNetConfig(widths=(16, 32), blocks=(1, 1), embedding=16)).to(memory_format=order)  # type: ignore[call-overload]
    optimizer = Optimizer(net, 0.01)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for step in range(2):  # the last convolution starts at zero, and hides the others from the first step
        g = torch.Generator().manual_seed(step)
        net(torch.randn(2, 3, 8, 8, generator=g), torch.zeros(2)).sub(1).square().mean().backward()
        optimizer.step(1.0)
    assert {name.split(".")[0] for name in optimizer.state()} == {"adamw", "muon"}
    assert all(p.isfinite().all() for p in net.parameters())
    assert not torch.equal(before["middle.0.conv2.weight"], net.get_parameter("middle.0.conv2.weight"))


def test_networks_that_a_batch_does_not_use_stay_and_can_be_resumed() -> None:
    torch.manual_seed(0)
    config = LocalUNetConfig(widths=(16, 32), blocks=(1, 1), embedding=16, bands=(1.0,))
    net = build_local_unet(config)
    optimizer = Optimizer(net, 0.01)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(2):
        net(torch.randn(2, 3, 8, 8), torch.tensor([-1.0, -1.0])).sub(1).square().mean().backward()
        optimizer.step(1.0)
    moved = {name.split(".")[1] for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0"}
    other = Optimizer(build_local_unet(config), 0.01)
    other.load(optimizer.state())
    assert other.state().keys() == optimizer.state().keys()
