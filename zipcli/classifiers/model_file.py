"""Classifiers in a file: TorchScript, `torch.export` or ONNX, told apart by their content.

A model file is a program, and whoever made it decides what it does on your machine:

- TorchScript: what the file holds is TorchScript code, which runs when the model is loaded and when it
  is asked. It is no Python, and the pickles inside are read by torch's own reader, which builds tensors
  and TorchScript objects only; but TorchScript has operators that read and write files.
- torch.export: torch evaluates some texts of the file as Python when it loads it. Such a file can do
  whatever you can. We only see to it that nothing in it is unpickled and that no machine code that came
  with it is loaded.
- ONNX: a graph of onnxruntime's operators, none of which touches files or the network. Weights may lie in
  files beside it. Only a flaw of onnxruntime's could make more of it.

A pickle, such as a checkpoint of `torch.save`, is refused and never opened.
"""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zipcli.classifiers.answers import AnswerReader
from zipcli.classifiers.pixels import Pixels, batches_of_one_size, normalise, resize
from zipcli.classifiers.sidecar import with_sidecar
from zipcli.config import ClassifierConfig
from zipcli.errors import ClassifierError, shown
from zipcli.protocols import Prediction
from zipcli.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Network:
    """A loaded model file.

    Attributes:
        run: From float32 (N, 3, H, W) to the only output; it may raise anything.
        batch: The one N that it takes; None for any.
        size: The one (H, W) that it takes; None for any, or where the file does not tell.
    """

    run: Callable[[NDArray[np.float32]], NDArray[Any]]
    batch: int | None = None
    size: tuple[int, int] | None = None


LOADERS: Registry[Callable[[Path, str], Network]] = Registry(
    "model file",
    {
        "torchscript": "zipcli.classifiers.torchscript:load",
        "export": "zipcli.classifiers.exported:load",
        "onnx": "zipcli.classifiers.onnx_file:load",
    },
)

_HOW = "export it with torch.export.save, torch.jit.save or torch.onnx.export"


def open_model_file(config: ClassifierConfig) -> "FileClassifier":
    """Load the model file that the configuration names, with what its sidecar says.

    Raises:
        ConfigError: The sidecar is wrong.
        ClassifierError: The file is missing, damaged, or none that we can use.
    """
    file = Path(config.classifier)
    kind = kind_of(file)
    config = with_sidecar(config, file)
    try:
        network = LOADERS[kind](file, config.device)
    except ClassifierError:
        raise
    except Exception as e:  # a foreign program: it fails in whatever way it likes, and the run ends
        raise ClassifierError(f"{shown(str(file))}: cannot be loaded as {kind}: {brief_error(e)}") from e
    return FileClassifier(network, config)


class FileClassifier:
    """A model file that answers."""

    def __init__(self, network: Network, config: ClassifierConfig) -> None:
        """Join a network with what the user said of it."""
        self._network = network
        self._config = config
        self._reader = AnswerReader(shown(config.classifier), config.classes)
        side = config.input_size
        self._size = network.size if side is None else (side, side)
        if network.size is not None and self._size != network.size:
            height, width = network.size
            raise self._reader.error(f"it takes images of {width} x {height} pixels only, not {side}")

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, from the options or the sidecar."""
        return self._config.classes

    def __call__(self, images: Sequence[Pixels], /) -> Prediction:
        """Classify images of any size; those of equal size share a batch.

        Raises:
            ClassifierError: The model failed, or gave no labels or scores.
        """
        images = [resize(image, self._size) for image in images]
        most = self._network.batch or self._config.batch_size
        parts = [
            (indices, self._batch([images[i] for i in indices]))
            for indices in batches_of_one_size(images, most)
        ]
        return self._reader.join(parts, len(images))

    def _batch(self, images: list[Pixels]) -> Prediction:
        count = len(images)
        padding = (self._network.batch or count) - count  # where the file fixes N, the last image fills up
        x = normalise(images + images[-1:] * padding, self._config.mean, self._config.std)
        try:
            output = self._network.run(x)
        except ClassifierError as e:
            raise self._reader.error(str(e)) from e
        except Exception as e:  # a foreign program, as above
            raise self._reader.error(
                f"it failed on images of {x.shape[3]} x {x.shape[2]} pixels: {brief_error(e)}; "
                "does --input-size fit? If memory was short, lower --classifier-batch"
            ) from e
        if output.ndim and len(output) == count + padding:
            output = output[:count]
        return self._reader.output(output, count)


def kind_of(file: Path) -> str:
    """Tell by its first bytes what a model file is: torchscript, export or onnx.

    Raises:
        ClassifierError: It is missing, or something that we cannot use.
    """
    name = shown(str(file))
    try:
        if file.is_dir():
            raise ClassifierError(f"{name}: is a folder; name a model file in it")
        with file.open("rb") as f:
            start = f.read(64)
    except FileNotFoundError as e:
        raise ClassifierError(
            f"{name}: there is no such file; --classifier takes a model file, http://..., cmd:PROGRAM "
            "or cmd-paths:PROGRAM"
        ) from e
    except (OSError, ValueError) as e:
        raise ClassifierError(f"{name}: cannot be read ({getattr(e, 'strerror', e)})") from e
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_archive(file)
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise ClassifierError(f"{name}: is a pickle, which is never opened: it could run anything; {_HOW}")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 10**8:
        raise ClassifierError(f"{name}: is a safetensors file: weights without a network; {_HOW}")
    if file.suffix.lower() == ".onnx" or start.startswith(b"\x08"):  # ONNX has no mark of its own
        return "onnx"
    what = "is empty" if not start else "is neither TorchScript nor torch.export nor ONNX"
    raise ClassifierError(f"{name}: {what}; {_HOW}")


def _kind_of_archive(file: Path) -> str:
    """The same for a zip archive, by the names in it; nothing is unpacked."""
    name = shown(str(file))
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise ClassifierError(f"{name}: is a damaged archive ({shown(str(e)[:100])}); copy it anew") from e
    inner = {entry.partition("/")[2] for entry in names}
    if "archive_format" in inner or any(entry.startswith("models/") for entry in inner):
        return "export"
    if "serialized_exported_program.json" in names:
        raise ClassifierError(f"{name}: was written by torch.export before torch 2.8; save it again")
    if "constants.pkl" in inner:
        return "torchscript"
    if "data.pkl" in inner:
        raise ClassifierError(
            f"{name}: is a checkpoint of torch.save: weights, and a pickle that is never opened. The code "
            f"of the network is not in it; {_HOW}"
        )
    raise ClassifierError(f"{name}: is an archive, but no model; {_HOW}")


def only_tensor(output: Any, kind: type) -> Any:
    """The one tensor that a model gave, also where it is wrapped in a tuple, list or dictionary.

    Raises:
        ClassifierError: There are several, or none.
    """
    while isinstance(output, tuple | list | dict) and len(output) == 1:
        output = next(iter(output.values() if isinstance(output, dict) else output))
    if isinstance(output, kind):
        return output
    if isinstance(output, tuple | list | dict):
        raise ClassifierError(f"it gives {len(output)} outputs; export a model that gives the scores only")
    raise ClassifierError(f"it gives {shown(type(output).__name__)}, not a tensor")


def brief_error(error: Exception) -> str:
    """The last line of what a library said, which is where torch puts the cause, harmless and short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown((lines[-1] if lines else type(error).__name__)[:300])
