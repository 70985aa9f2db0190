"""What attacks with a network share: batches, weights in a trigger, and one size to work at."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from zipcli.attacks.trigger import Pixels, Size, Trigger
from zipcli.config import check

Network = TypeVar("Network", bound=nn.Module)
Built = TypeVar("Built")

Edges = Literal["zeros", "reflect"]
"""What lies beyond the image, in the words of torch."""

SIDE = 32
"""Networks see images of this side, squashed to it; what they change is enlarged to the image. They
would cost 64 times as much at 256 pixels, and the change is smooth enough to be enlarged."""


def batch(images: Pixels) -> Tensor:
    """(N, H, W, 3) bytes as (N, 3, 32, 32) in [0, 1], antialiased where they shrink."""
    # A few at a time: thousands of large images as floats would fill the memory.
    return torch.cat([_batch(images[k : k + 64]) for k in range(0, len(images), 64)])


def _batch(images: Pixels) -> Tensor:
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)) / 255
    if x.shape[2:] == (SIDE, SIDE):
        return x
    return F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def enlarged(change: Tensor, size: Size) -> NDArray[np.float32]:
    """(C, 32, 32) as (H, W, C), bilinearly; never the image itself, which would lose its detail."""
    if change.shape[1:] != size:
        change = F.interpolate(change[None], size=size, mode="bilinear", align_corners=False)[0]
    pixels: NDArray[np.float32] = change.permute(1, 2, 0).numpy()
    return pixels


def nearest_bytes(levels: NDArray[np.floating[Any]]) -> Pixels:
    """Clip to [0, 255] and round: these attacks have no published bytes to agree with."""
    pixels: Pixels = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    return pixels


def rounded(x: Tensor) -> Tensor:
    """Round [0, 1] to what bytes can hold; the gradient passes as if nothing had been rounded."""
    x = x.clamp(0, 1)
    return x + ((x * 255).round() / 255 - x).detach()


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """One step down the loss."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
    for optimizer in optimizers:
        optimizer.step()


def conv(inputs: int, outputs: int, *, stride: int = 1, edges: Edges = "zeros") -> nn.Sequential:
    """A 3x3 convolution, normalised over the batch, and a ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False, padding_mode=edges)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def initialise(network: Network, generator: torch.Generator) -> Network:
    """Draw the weights again, from a generator: the global one belongs to whoever imports us."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def as_arrays(name: str, network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The weights, for `Trigger.arrays`, under names that begin with the name."""
    return {f"{name}.{key}": tensor.numpy().copy() for key, tensor in _weights(network)}


def restore(name: str, build: Callable[[], Network], trigger: Trigger) -> Network:
    """Build a network with the weights that `as_arrays` gave, frozen.

    Raises:
        ConfigError: The trigger lacks weights, or has others: it may come from anybody.
    """
    with torch.device("meta"):  # takes no memory yet: a foreign file may claim any size
        network = build()
    state = {}
    for key, tensor in _weights(network):
        array = trigger.arrays.get(f"{name}.{key}")
        fits = array is not None and array.shape == tensor.shape and array.dtype == np.float32
        check(
            fits and bool(np.isfinite(np.asarray(array)).all()),
            f"trigger of attack {trigger.attack}: the weights {name}.{key} are missing or damaged; "
            "make it again",
        )
        state[key] = torch.tensor(array)
    network.load_state_dict(state, strict=False, assign=True)
    return network.eval().requires_grad_(False)


def _weights(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights and statistics, which share their memory with the network; not the count of batches."""
    state = network.state_dict()
    return [(key, state[key]) for key in sorted(state) if not key.endswith("num_batches_tracked")]


def once_per_trigger(build: Callable[[Trigger], Built]) -> Callable[[Trigger], Built]:
    """Keep what was built from the last trigger: every image of a run asks for the same one."""
    last: tuple[Trigger, Built] | None = None

    def remembered(trigger: Trigger) -> Built:
        nonlocal last
        found = last  # read once: threads may ask at the same time
        if found is None or found[0] is not trigger:
            last = found = (trigger, build(trigger))
        return found[1]

    return remembered
