"""Files of tensors that nobody vouches for."""

import io
import json
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zipcli.errors import ModelError
from zipcli.models import tensors
from zipcli.models.published import save
from zipcli.models.tensors import HEADER_LIMIT, open_pickle, open_safetensors


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, fired: Path) -> None:
        self.fired = fired

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.fired), "w")


def test_a_state_dict_is_read_as_it_was_saved(tmp_path: Path) -> None:
    flat = torch.randn(24)
    state = OrderedDict(
        a=flat[:6].view(2, 3), b=flat[6:8], c=torch.randn(4, 3).t(), d=torch.randn(2).bfloat16()
    )
    torch.save(state, tmp_path / "m.pt")
    file = open_pickle(tmp_path / "m.pt")
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in state.items():
        assert torch.equal(file.read(name), tensor)
    torch.save({"state_dict": state}, tmp_path / "wrapped.pt")
    assert open_pickle(tmp_path / "wrapped.pt").shapes == file.shapes


def test_a_tensor_under_two_names_is_read_twice(tmp_path: Path) -> None:
    tensor = torch.randn(1000)
    torch.save({"a": tensor, "b": tensor}, tmp_path / "m.pt")
    assert torch.equal(open_pickle(tmp_path / "m.pt").read("b"), tensor)


def test_views_of_one_storage_become_safetensors(tmp_path: Path) -> None:
    """OpenAI's files hold views of two flat vectors; safetensors wants each tensor by itself."""
    flat = torch.randn(10)
    torch.save(OrderedDict(a=flat[:6].view(2, 3), b=flat[6:]), tmp_path / "m.pt")
    file = open_pickle(tmp_path / "m.pt")
    save(tmp_path / "m.safetensors", {n: file.read(n) for n in file.shapes}, {}, lambda: None)
    loaded = load_file(tmp_path / "m.safetensors")
    assert torch.equal(loaded["a"], flat[:6].view(2, 3))
    assert torch.equal(loaded["b"], flat[6:])


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: {"w": c}, lambda c: {"state_dict": {"w": c}}])
@pytest.mark.parametrize("forced", [False, True])
def test_a_pickle_that_wants_to_run_something_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Any], Any], forced: bool
) -> None:
    if forced:  # PyTorch's switch for those who leave the argument out
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(wrap(Canary(tmp_path / "fired")), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"wants to run.*open"):
        open_pickle(tmp_path / "m.pt")
    assert not (tmp_path / "fired").exists()


def test_the_canary_sings(tmp_path: Path) -> None:
    torch.save(Canary(tmp_path / "fired"), tmp_path / "m.pt")
    torch.load(tmp_path / "m.pt", weights_only=False).close()
    assert (tmp_path / "fired").exists()


def bytes_of(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


GOOD = bytes_of({"w": torch.zeros(1000)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><title>Login</title>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (pickle.dumps({"w": 1}), "not a PyTorch file"),
        (bytes_of({"w": torch.zeros(3)}, _use_new_zipfile_serialization=False), "not a PyTorch file"),
        (GOOD[: len(GOOD) // 2], "damaged"),
        (b"PK\x03\x04", "damaged"),
        (bytes_of([torch.zeros(3)]), "a list, not"),
        (bytes_of({}), "a dict, not"),
        (bytes_of({"w": 3}), "w is not a tensor"),
        (bytes_of({"w": torch.zeros(3, dtype=torch.int64)}), "floating point"),
        (bytes_of({1: torch.zeros(3)}), "1 is not a tensor"),
        (bytes_of({"w": torch.zeros(1).expand(2**40)}), "claim"),
        (bytes_of({f"w{i}": GOOD_TENSOR for i, GOOD_TENSOR in enumerate([torch.zeros(2000)] * 50)}), "claim"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # addresses of tensors are in some contents
)
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        open_pickle(tmp_path / "m.pt")


def test_an_old_torch_may_not_open_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.pt").write_bytes(GOOD)
    monkeypatch.setattr(tensors.torch, "__version__", "2.9.1")
    with pytest.raises(ModelError, match=r"torch 2\.10"):
        open_pickle(tmp_path / "m.pt")


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, length=HEADER_LIMIT + 1),
        safetensors({}, length=2**63),
        safetensors({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
        safetensors({"a": entry(4, 12, [2])}, bytes(12)),
        safetensors({"a": entry(0, 8, [3])}, bytes(8)),
        safetensors({"a": entry(0, 8, [2])}, bytes(9)),
        safetensors({"a": entry(0, 2**40, [2**38])}),
        safetensors({"a": entry(0, 8, [2], "F33")}, bytes(8)),
        safetensors(b"{", bytes(8)),
        safetensors(b'{"a\xff": 1}'),
    ],
    ids=["limit", "absurd", "overlap", "hole", "shape", "trailing", "beyond", "dtype", "json", "text"],
)
def test_a_malformed_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with (
        pytest.raises(ModelError, match="not a safetensors file, or a damaged one"),
        open_safetensors(tmp_path / "m.safetensors"),
    ):
        pass


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3, dtype=torch.int64)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="w is I64"), open_safetensors(tmp_path / "m.safetensors"):
        pass


def test_a_description_that_is_no_description_is_ignored(tmp_path: Path) -> None:
    for text in ("", "[1]", "3", "{", "[" * 100_000):
        save_file({"w": torch.zeros(3)}, tmp_path / "m.safetensors", metadata={"zipcli": text})
        with open_safetensors(tmp_path / "m.safetensors") as file:
            assert file.description is None
