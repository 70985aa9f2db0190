"""Compiled networks compute what their plain forms compute, and say so where they cannot be compiled.

Everything here shares one cache of PyTorch's compiler, so that few shapes are compiled in all.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.shell import invoke, json_lines, pictures, run
from fakes import SMALL_UNET
from PIL import Image
from test_models_packed import randomised, states
from torch import Tensor, nn

from zipcli import Purifier, ZipcliError
from zipcli.config import NoiseSchedule
from zipcli.errors import ConfigError, ExitCode, StoppedError
from zipcli.models.compiled import compiled
from zipcli.models.denoiser import Denoiser
from zipcli.models.local_unet import LocalUNetConfig, build_local_unet
from zipcli.models.prior import Prior
from zipcli.models.unet import UNet
from zipcli.models.weights import write_model

# PyTorch's own, when it imports its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")

SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of one cache for this file."""
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A file with a network of two experts, which differ."""
    shape = LocalUNetConfig(widths=(12,), blocks=(1,), embedding=16, block="gated", bands=(0.5,))
    denoiser = Denoiser(randomised(build_local_unet(shape))).eval()
    file = folder / "tiny.safetensors"
    write_model(file, Prior(denoiser, NoiseSchedule(), 3), {"partial_noise": True})
    return file


def purifier(model: Path, *, compile: bool) -> Purifier:
    return Purifier.from_pretrained(
        str(model), transforms=["blur:2"], device="cpu", compile=compile, dtype="float32"
    )


@pytest.mark.slow
def test_compiled_images_are_those_of_the_plain_network_at_any_size(model: Path) -> None:
    plain, fast = purifier(model, compile=False), purifier(model, compile=True)
    # As many shapes as PyTorch compiles by itself before it gives up.
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        for size in ((SIDE, SIDE), (9, 20)):
            images = torch.rand(5, 3, *size, generator=torch.Generator().manual_seed(0))
            clean = fast(images)
            torch.testing.assert_close(clean, plain(images), rtol=0, atol=1e-4)
            assert (clean - images).abs().max() > 0.01, "nothing was done"
            assert torch.equal(fast(images[3]), clean[3]), "an image depends on its batch"


@pytest.mark.slow
def test_a_compiled_run_is_not_mixed_with_a_plain_one(model: Path, here: Path) -> None:
    pictures(here / "in", 3, (SIDE, SIDE))

    def purify(out: str, *words: str) -> tuple[int, str]:
        done = invoke("purify", "in", out, "--model", model, "--device", "cpu", "-t", "blur:2", *words)
        return done.exit_code, done.stderr

    for out, words in (("plain", ()), ("fast", ("--compile",))):
        code, errors = purify(out, *words)
        assert code == ExitCode.DONE, errors
        settings = json.loads((here / out / ".zipcli" / "run.json").read_text())["settings"]
        assert settings.get("compile", False) == bool(words)
    files = sorted((here / "plain").rglob("*.png"))
    assert len(files) == 3
    for file in files:
        expected = np.asarray(Image.open(file)).astype(int)
        found = np.asarray(Image.open(here / "fast" / file.relative_to(here / "plain"))).astype(int)
        assert np.abs(found - expected).max() <= 1
    for out, words, there in (("plain", ("--compile",), "None there, True now"), ("fast", (), "True there")):
        code, errors = purify(out, *words)
        assert code == ExitCode.USAGE
        assert f"compile: {there}" in errors
    assert purify("fast", "--compile")[0] == ExitCode.DONE


@pytest.mark.slow
def test_the_bench_compiles_too(model: Path, cache: dict[str, str], tmp_path: Path) -> None:
    words = ("--size", str(SIDE), "--seconds", "0.1", "--model", model, "--device", "cpu", "--json")
    done = run("bench", "--compile", *words, cwd=tmp_path, env=cache)
    assert done.returncode == ExitCode.DONE, done.stderr
    start, row = json_lines(done.stdout)
    assert start["settings"]["compile"] is True
    assert row["images_per_s"] > 0


def test_without_a_compiler_nothing_is_begun(model: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "in", 1)
    (tmp_path / "tmp").mkdir()
    environment = {"HF_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PATH": "/nonexistent"}
    done = run("purify", "in", "out", "--model", model, "--compile", cwd=tmp_path, env=environment)
    assert done.returncode == ExitCode.USAGE
    errors = done.stderr.decode()
    assert "compile: PyTorch cannot compile the network for cpu" in errors
    assert "needs a C++ compiler such as g++" in errors
    assert "leave out --compile" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "tmp").glob("torchinductor*")) == [], "others could put code there"
    assert (tmp_path / "home" / "assets" / "zipcli" / "compiled").is_dir()


class Undecided(nn.Module):
    """A network that looks at a number in its input, which no graph can hold."""

    config = LocalUNetConfig()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x * self.weight if level[0] > 0 else x


def undecided() -> Prior:
    return Prior(Denoiser(Undecided()).eval(), NoiseSchedule(), 3)


def test_a_network_that_is_no_graph_is_an_error_and_not_slow_in_silence() -> None:
    model = compiled(undecided())
    with pytest.raises(ConfigError, match=r"cannot compile .*branching.*leave out --compile"):
        model(states(2, 3, 8, 8), torch.full((2,), 200.0))


def test_a_compiler_that_ctrl_c_has_ended_is_no_failure_of_its() -> None:
    is_stopped = False

    def check_stop() -> None:
        if is_stopped:
            raise StoppedError(ExitCode.INTERRUPTED)

    model = compiled(undecided(), check_stop)
    is_stopped = True
    with pytest.raises(StoppedError):
        model(states(2, 3, 8, 8), torch.full((2,), 200.0))


def test_a_network_is_compiled_once() -> None:
    model = compiled(undecided())
    assert isinstance(model, Prior)
    forward = model.denoiser.net.forward
    assert compiled(model) is model
    assert model.denoiser.net.forward is forward


@torch.inference_mode()
def test_a_published_network_is_one_graph() -> None:
    """Traced and not compiled, which would take minutes."""
    net = randomised(UNet(SMALL_UNET))
    traced = torch.compile(net.forward, backend="eager", fullgraph=True, dynamic=False)
    x, t = states(2, SMALL_UNET.in_channels, 16, 16), torch.full((2,), 200.0)
    torch.testing.assert_close(traced(x, t), net(x, t))


def test_a_method_without_a_network_compiles_nothing() -> None:
    with pytest.raises(ZipcliError, match="compile: method blur does not use it"):
        Purifier.from_pretrained(method="blur", compile=True)
