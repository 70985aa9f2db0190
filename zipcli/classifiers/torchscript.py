"""Loads TorchScript files. What that executes is said in `model_file`."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zipcli.classifiers.model_file import Network, only_tensor


def load(file: Path, device: str) -> Network:
    """Load a TorchScript file onto a device and make it behave as in use, not as in training."""
    with warnings.catch_warnings():
        # torch would rather have us use torch.export; the users have the files that they have.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.load(str(file), map_location=torch.device(device))  # type: ignore[no-untyped-call]
    model.eval()

    @torch.inference_mode()
    def run(x: NDArray[np.float32]) -> NDArray[Any]:
        output: torch.Tensor = only_tensor(model(torch.from_numpy(x).to(device)), torch.Tensor)
        return as_array(output)

    return Network(run=run)


def as_array(output: torch.Tensor) -> NDArray[Any]:
    """A tensor as NumPy knows it; bfloat16 it does not."""
    output = output.detach().cpu()
    array: NDArray[Any] = (output.float() if output.is_floating_point() else output).numpy()
    return array
