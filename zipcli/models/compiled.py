"""Networks compiled by `torch.compile`: fused kernels, and on a GPU CUDA graphs, which launch them at once.

What is compiled is the part without decisions: each expert of a banded network, or a whole U-Net. It is
compiled for one shape of input, at the first call with it, which takes seconds to minutes; PyTorch keeps
the result on disk, in TORCHINDUCTOR_CACHE_DIR or beside our models. Sums are taken in another order than in
the plain network, so the last bits differ.

On a CPU all of this is run by our tests, and brings nothing: a packed network (`packed.py`) is as fast there,
and ready at once. On CUDA, which this is meant for, it was not run by us: neither its speed nor its results
there are known to us.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zipcli.errors import ConfigError, shown
from zipcli.models.local_unet import BandedUNet
from zipcli.models.prior import Prior, UNetPrior
from zipcli.models.records import own_folder

ANY_NUMBER = 2**31 - 1
"""PyTorch gives up at the ninth shape, unless told otherwise; a folder may have as many as it has images."""

NEEDS = {"cpu": "a C++ compiler such as g++ and the headers of Python", "cuda": "triton and a C compiler"}


def compiled(model: Prior | UNetPrior, check_stop: Callable[[], None] = lambda: None) -> Prior | UNetPrior:
    """The same model, whose network is compiled when it is called; it is changed in place.

    Args:
        model: A model in its plain form, not a packed one.
        check_stop: Raises where a signal asked us to stop. Ctrl-C ends the compiler, too, which is no fault
            of its.

    Raises:
        ConfigError: This machine cannot compile; it is tried out. What fails in spite of that raises the same
            at the first call.
        ModelError: There is no folder to keep the results in.
    """
    network = model.net if isinstance(model, UNetPrior) else model.denoiser.net
    device = next(network.parameters()).device
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        # PyTorch's default is a name in /tmp that others can guess, and it runs what lies there.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(own_folder("compiled"))
    with _failures(device, check_stop), torch.inference_mode():
        torch.compile(_try_out, fullgraph=True, dynamic=False)(torch.zeros(4, device=device))
    for part in network.experts if isinstance(network, BandedUNet) else [network]:
        if not isinstance(part.forward, CompiledForward):
            part.forward = CompiledForward(part.forward, device, check_stop)
    return model


class CompiledForward:
    """The forward pass of a network, compiled."""

    def __init__(
        self, forward: Callable[..., Tensor], device: torch.device, check_stop: Callable[[], None]
    ) -> None:
        """Compile `forward` when it is called."""
        self._device = device
        self._check_stop = check_stop
        # A break of the graph would be an error and not slow in silence.
        mode = "reduce-overhead" if device.type == "cuda" else None  # that is, CUDA graphs
        self._compiled = torch.compile(forward, fullgraph=True, dynamic=False, mode=mode)

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Apply it to states, (N, C, H, W), and noise levels or timesteps, (N,)."""
        with _failures(self._device, self._check_stop):
            out = self._compiled(x, level)
        # A CUDA graph writes every result to the same place.
        return out.clone()


def _try_out(x: Tensor) -> Tensor:
    return x + 1


@contextmanager
def _failures(device: torch.device, check_stop: Callable[[], None]) -> Iterator[None]:
    """Compile any number of shapes in this block, and say why where it cannot be done."""
    import torch._dynamo as dynamo  # a second; no other run needs it
    from torch._dynamo.exc import TorchDynamoException

    try:
        with dynamo.config.patch(recompile_limit=ANY_NUMBER, accumulated_recompile_limit=ANY_NUMBER):
            yield
    except TorchDynamoException as e:
        check_stop()
        if "out of memory" in str(e).lower():
            raise  # that says nothing of compiling; whoever called makes the batch smaller
        cause = shown(" ".join(str(e).partition("\n\n")[0].split())[:300])
        raise ConfigError(
            f"compile: PyTorch cannot compile the network for {device.type} ({cause}); it needs "
            f"{NEEDS.get(device.type, NEEDS['cpu'])}; leave out --compile"
        ) from e
