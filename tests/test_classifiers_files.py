"""Model files: real ones of three kinds, sidecars, and files that are refused without being run."""

import hashlib
import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

from zipcli.classifiers import identity, open_classifier
from zipcli.config import ClassifierConfig
from zipcli.errors import ClassifierError, ConfigError, ExitCode

NAMES = ("red", "green", "blue")
LABELS = (2, 0, 1, 1, 2)


class Colour(nn.Module):
    """Scores of the channels; a batch norm and a dropout would show that it is still in training."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 10.0))
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x.mean((2, 3)) * self.scale)


class Answer(nn.Module):
    """Gives what a function makes of the means of the channels."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(x.mean((2, 3)))


def plain(*labels: int, size: tuple[int, int] = (4, 6)) -> list[np.ndarray]:
    """Images whose label is their strongest channel."""
    images = []
    for label in labels:
        image = np.full((*size, 3), 51, np.uint8)
        image[..., label] = 204
        images.append(image)
    return images


def scripted(file: Path, model: nn.Module, *_: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(model), file)
    return file


def traced(file: Path, model: nn.Module, shape: tuple[int, ...] = (2, 3, 4, 6)) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(model.eval(), torch.zeros(shape), strict=False), file)
    return file


def exported(file: Path, model: nn.Module, shape: tuple[int, ...] = (2, 3, 4, 6), free: str = "nhw") -> Path:
    auto = torch.export.Dim.AUTO
    dims = {at: auto for at, letter in ((0, "n"), (2, "h"), (3, "w")) if letter in free}
    program = torch.export.export(model.eval(), (torch.zeros(shape),), dynamic_shapes=(dims,))
    torch.export.save(program, file)
    return file


def onnx_colour(
    file: Path, _: nn.Module | None = None, shape: tuple[int | str, ...] = ("n", 3, "h", "w"), **parts: Any
) -> Path:
    """The same network in ONNX; `parts` change the graph."""
    kind = parts.get("kind", TensorProto.FLOAT)
    nodes = [
        helper.make_node(
            "Transpose", ["images"], ["x"], perm=(0, 3, 1, 2) if shape[3] == 3 else (0, 1, 2, 3)
        ),
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["floats"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        *parts.get("nodes", [helper.make_node("Identity", ["means"], ["scores"])]),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("images", kind, shape)],
        parts.get("outputs", [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)]),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, file)
    return file


KINDS = {
    "script.pt": scripted,
    "trace.ts": traced,
    "export.pt2": exported,
    "colour.onnx": onnx_colour,
}
kinds = pytest.mark.parametrize("name", KINDS)


@contextmanager
def opened(file: Path, **settings: object):
    with open_classifier(ClassifierConfig(classifier=str(file), **settings)) as classifier:
        yield classifier


@kinds
def test_a_file_answers(name: str, tmp_path: Path) -> None:
    with opened(KINDS[name](tmp_path / name, Colour()), classes=NAMES, batch_size=2) as classifier:
        prediction = classifier(plain(*LABELS))
        assert classifier([]).labels.shape == (0,)
        assert classifier.classes == NAMES
    assert prediction.labels.dtype == np.int64
    assert tuple(prediction.labels) == LABELS
    assert prediction.probabilities is not None
    assert prediction.probabilities.dtype == np.float32
    scale = 1 if name == "colour.onnx" else 10
    expected = torch.softmax(torch.tensor([0.2, 0.2, 0.8]) * scale, 0)
    assert prediction.probabilities[0] == pytest.approx(expected.numpy(), rel=1e-4)


@kinds
def test_the_content_decides_not_the_name(name: str, tmp_path: Path) -> None:
    with opened(KINDS[name](tmp_path / name, Colour()).rename(tmp_path / "model")) as classifier:
        assert tuple(classifier(plain(*LABELS)).labels) == LABELS


@kinds
def test_images_of_several_sizes_keep_their_order(name: str, tmp_path: Path) -> None:
    images = [plain(label, size=(4 + n % 2, 6))[0] for n, label in enumerate(LABELS)]
    with opened(KINDS[name](tmp_path / name, Colour())) as classifier:
        assert tuple(classifier(images).labels) == LABELS


@kinds
def test_mean_and_deviation_are_used(name: str, tmp_path: Path) -> None:
    """0.2 and 0.8 become -0.3 and 0.3 by the mean, and the deviation makes blue the strongest."""
    file = KINDS[name](tmp_path / name, Colour())
    with opened(file, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 0.01)) as classifier:
        prediction = classifier(plain(0, 1, 2))
    assert tuple(prediction.labels) == (0, 1, 2)
    with opened(file, mean=(0.5, 0.5, -9.0)) as classifier:
        assert tuple(classifier(plain(0, 1, 2)).labels) == (2, 2, 2)
    with opened(file, std=(1.0, 0.1, 1.0)) as classifier:
        assert tuple(classifier(plain(0, 1, 2)).labels) == (1, 1, 1)


def test_what_the_network_sees_is_what_was_promised(tmp_path: Path) -> None:
    """The first four values of channel 0, then of channel 2, tell how pixels were laid out."""

    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((x[:, 0, 0, :2], x[:, 2, 1, :2]), 1)

    image = np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    with opened(scripted(tmp_path / "m.pt", Corner()), mean=mean, std=std) as classifier:
        probabilities = classifier([image]).probabilities
    unit = image / 255
    scores = [*(unit[0, :, 0] - 0.1) / 0.5, *(unit[1, :, 2] - 0.3) / 0.7]
    expected = np.exp(scores) / np.exp(scores).sum()
    assert probabilities is not None
    assert probabilities[0] == pytest.approx(expected, rel=1e-5)


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    """Columns of 0 and 255 in turn are grey from afar; without the filter one of them would win."""

    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2, 0, 0]

    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2, 0] = 255
    image[..., 1] = 120
    with opened(scripted(tmp_path / "m.pt", Pixels()), input_size=4) as classifier:
        probabilities = classifier([image]).probabilities
    assert probabilities is not None
    assert probabilities[0, 0] == pytest.approx(1 / (1 + np.exp(-7.5 / 255)), abs=0.02)


@pytest.mark.parametrize("name", ["export.pt2", "colour.onnx"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_shape_is_met(name: str, batch: int, tmp_path: Path) -> None:
    make = {"export.pt2": lambda f, m, s: exported(f, m, s, free=""), "colour.onnx": onnx_colour}[name]
    file = make(tmp_path / name, Colour(), (batch, 3, 8, 5))
    with opened(file) as classifier:
        prediction = classifier(plain(*LABELS) + plain(1, size=(9, 9)))
        assert tuple(prediction.labels) == (*LABELS, 1)
    with (
        pytest.raises(ClassifierError, match="takes images of 5 x 8 pixels only, not 32"),
        opened(file, input_size=32),
    ):
        pass


def test_an_onnx_file_with_the_channels_last(tmp_path: Path) -> None:
    with opened(onnx_colour(tmp_path / "m.onnx", None, ("n", "h", "w", 3))) as classifier:
        assert tuple(classifier(plain(*LABELS)).labels) == LABELS


def test_an_onnx_file_of_half_precision(tmp_path: Path) -> None:
    with opened(onnx_colour(tmp_path / "m.onnx", kind=TensorProto.FLOAT16)) as classifier:
        assert tuple(classifier(plain(*LABELS)).labels) == LABELS


def give_labels(means: Tensor) -> Tensor:
    return means.argmax(1)


def give_probabilities(means: Tensor) -> Tensor:
    return means / means.sum(1, keepdim=True)


def give_a_dictionary(means: Tensor) -> dict[str, tuple[Tensor]]:
    return {"logits": (means,)}


def give_bfloat16(means: Tensor) -> Tensor:
    return means.bfloat16()


@pytest.mark.parametrize("make", [traced, exported])
@pytest.mark.parametrize("change", [give_labels, give_probabilities, give_a_dictionary, give_bfloat16])
def test_outputs_that_are_understood(
    make: Callable[..., Path], change: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    with opened(make(tmp_path / "m.pt2", Answer(change))) as classifier:
        prediction = classifier(plain(*LABELS))
    assert tuple(prediction.labels) == LABELS
    assert (prediction.probabilities is None) == (change is give_labels)
    if change is give_probabilities:
        assert prediction.probabilities is not None
        assert prediction.probabilities[0] == pytest.approx([1 / 6, 1 / 6, 4 / 6], rel=1e-4)


def test_the_first_of_equal_scores_is_the_label(tmp_path: Path) -> None:
    with opened(traced(tmp_path / "m.pt", Colour())) as classifier:
        assert tuple(classifier([np.full((4, 6, 3), 9, np.uint8)]).labels) == (0,)


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "NaN": (lambda m: m / 0 * 0, "gave NaN or infinity"),
    "infinity": (lambda m: m / 0, "gave NaN or infinity"),
    "one row too few": (lambda m: m[1:], r"for 5 images it gave float32 of shape \(4, 3\)"),
    "no rows": (lambda m: m.sum(), r"for 5 images it gave float32 of shape \(\)"),
    "a picture": (lambda m: m[:, :, None], r"of shape \(5, 3, 1\), not 5 rows of scores or 5 labels"),
    "fractions": (lambda m: m[:, 0], r"float32 of shape \(5,\)"),
    "whole numbers": (lambda m: m.long(), r"int64 of shape \(5, 3\)"),
    "one class": (lambda m: m[:, :1], "1 number per image; at least two classes"),
    "two classes": (lambda m: m[:, :2], "knows 2 classes, and 3 class names were given"),
    "a label too high": (lambda m: m.argmax(1) + 1, "label 3 is not between 0 and 2"),
    "two tensors": (lambda m: (m, m), "gives 2 outputs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_outputs_that_are_nonsense(case: str, tmp_path: Path) -> None:
    change, message = WRONG[case]
    file = traced(tmp_path / "m.pt", Answer(change), (5, 3, 4, 6))
    with opened(file, classes=NAMES) as classifier, pytest.raises(ClassifierError, match=message) as caught:
        classifier(plain(*LABELS))
    assert str(caught.value).startswith(str(file))
    assert caught.value.exit_code == ExitCode.MODEL


@kinds
def test_a_model_that_fails_says_so(name: str, tmp_path: Path) -> None:
    """A network with a linear layer over all pixels takes one size, and the file may not say which."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    if name == "colour.onnx":
        shape = helper.make_tensor("s", TensorProto.INT64, (2,), (-1, 7))
        nodes = [helper.make_node("Constant", [], ["s"], value=shape)]
        nodes += [helper.make_node("Reshape", ["means", "s"], ["scores"])]
        file = onnx_colour(tmp_path / name, nodes=nodes)
    elif name == "export.pt2":
        file = exported(tmp_path / name, model, free="n")
        with opened(file) as classifier:
            assert classifier(plain(0, size=(9, 9))).labels.shape == (1,)  # it says its size
        return
    else:
        file = KINDS[name](tmp_path / name, model)
    with (
        opened(file) as classifier,
        pytest.raises(ClassifierError, match=r"failed on images of 9 x 9 pixels: .*--input-size") as caught,
    ):
        classifier(plain(0, size=(9, 9)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": ("n", 1, "h", "w")}, r"takes tensor\(float\) \(n, 1, h, w\), not float \(N, 3, H, W\)"),
        ({"shape": ("n", 4, "h", "w")}, "not float"),
        ({"kind": TensorProto.DOUBLE}, r"takes tensor\(double\)"),
        (
            {
                "outputs": [
                    helper.make_tensor_value_info("scores", TensorProto.FLOAT, None),
                    helper.make_tensor_value_info("pooled", TensorProto.FLOAT, None),
                ]
            },
            r"1 inputs and 2 outputs \(images, scores, pooled\)",
        ),
        (
            {"nodes": [helper.make_node("Nonsense", ["means"], ["scores"])]},
            "not an ONNX file that can be used",
        ),
    ],
    ids=["one channel", "four channels", "doubles", "two outputs", "unknown operator"],
)
def test_onnx_files_that_do_not_fit(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=message), opened(onnx_colour(tmp_path / "m.onnx", **settings)):
        pass


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (TwoInputs(), (torch.zeros(1, 3, 4, 4),) * 2, "takes 2 inputs"),
        (
            Answer(lambda m: m),
            (torch.zeros(1, 1, 4, 4),),
            r"float32 \(1, 1, 4, 4\), not float32 \(N, 3, H, W\)",
        ),
        (Answer(lambda m: m), (torch.zeros(1, 3, 4, 4).double(),), "takes torch.float64"),
    ],
    ids=["two inputs", "one channel", "doubles"],
)
def test_exported_files_that_do_not_fit(
    model: nn.Module, inputs: tuple[Tensor, ...], message: str, tmp_path: Path
) -> None:
    torch.export.save(torch.export.export(model, inputs), tmp_path / "m.pt2")
    with pytest.raises(ClassifierError, match=message), opened(tmp_path / "m.pt2"):
        pass


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def repacked(source: Path, target: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """The archive with some of its members changed, and more of them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, data in more.items():
            new.writestr(name, data)
    return target


def as_torch_saves(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def evil_files(folder: Path, touched: Path) -> dict[str, Path]:
    """Files that run code where somebody unpickles them, or loads what they bring."""
    evil = Touch(touched)
    folder.mkdir()
    files = {name: folder / name for name in ("state.pt", "legacy.pth", "plain.onnx")}
    torch.save({"weight": evil}, files["state.pt"])
    torch.save({"weight": evil}, files["legacy.pth"], _use_new_zipfile_serialization=False)
    files["plain.onnx"].write_bytes(pickle.dumps(evil))
    script = scripted(folder / "good.pt", Colour())
    for part in ("data.pkl", "constants.pkl"):
        files[part] = repacked(
            script,
            folder / f"{part}.pt",
            lambda n, d, p=part: pickle.dumps(evil, 2) if n.endswith(f"/{p}") else d,
        )
    good = exported(folder / "good.pt2", Colour())
    files["sample"] = repacked(
        good, folder / "sample.pt2", lambda n, d: as_torch_saves(((evil,), {})) if "sample_inputs" in n else d
    )

    def pickled_weight(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true')
        return as_torch_saves(evil) if name.endswith("weight_0") else data

    files["weight"] = repacked(good, folder / "weight.pt2", pickled_weight)
    constant = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}

    def opaque(name: str, data: bytes) -> bytes:
        return json.dumps({"config": {"c": constant}}).encode() if "constants_config" in name else data

    with zipfile.ZipFile(good) as archive:
        root = archive.namelist()[0].partition("/")[0]
    for spelling in ("data/constants/opaque_obj_0", "DATA/Constants/opaque_obj_0"):
        more = {f"{root}/{spelling}": pickle.dumps(evil)}
        files[spelling] = repacked(good, folder / f"{len(files)}.pt2", opaque, **more)
    return files


EVIL = ("state.pt", "legacy.pth", "plain.onnx", "data.pkl", "constants.pkl", "sample", "weight")
OPAQUE = ("data/constants/opaque_obj_0", "DATA/Constants/opaque_obj_0")


def test_no_file_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    touched = tmp_path / "touched"
    files = evil_files(tmp_path / "evil", touched)
    assert set(files) == {*EVIL, *OPAQUE}
    for file in files.values():
        with pytest.raises(ClassifierError) as caught, opened(file):
            pass
        assert not touched.exists(), file
        assert str(caught.value).startswith(str(file))
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_the_evil_files_would_have_worked(tmp_path: Path) -> None:
    """What the test above refuses does run where torch alone opens it."""
    touched = tmp_path / "touched"
    files = evil_files(tmp_path / "evil", touched)
    for name in ("legacy.pth", "weight", *OPAQUE):
        with suppress(Exception), warnings.catch_warnings(action="ignore"):  # it ran before it failed
            if name == "legacy.pth":
                torch.load(files[name], weights_only=False)
            else:
                torch.export.load(files[name])
        assert touched.exists(), name
        touched.rmdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: torch.save(Colour().state_dict(), f), "checkpoint of torch.save.*torch.export.save"),
        (
            lambda f: torch.save(Colour().state_dict(), f, _use_new_zipfile_serialization=False),
            "is a pickle, which is never opened.*torch.export.save",
        ),
        (lambda f: f.write_bytes(pickle.dumps({}, 4)), "is a pickle, which is never opened"),
        (lambda f: save_file(Colour().state_dict(), f), "safetensors file: weights without a network"),
        (lambda f: f.write_bytes(b""), "is empty"),
        (lambda f: f.write_bytes(b"\x89HDF\r\n"), "is neither TorchScript nor torch.export nor ONNX"),
        (lambda f: f.mkdir(), "is a folder"),
        (lambda f: None, "no such file"),
        (lambda f: f.symlink_to(f), "cannot be read"),
        (lambda f: zipfile.ZipFile(f, "w").writestr("a/b", b"c"), "is an archive, but no model"),
        (
            lambda f: zipfile.ZipFile(f, "w").writestr("serialized_exported_program.json", b"{}"),
            "before torch 2.8",
        ),
        (
            lambda f: zipfile.ZipFile(f, "w").writestr("m/data/aotinductor/model/a.so", b""),
            "is an archive, but no model",
        ),
        (lambda f: f.write_bytes(b"PK\x03\x04" + bytes(100)), "is a damaged archive"),
        (lambda f: f.write_bytes(b"\x08\x07garbage"), "not an ONNX file that can be used"),
    ],
    ids=[
        *("state dict", "legacy", "pickle", "safetensors", "empty", "HDF5", "folder", "missing", "loop"),
        *("archive", "old export", "library", "damaged", "no ONNX"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_files_that_are_no_models(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "model\x1b[31m.pt"
    make(file)
    with pytest.raises(ClassifierError, match=message) as caught, opened(file):
        pass
    assert str(caught.value).isprintable()


def test_machine_code_is_not_loaded(tmp_path: Path) -> None:
    good = exported(tmp_path / "good.pt2", Colour())
    with zipfile.ZipFile(good) as archive:
        root = archive.namelist()[0].partition("/")[0]
    more = {f"{root}/data/aotinductor/model/a.wrapper.so": b"\x7fELF"}
    bad = repacked(good, tmp_path / "bad.pt2", lambda n, d: d, **more)
    with pytest.raises(ClassifierError, match="compiled machine code, which is not run"), opened(bad):
        pass


@kinds
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    file = KINDS[name](tmp_path / name, Colour())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ClassifierError, match=r"damaged archive|not an ONNX file"), opened(file):
        pass


def test_a_program_of_another_torch_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def change(name: str, data: bytes) -> bytes:
        return (
            data.replace(b"aten.mean.dim", b"aten.mean.never") if name.endswith("models/model.json") else data
        )

    good = exported(tmp_path / "good.pt2", Colour())
    with (
        pytest.raises(
            ClassifierError, match=r"torch [0-9.+a-z]+ cannot load it: damaged, or of another version"
        ),
        opened(repacked(good, tmp_path / "bad.pt2", change)),
    ):
        pass
    assert capfd.readouterr().err == ""


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = onnx_colour(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # how Python says that there is none
    with pytest.raises(ClassifierError, match=r"pip install 'zipcli\[onnx\]'"), opened(file):
        pass


@pytest.mark.parametrize("name", ["script.pt", "export.pt2", "colour.onnx"])
def test_an_absent_device_is_an_error(name: str, tmp_path: Path) -> None:
    file = KINDS[name](tmp_path / name, Colour())
    with (
        pytest.raises(ClassifierError, match=r"cannot be loaded as|no CUDA"),
        opened(file, device="cuda:77") as c,
    ):
        c(plain(0))


def sidecar(file: Path, content: object) -> None:
    file.with_name(file.name + ".json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


def test_a_sidecar_says_what_the_file_does_not(tmp_path: Path) -> None:
    file = traced(tmp_path / "m.pt", Colour())
    sidecar(file, {"input_size": 8, "mean": [0, 0.5, -9], "std": [1, 1, 1], "classes": list(NAMES)})
    with opened(file) as classifier:
        assert classifier.classes == NAMES
        assert tuple(classifier(plain(*LABELS)).labels) == (2, 2, 2, 2, 2)
    with opened(file, mean=(0.0, 0.0, 0.0), classes=("a", "b", "c")) as classifier:  # options win
        assert classifier.classes == ("a", "b", "c")
        assert tuple(classifier(plain(*LABELS)).labels) == LABELS


def test_the_input_size_of_a_sidecar_is_used(tmp_path: Path) -> None:
    file = traced(tmp_path / "m.pt", nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3)), (1, 3, 8, 8))
    sidecar(file, {"input_size": 8})
    with opened(file) as classifier:
        assert len(classifier(plain(*LABELS)).labels) == 5
    with opened(file, input_size=9) as classifier, pytest.raises(ClassifierError, match="images of 9 x 9"):
        classifier(plain(0))


def test_a_model_file_is_known_by_its_content_and_its_sidecar(tmp_path: Path) -> None:
    def facts(file: Path, **said: Any) -> dict[str, Any]:
        return identity(ClassifierConfig(classifier=str(file), **said))

    file, other, missing = tmp_path / "m.pt", tmp_path / "other.pt", tmp_path / "missing.pt"
    file.write_bytes(b"weights")
    other.write_bytes(b"weights")
    plain = facts(file)
    assert plain == facts(other) == {"sha256": hashlib.sha256(b"weights").hexdigest()}
    sidecar(file, {"input_size": 8})
    assert facts(file) == {**plain, "input_size": 8} == facts(other, input_size=8)
    assert facts(file, input_size=9) == {**plain, "input_size": 9}
    other.write_bytes(b"others")
    assert facts(other) != plain
    assert facts(missing) == {"classifier": str(missing)}
    sidecar(file, "{")
    with pytest.raises(ConfigError, match=r"m\.pt\.json: is not JSON"):
        facts(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 10_000, "is not JSON"),
        ("[]", "is no JSON object"),
        ({"deviation": [1, 1, 1]}, "unknown setting 'deviation'"),
        ({"input-size": 3}, "Did you mean 'input_size'"),
        ({"device": "cuda"}, "unknown setting 'device'"),
        ({"input_size": 0}, "input size: 0 is not between"),
        ({"input_size": "224"}, "input_size: '224' is not what belongs there"),
        ({"input_size": True}, "input_size: True is not what belongs there"),
        ({"mean": [1, 2]}, "mean: 2 numbers"),
        ({"mean": 0.5}, "mean: 0.5 is not"),
        ({"std": [1, 0, 1]}, "std: every number must be above 0"),
        ({"std": [1, 1, 1e999]}, "std: .* is not what belongs there"),
        ({"classes": "a,b"}, "classes: 'a,b' is not"),
        ({"classes": ["a", 3]}, "classes: .* is not what belongs there"),
        ({"classes": ["a"]}, "at least two"),
        ({"classes": ["a", "\x1b[31m", "\x1b[31m"]}, r"classes: .x1b\[31m is there twice"),
        ({"classes": ["a", " "]}, "a name is empty"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_a_sidecar_that_is_wrong(content: object, message: str, tmp_path: Path) -> None:
    file = traced(tmp_path / "m.pt", Colour())
    sidecar(file, content)
    with pytest.raises(ConfigError, match=message) as caught, opened(file, input_size=5):
        pass
    assert str(caught.value).startswith(f"{file}.json: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classifier": ""}, "name a model file"),
        ({"classifier": " "}, "name a model file"),
        ({"classifier": "a\0b"}, "name a model file"),
        ({"input_size": 0}, "input size"),
        ({"batch_size": 0}, "batch size"),
        ({"mean": (0.0,)}, "mean: 1 numbers"),
        ({"std": (1.0, -1.0, 1.0)}, "std"),
        ({"mean": (float("nan"),) * 3}, "mean"),
        ({"timeout": 5.0}, "timeout: a model file has none"),
        ({"classifier": "cmd:a", "timeout": 0.0}, "timeout: 0.0 is not above 0"),
        ({"classifier": "cmd:a", "mean": (0.0, 0.0, 0.0)}, "mean: it belongs to a model file"),
        ({"classifier": "HTTP://a", "std": (1.0, 1.0, 1.0)}, "std: it belongs to a model file"),
        ({"classifier": "http://a", "retries": -1}, "retries"),
        ({"classes": ("a", "a")}, "a is there twice"),
    ],
    ids=str,
)
def test_settings_that_are_wrong(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifierConfig(**{"classifier": "m.pt", **wrong})
