"""Loads files of torch.export. What that executes is said in `model_file`."""

import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zipcli.classifiers.model_file import Network, only_tensor
from zipcli.classifiers.torchscript import as_array
from zipcli.errors import ClassifierError, shown


def load(file: Path, device: str) -> Network:
    """Load a program of torch.export onto a device.

    Raises:
        ClassifierError: It holds pickled objects or machine code, or takes something else than one
            batch of float32 RGB images.
    """
    name = shown(str(file))
    _refuse_dangerous_parts(file)
    try:
        with _no_pickles():
            program = torch.export.load(file)
    except UnpicklingError as e:
        raise ClassifierError(
            f"{name}: holds a pickled object that is no tensor, which is never opened; save the program again"
        ) from e
    except RuntimeError as e:  # torch tells the cause to its log only
        raise ClassifierError(
            f"{name}: torch {torch.__version__} cannot load it: damaged, or of another version of torch; "
            "save the program again"
        ) from e
    batch, size = _fixed_shape(program, name)
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    model = program.module(check_guards=False)  # guards are Python code of the file's, and we know the shape

    @torch.inference_mode()
    def run(x: NDArray[np.float32]) -> NDArray[Any]:
        output: torch.Tensor = only_tensor(model(torch.from_numpy(x).to(device)), torch.Tensor)
        return as_array(output)

    return Network(run=run, batch=batch, size=size)


def _refuse_dangerous_parts(file: Path) -> None:
    """Look at the names in the archive for what torch would unpickle or load as a library."""
    with zipfile.ZipFile(file) as archive:
        # In small letters, since torch's own reader of archives does not tell them from capitals.
        names = [entry.partition("/")[2].lower() for entry in archive.namelist()]
    for entry in names:
        if entry.startswith("data/aotinductor"):
            raise ClassifierError(
                f"{shown(str(file))}: holds compiled machine code, which is not run; save the program with "
                "torch.export.save"
            )
        constant = entry.removeprefix("data/constants/")
        if constant != entry and not constant.startswith("tensor_") and not constant.endswith(".json"):
            raise ClassifierError(
                f"{shown(str(file))}: holds {shown(constant)}, an object that is no tensor, which is not "
                "unpickled; export a model of tensors only"
            )


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Let torch.load, which torch.export calls without its restriction, take tensors only.

    The environment is the one place where that can be said. The log is silenced, where torch would
    print a traceback before our error.
    """
    force, contrary = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name) for name in (force, contrary) if name in os.environ}
    os.environ[force] = "1"
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        del os.environ[force]
        os.environ.update(before)


def _fixed_shape(program: Any, name: str) -> tuple[int | None, tuple[int, int] | None]:
    """The batch and the size that a program was exported for; None for what it leaves open."""
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
        raise ClassifierError(f"{name}: takes {len(inputs)} inputs; a classifier takes one batch of images")
    shape = inputs[0].shape
    if len(shape) != 4 or shape[1] != 3 or inputs[0].dtype != torch.float32:
        sides = ", ".join(shown(str(side)) for side in shape)
        raise ClassifierError(f"{name}: takes {inputs[0].dtype} ({sides}), not float32 (N, 3, H, W) images")
    batch, _, height, width = (side if isinstance(side, int) else None for side in shape)
    return batch, (height, width) if height and width else None
