"""A checkpoint of full size: OpenAI's network at 256 pixels, with random weights."""

import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.shell import ENVIRONMENT, run
from PIL import Image

from zipcli.models.catalog import ARCHITECTURES
from zipcli.models.layouts import guided_sources

PARAMETERS = 552_814_086
BYTES = 4 * PARAMETERS
LOAD = "import torch; from zipcli.models.loading import load_model; "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `open.pt`: as OpenAI saved theirs, views of two flat vectors."""
    folder = tmp_path_factory.mktemp("full")
    architecture = ARCHITECTURES["openai-256"]
    shapes = {
        name: shape
        for source in guided_sources(architecture.network, architecture.qkv_order).values()
        for name, shape in zip(source.names, source.shapes, strict=True)
    }
    generator = torch.Generator().manual_seed(0)
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for is_matrix in (True, False):
        chosen = {name: shape for name, shape in shapes.items() if (len(shape) > 1) == is_matrix}
        flat = torch.empty(sum(map(prod, chosen.values()))).normal_(0, 0.02, generator=generator)
        for name, part in zip(chosen, flat.split([prod(shape) for shape in chosen.values()]), strict=True):
            state[name] = part.view(shapes[name])
    assert sum(tensor.numel() for tensor in state.values()) == PARAMETERS
    torch.save(state, folder / "open.pt")
    del state, flat
    yield folder
    for file in folder.glob("*.pt"), folder.glob("*.safetensors"):
        for big in file:
            big.unlink()  # two gigabytes each


def peak(*command: str, cwd: Path) -> int:
    """Highest resident memory of a process in bytes, mapped files included."""
    with subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.slow
def test_a_full_size_checkpoint_is_converted_loaded_and_used_within_its_memory(folder: Path) -> None:
    bare = peak(sys.executable, "-c", LOAD, cwd=folder)
    zipcli = (sys.executable, "-m", "zipcli")
    convert = ("models", "convert", "open.pt", "open.safetensors", "--like", "openai-256")
    assert peak(*zipcli, *convert, cwd=folder) - bare <= 1.15 * BYTES

    load = LOAD + "load_model('open.safetensors', torch.device('cpu'))"
    assert peak(sys.executable, "-c", load, cwd=folder) - bare <= 1.15 * BYTES

    about = json.loads(run("models", "info", "open.safetensors", "--json", cwd=folder).stdout)
    assert about["parameters"] == PARAMETERS
    assert about["network"]["out_channels"] == 6

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 256, 3), dtype=np.uint8)).save(folder / "in.png")
    data = (folder / "in.png").read_bytes()
    words = (
        "purify",
        "-",
        "-",
        "-m",
        "open.safetensors",
        "--grid",
        "paper",
        "--steps",
        "1",
        "--device",
        "cpu",
    )
    environment = {"OMP_NUM_THREADS": str(os.cpu_count())}
    done = run(*words, input=data, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    (folder / "out.png").write_bytes(done.stdout)
    with Image.open(folder / "out.png") as clean:
        assert clean.size == (256, 200)
        assert np.asarray(clean).std() > 0
