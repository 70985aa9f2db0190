"""Loads ONNX files with onnxruntime, the extra [onnx]."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zipcli.classifiers.model_file import Network, brief_error
from zipcli.errors import ClassifierError, shown

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def load(file: Path, device: str) -> Network:
    """Load an ONNX file; images go in as (N, 3, H, W), or (N, H, W, 3) where the file says so.

    Raises:
        ClassifierError: onnxruntime is missing or cannot read the file, or the model takes or gives
            something else than one batch of RGB images and one result.
    """
    try:
        onnxruntime: Any = import_module("onnxruntime")  # it ships no types
    except ImportError as e:
        raise ClassifierError(
            f"{shown(str(file))}: ONNX files need onnxruntime; run pip install 'zipcli[onnx]'"
        ) from e
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # its own count ignores what we may use
    options.log_severity_level = 4  # what it would print is in the errors that it raises
    providers = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        providers.insert(0, "CUDAExecutionProvider")
        if providers[0] not in onnxruntime.get_available_providers():
            raise ClassifierError(
                f"{shown(str(file))}: this onnxruntime has no CUDA; install "
                "onnxruntime-gpu or use --device cpu"
            )
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as e:  # its errors have no common base
        raise ClassifierError(
            f"{shown(str(file))}: not an ONNX file that can be used: {brief_error(e)}"
        ) from e
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        names = ", ".join(shown(part.name) for part in (*inputs, *outputs))
        raise ClassifierError(
            f"{shown(str(file))}: has {len(inputs)} inputs and {len(outputs)} outputs ({names}); a "
            "classifier takes one batch of images and gives scores or labels"
        )
    name, shape, kind = inputs[0].name, inputs[0].shape, inputs[0].type
    channels_last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    channels = shape[3 if channels_last else 1] if len(shape) == 4 else None
    if kind not in _TYPES or len(shape) != 4 or (isinstance(channels, int) and channels != 3):
        sides = ", ".join(shown(str(side)) for side in shape)
        raise ClassifierError(f"{shown(str(file))}: takes {kind} ({sides}), not float (N, 3, H, W) images")
    height, width = shape[1:3] if channels_last else shape[2:]

    def run(x: NDArray[np.float32]) -> NDArray[Any]:
        x = x.transpose(0, 2, 3, 1) if channels_last else x
        result: NDArray[Any] = session.run(None, {name: np.ascontiguousarray(x, _TYPES[kind])})[0]
        return result

    fixed = isinstance(height, int) and isinstance(width, int)
    return Network(
        run=run,
        batch=shape[0] if isinstance(shape[0], int) else None,
        size=(height, width) if fixed else None,
    )
