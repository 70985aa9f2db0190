"""Training a prior on a folder, with tiny networks: what is written, and what is refused."""

import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from zipcli.config import NoiseSchedule, TrainConfig
from zipcli.errors import ConfigError, ExitCode, LockedError, ModelError, OutputError, Reason, StoppedError
from zipcli.models.denoiser import Denoiser
from zipcli.models.hub import Listener
from zipcli.models.loading import load_model
from zipcli.models.local_unet import SIZES, LocalUNet, LocalUNetConfig
from zipcli.models.prior import Prior, UNetPrior
from zipcli.models.unet import UNet
from zipcli.models.unet_config import UNetConfig
from zipcli.models.weights import write_model
from zipcli.pipeline import train as train_module
from zipcli.pipeline.lock import locked
from zipcli.pipeline.sheet import draw_sheet, to_pixels
from zipcli.pipeline.train import TrainResult, train_prior
from zipcli.training import trainer as trainer_module
from zipcli.training.trainer import Report, Trainer

CPU = torch.device("cpu")
TINY = LocalUNetConfig(widths=(16, 32), blocks=(1, 1), embedding=16)
PUBLISHED = UNetConfig(
    widths=(16, 32),
    blocks=1,
    attention_down=(False, True),
    attention_up=(False, True),
    time_features=16,
    time_width=32,
    norm_groups=8,
    middle_groups=8,
    side=16,
)


@dataclass
class Notebook:
    """A watcher that writes everything down."""

    lines: list[tuple[Any, ...]] = field(default_factory=list)

    def skipped(self, path: str, reason: Reason, message: str) -> None:
        self.lines.append(("skipped", path, reason, message))

    def note(self, text: str) -> None:
        self.lines.append(("note", text))

    def doing(self, what: str) -> None:
        self.lines.append(("doing", what))

    def started(self, facts: Mapping[str, Any]) -> None:
        self.lines.append(("started", dict(facts)))

    def progressed(self, report: Report) -> None:
        self.lines.append(("progressed", report))

    def measured(self, share: float, eps_mse: float) -> None:
        self.lines.append(("measured", share, eps_mse))

    def of(self, kind: str) -> list[Any]:
        return [line[1] if len(line) == 2 else line[1:] for line in self.lines if line[0] == kind]


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "small", TINY)


def smooth(number: int, side: int = 24) -> np.ndarray:
    """A picture with something to learn: a soft ramp of two colours."""
    rng = np.random.default_rng(number)
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    weight = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1) + 1)[..., None] / 2
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    return np.clip(weight * first + (1 - weight) * second, 0, 255).astype(np.uint8)


def folder_of(folder: Path, count: int, side: int = 24, start: int = 0) -> Path:
    for number in range(start, start + count):
        place = folder / ("deep/er" if number % 3 == 1 else "deep" if number % 3 == 2 else ".")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(number, side)).save(place / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty soft ramps, two thirds of them in subfolders."""
    return folder_of(tmp_path_factory.mktemp("pictures") / "in", 20)


def settings(**given: Any) -> TrainConfig:
    return TrainConfig(
        **{"steps": 3, "crop": 16, "batch_size": 2, "device": "cpu", "dtype": "float32", **given}
    )


def train(
    folder: Path,
    target: Path,
    config: TrainConfig | None = None,
    watcher: Notebook | None = None,
    **options: Any,
) -> TrainResult:
    check_stop = options.pop("check_stop", lambda: None)
    listener = Listener(check_stop=check_stop)
    return train_prior(folder, target, config or settings(), watcher or Notebook(), listener, **options)


def weights(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def stop_after(count: int) -> Callable[[], None]:
    """Stop when the training loop asks the n-th time; reading the images asks as well."""
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked >= count:
            raise StoppedError(ExitCode.INTERRUPTED)

    return check


class StopAtStep:
    """Stops a run when it has done a number of steps, whoever asks how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step: int | None = None
        self.done = 0
        advance = Trainer.advance

        def counting(trainer: Trainer) -> tuple[int, Tensor]:
            result = advance(trainer)
            self.done = trainer.step
            return result

        monkeypatch.setattr(Trainer, "advance", counting)

    def __call__(self) -> None:
        if self.step is not None and self.done >= self.step:
            raise StoppedError(ExitCode.INTERRUPTED)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> StopAtStep:
    return StopAtStep(monkeypatch)


def stopped(
    folder: Path, target: Path, stop: StopAtStep, step: int, config: TrainConfig, **options: Any
) -> None:
    """Begin or go on, and stop at a step."""
    stop.step, stop.done = step, 0
    with pytest.raises(StoppedError):
        train(folder, target, config, check_stop=stop, **options)
    stop.step, stop.done = None, 0


# From scratch


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult, Notebook]:
    """A new network, trained for three steps."""
    target = tmp_path_factory.mktemp("trained") / "new.safetensors"
    notebook = Notebook()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "small", TINY)
        result = train(pictures, target, settings(steps=3), notebook)
    return target, result, notebook


def test_a_new_network_is_written_whole_with_its_sheet_and_nothing_else(
    trained: tuple[Path, TrainResult, Notebook],
) -> None:
    target, result, _ = trained
    assert left(target.parent) == {"new.safetensors", "new.png"}
    assert (result.file, result.sheet) == (target, target.with_name("new.png"))
    loaded = load_model(str(target), CPU)
    assert isinstance(loaded.model, Prior)
    assert loaded.sha256 == result.sha256
    assert loaded.model.denoiser.net.config == TINY
    assert not loaded.notes
    x_t = torch.randn(1, 3, 16, 16)
    assert loaded.model(x_t, torch.tensor([500.0])).isfinite().all()


def test_the_card_says_how_the_model_was_made(trained: tuple[Path, TrainResult, Notebook]) -> None:
    target, result, notebook = trained
    with safe_open(target, framework="pt") as f:
        description = json.loads(f.metadata()["zipcli"])
    card = description["card"]
    assert card == result.card
    assert (card["files"], card["images"], card["held_out"]) == (20, 18, 2)
    assert (card["step"], card["crop"], card["batch_size"], card["seed"]) == (3, 16, 2, 0)
    assert "from" not in card
    assert card["parameters"] == sum(tensor.numel() for tensor in weights(target).values())
    assert card["eps_mse"] == pytest.approx(result.after.eps_mse, abs=1e-5)
    assert description["schedule"]["kind"] == "linear"
    assert result.before is None
    assert [row.std for row in result.after.rows] == [0.05, 0.1, 0.2, 0.5, 1.0]
    (started,) = notebook.of("started")
    assert started["step"] == 0
    assert notebook.of("note") == ["20 images are few: the model may learn them by heart"]
    assert notebook.of("progressed")[-1].share == 1


def test_the_spread_of_the_images_preconditions_a_new_network(tmp_path: Path) -> None:
    for name, high in (("soft", 140), ("hard", 255)):
        (tmp_path / name).mkdir()
        for number in range(4):
            levels = np.random.default_rng(number).choice([255 - high, high], (16, 16, 3)).astype(np.uint8)
            Image.fromarray(levels).save(tmp_path / name / f"{number}.png")
        train(tmp_path / name, tmp_path / f"{name}.safetensors", settings(steps=1))
    spreads = [
        load_model(str(tmp_path / f"{n}.safetensors"), CPU).model.denoiser.sigma_data
        for n in ("soft", "hard")
    ]
    assert spreads == [pytest.approx(0.1, abs=0.01), pytest.approx(1, abs=0.01)]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    trained: tuple[Path, TrainResult, Notebook], pictures: Path, tmp_path: Path
) -> None:
    again = train(pictures, tmp_path / "again.safetensors", settings(steps=3))
    assert_same_weights(trained[0], again.file)
    assert again.after.eps_mse == trained[1].after.eps_mse
    assert trained[1].sheet.read_bytes() == again.sheet.read_bytes()
    other = train(pictures, tmp_path / "other.safetensors", settings(steps=3, seed=1))
    assert not torch.equal(weights(trained[0])["stem.weight"], weights(other.file)["stem.weight"])


def test_training_leaves_the_random_numbers_of_others_alone(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    train(pictures, tmp_path / "m.safetensors", settings(steps=1))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_what_is_written_has_the_permissions_that_the_umask_leaves(
    pictures: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        result = train(pictures, tmp_path / "m.safetensors", settings(steps=1))
    finally:
        os.umask(before)
    for file in (result.file, result.sheet):
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_bfloat16_trains(pictures: Path, tmp_path: Path) -> None:
    result = train(pictures, tmp_path / "m.safetensors", settings(dtype="bfloat16"))
    assert result.card["dtype"] == "bfloat16"
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in weights(result.file).values())


def test_the_learning_curve_is_told(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0)
    notebook = Notebook()
    result = train(pictures, tmp_path / "m.safetensors", settings(steps=20), notebook)
    points = notebook.of("measured")
    assert [share for share, _ in points] == [pytest.approx(n / 10) for n in range(1, 10)]
    assert all(math.isfinite(error) for _, error in points)
    assert len(notebook.of("progressed")) == 20
    assert points[-1][1] == pytest.approx(result.after.eps_mse, rel=0.3)


# From a model


def our_file(path: Path, seed: int = 0, config: LocalUNetConfig = TINY) -> Path:
    torch.manual_seed(seed)
    denoiser = Denoiser(LocalUNet(config), 0.4)
    write_model(path, Prior(denoiser, NoiseSchedule(), config.channels), {"data": "none"})
    return path


def published_file(path: Path, schedule: NoiseSchedule | None = None, **changes: Any) -> Path:
    torch.manual_seed(0)
    net = UNet(replace(PUBLISHED, **changes))
    write_model(path, UNetPrior(net, schedule or NoiseSchedule()), {})
    return path


def test_tuning_improves_on_the_start_and_shows_both(tmp_path: Path, pictures: Path) -> None:
    start = our_file(tmp_path / "start.safetensors")
    config = settings(model=str(start), steps=100, lr=0.01, batch_size=8)
    result = train(pictures, tmp_path / "m.safetensors", config)
    assert result.before is not None
    assert [row.noisy_psnr for row in result.before.rows] == [row.noisy_psnr for row in result.after.rows]
    gains = [
        a.denoised_psnr - b.denoised_psnr for a, b in zip(result.after.rows, result.before.rows, strict=True)
    ]
    assert min(gains[1:]) > 0  # at std 0.05 there is little to gain in a second
    assert gains[3] > 1
    assert [a.eps_mse < b.eps_mse for a, b in zip(result.after.rows, result.before.rows, strict=True)][
        1:
    ] == [True] * 4
    origin = result.card["from"]
    assert (origin["name"], origin["sha256"]) == (start.name, load_model(str(start), CPU).sha256)
    loaded = load_model(str(result.file), CPU).model
    assert isinstance(loaded, Prior)
    assert loaded.denoiser.sigma_data == 0.4


def test_the_start_is_the_start(tmp_path: Path, pictures: Path) -> None:
    """At a tiny rate, what comes out is what went in."""
    start = our_file(tmp_path / "start.safetensors")
    result = train(pictures, tmp_path / "m.safetensors", settings(model=str(start), lr=1e-9))
    before, after = weights(start), weights(result.file)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("out_channels", [3, 6])
def test_a_published_network_is_tuned_through_its_own_timesteps(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, prediction: str, out_channels: int
) -> None:
    schedule = NoiseSchedule(kind="scaled_linear", beta_start=0.001, beta_end=0.2, timesteps=100)
    start = published_file(
        tmp_path / "start.safetensors",
        schedule,
        prediction=prediction,
        out_channels=out_channels,
        timestep_scale=2.0,
    )
    seen: set[float] = set()
    forward = UNet.forward

    def watching(net: UNet, x: Tensor, t: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.update((t / 2).tolist())
        return forward(net, x, t)

    monkeypatch.setattr(UNet, "forward", watching)
    config = settings(model=str(start), steps=30, lr=2e-3, batch_size=8, crop=None)
    result = train(pictures, tmp_path / "m.safetensors", config)
    assert seen <= set(range(100))
    assert len(seen) > 30
    assert result.before is not None
    # Noise levels from 0.05 up; the coarse chain has none below its first timestep.
    improved = [
        after.eps_mse < before.eps_mse
        for before, after in zip(result.before.rows, result.after.rows, strict=True)
    ]
    assert all(improved), (result.before, result.after)
    loaded = load_model(str(result.file), CPU)
    assert isinstance(loaded.model, UNetPrior)
    assert loaded.model.schedule == schedule
    assert loaded.model.net.config.prediction == prediction
    assert loaded.model.native_side == 16
    assert result.card["crop"] == 16
    if out_channels == 6:  # the loss does not see the variance, but the file still has it
        old, new = weights(start)["head.conv.weight"], weights(result.file)["head.conv.weight"]
        assert torch.equal(old[3:], new[3:])
        assert not torch.equal(old[:3], new[:3])


def test_a_published_network_sees_only_its_own_side(tmp_path: Path, pictures: Path) -> None:
    start = published_file(tmp_path / "start.safetensors")
    with pytest.raises(ConfigError, match=r"crop: .*16 pixels"):
        train(pictures, tmp_path / "m.safetensors", settings(model=str(start), crop=24))
    train(pictures, tmp_path / "m.safetensors", settings(model=str(start), crop=16, steps=1))


def test_a_published_network_of_any_side_is_tuned_on_odd_crops(tmp_path: Path, pictures: Path) -> None:
    start = published_file(tmp_path / "start.safetensors", side=None)
    result = train(pictures, tmp_path / "m.safetensors", settings(model=str(start), crop=13))
    assert result.card["crop"] == 13
    assert math.isfinite(result.after.eps_mse)


@pytest.mark.parametrize("kind", ["ours", "published"])
def test_a_model_of_grey_images_learns_grey_images(tmp_path: Path, pictures: Path, kind: str) -> None:
    start = tmp_path / "start.safetensors"
    if kind == "ours":
        our_file(start, config=replace(TINY, channels=1))
    else:
        published_file(start, in_channels=1, out_channels=1)
    result = train(pictures, tmp_path / "m.safetensors", settings(model=str(start)))
    assert load_model(str(result.file), CPU).model.channels == 1
    with Image.open(result.sheet) as sheet:
        assert sheet.mode == "RGB"


@pytest.mark.parametrize("channels", [2, 4, 8])
def test_a_model_of_something_else_than_images_is_refused(
    tmp_path: Path, pictures: Path, channels: int
) -> None:
    start = published_file(tmp_path / "start.safetensors", in_channels=channels, out_channels=channels)
    with pytest.raises((ConfigError, ModelError), match="channels"):
        train(pictures, tmp_path / "m.safetensors", settings(model=str(start), crop=None))


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of diffusers, as its own library writes it."""
    folder = tmp_path_factory.mktemp("diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another library
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            out_channels=6,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )
        scheduler = DDPMScheduler(prediction_type="v_prediction", variance_type="learned_range")
        DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder


def test_a_folder_of_diffusers_is_tuned_and_becomes_one_file(
    tmp_path: Path, pictures: Path, diffusers_folder: Path
) -> None:
    config = settings(model=str(diffusers_folder), crop=None)
    result = train(pictures, tmp_path / "m.safetensors", config)
    tuned = load_model(str(result.file), CPU).model
    assert isinstance(tuned, UNetPrior)
    assert tuned.net.config.prediction == "v_prediction"
    assert tuned.net.config.out_channels == 6
    assert result.card["lr"] == train_module.LR_PUBLISHED
    start = load_model(str(diffusers_folder), CPU).model
    x_t, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0])
    torch.testing.assert_close(tuned(x_t, t), start(x_t, t), rtol=0, atol=0.15)  # three small steps away
    assert not torch.equal(tuned(x_t, t), start(x_t, t))


def test_notes_about_the_start_reach_the_user(tmp_path: Path, pictures: Path, diffusers_folder: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(diffusers_folder, start)
    shutil.rmtree(start / "scheduler")
    (start / "model_index.json").unlink()
    expected = load_model(str(start / "unet"), CPU).notes
    assert any("schedule" in note for note in expected)
    notebook = Notebook()
    train(
        pictures,
        tmp_path / "m.safetensors",
        settings(model=str(start / "unet"), crop=None, steps=1),
        notebook,
    )
    assert set(expected) <= set(notebook.of("note"))


def test_the_builtin_prior_is_tuned(tmp_path: Path, pictures: Path) -> None:
    config = settings(model="builtin", steps=2, crop=8)
    result = train(pictures, tmp_path / "m.safetensors", config)
    builtin = load_model("builtin", CPU).model
    tuned = load_model(str(result.file), CPU).model
    assert isinstance(builtin, Prior)
    assert isinstance(tuned, Prior)
    assert tuned.denoiser.net.config == builtin.denoiser.net.config
    assert tuned.denoiser.sigma_data == builtin.denoiser.sigma_data
    assert result.card["lr"] == train_module.LR_TUNED
    x_t, t = torch.randn(1, 3, 16, 16), torch.tensor([300.0])
    torch.testing.assert_close(tuned(x_t, t), builtin(x_t, t), rtol=0, atol=0.1)


def test_a_model_trains_into_its_own_file(tmp_path: Path, pictures: Path) -> None:
    start = our_file(tmp_path / "m.safetensors")
    before = weights(start)
    train(pictures, start, settings(model=str(start), lr=0.01), overwrite=True)
    assert not torch.equal(weights(start)["stem.weight"], before["stem.weight"])


def test_a_missing_folder_is_found_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("2 GB are fetched for nothing")

    monkeypatch.setattr(train_module, "load_model", load)
    with pytest.raises(ConfigError, match="no such folder"):
        train(tmp_path / "nowhere", tmp_path / "m.safetensors", settings(model="openai-256"))


# A run that diverges


def test_a_network_that_overflows_gives_no_model(tmp_path: Path, pictures: Path) -> None:
    torch.manual_seed(0)
    net = UNet(PUBLISHED)
    with torch.no_grad():
        net.get_parameter("head.conv.weight").mul_(1e25)  # whose squares are no floats any more
    start = tmp_path / "start.safetensors"
    write_model(start, UNetPrior(net, NoiseSchedule()), {})
    target = tmp_path / "m.safetensors"
    with pytest.raises(ModelError, match=r"not finite.*--lr"):
        train(pictures, target, settings(model=str(start), lr=0.99))
    assert not target.exists()
    assert not target.with_suffix(".png").exists()


def test_tuning_that_ruins_a_published_network_gives_no_model(tmp_path: Path, pictures: Path) -> None:
    """At an absurd rate the weights stay finite, and the network predicts nothing any more."""
    start = published_file(tmp_path / "start.safetensors")
    config = settings(model=str(start), steps=150, lr=3e-3, batch_size=8)
    good = train(pictures, tmp_path / "good.safetensors", config)
    assert all(row.denoised_psnr > row.noisy_psnr + 1 for row in good.after.rows)
    target = tmp_path / "m.safetensors"
    with pytest.raises(ModelError, match="--lr"):
        train(pictures, target, settings(model=str(good.file), steps=120, lr=0.99, batch_size=4))
    assert not target.exists()


def test_a_loss_that_is_not_a_number_gives_no_model(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = train_module.denoising_loss
    monkeypatch.setattr(train_module, "denoising_loss", lambda *a: loss(*a) * math.nan)
    target = tmp_path / "m.safetensors"
    with pytest.raises(ModelError, match="--lr"):
        train(pictures, target)
    assert left(tmp_path) <= {
        "m.safetensors.training",
        *(f"m.safetensors.training/{n}" for n in ("lock", "checkpoint.safetensors")),
    }
    monkeypatch.undo()
    monkeypatch.setitem(SIZES, "small", TINY)
    train(pictures, target, settings(lr=1e-3), restart=True)
    assert target.exists()


# Stop and go on


@pytest.mark.parametrize("kind", ["new", "ours", "published"])
def test_a_stopped_run_goes_on_to_the_same_weights(
    tmp_path: Path, pictures: Path, stop: StopAtStep, kind: str
) -> None:
    model = None
    if kind != "new":
        make = our_file if kind == "ours" else published_file
        model = str(make(tmp_path / "start.safetensors"))
    config = settings(model=model, steps=6, lr=3e-3)
    whole = train(pictures, tmp_path / "whole.safetensors", config)
    target = tmp_path / "cut.safetensors"
    for step in (1, 4):
        stopped(pictures, target, stop, step, config)
        assert not target.exists()
        assert not target.with_suffix(".png").exists()
    notebook = Notebook()
    cut = train(pictures, target, config, notebook)
    assert notebook.of("started")[0]["step"] == 4
    assert_same_weights(whole.file, cut.file)
    assert whole.sheet.read_bytes() == cut.sheet.read_bytes()
    assert whole.after == cut.after
    assert whole.before == cut.before
    assert not target.with_name("cut.safetensors.training").exists()


def test_a_stop_before_the_first_step_leaves_nothing_wrong(tmp_path: Path, pictures: Path) -> None:
    whole = train(pictures, tmp_path / "whole.safetensors")
    for count in (1, 5, 25):
        with pytest.raises(StoppedError):
            train(pictures, tmp_path / "cut.safetensors", check_stop=stop_after(count))
    assert_same_weights(whole.file, train(pictures, tmp_path / "cut.safetensors").file)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 9}, "seed: 0 there, 9 now"),
        ({"crop": 8}, "crop: 16 there, 8 now"),
        ({"batch_size": 3}, "batch_size: 2 there, 3 now"),
        ({"lr": 0.02}, "lr: 0.004 there, 0.02 now"),
        ({"holdout": 0.4}, "holdout: 0.1 there, 0.4 now"),
        ({"dtype": "bfloat16"}, "dtype: torch.float32 there, torch.bfloat16 now"),
        ({"exclude": ("000.png",)}, "images differ"),
        ({"model": "START"}, "start: small there, "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_other_settings_are_refused_by_name_and_restart_begins_anew(
    tmp_path: Path, pictures: Path, stop: StopAtStep, changes: dict[str, Any], named: str
) -> None:
    target = tmp_path / "m.safetensors"
    stopped(pictures, target, stop, 2, settings())
    checkpoint = target.with_name("m.safetensors.training") / "checkpoint.safetensors"
    kept = checkpoint.read_bytes()
    if "model" in changes:
        changes = {"model": str(our_file(tmp_path / "start.safetensors"))}
    config = settings(**changes)
    with pytest.raises(ConfigError, match="--restart") as caught:
        train(pictures, target, config)
    assert named in str(caught.value)
    assert checkpoint.read_bytes() == kept
    notebook = Notebook()
    result = train(pictures, target, config, notebook, restart=True)
    assert notebook.of("started")[0]["step"] == 0
    assert_same_weights(result.file, train(pictures, tmp_path / "anew.safetensors", config).file)


@pytest.mark.parametrize("change", ["one more", "one less", "another name", "another picture", "same size"])
def test_other_images_are_refused(tmp_path: Path, stop: StopAtStep, change: str) -> None:
    folder = folder_of(tmp_path / "in", 6)
    levels = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)
    Image.fromarray(levels).save(folder / "a.bmp")
    target = tmp_path / "m.safetensors"
    stopped(folder, target, stop, 1, settings())
    if change == "one more":
        folder_of(folder, 1, start=9)
    elif change == "one less":
        (folder / "000.png").unlink()
    elif change == "another name":
        (folder / "000.png").rename(folder / "zzz.png")
    elif change == "another picture":
        Image.fromarray(smooth(99, 30)).save(folder / "000.png")
    else:  # as all bitmaps of one width and height have
        Image.fromarray(255 - levels).save(folder / "a.bmp")
    with pytest.raises(ConfigError, match=r"images differ.*--restart"):
        train(folder, target)


def test_another_length_is_allowed(tmp_path: Path, pictures: Path, stop: StopAtStep) -> None:
    target = tmp_path / "m.safetensors"
    stopped(pictures, target, stop, 2, settings(steps=100))
    stopped(pictures, target, stop, 4, settings(steps=None, minutes=60))
    result = train(pictures, target, settings(steps=5))
    assert result.card["step"] == 5
    stopped(pictures, tmp_path / "b.safetensors", stop, 4, settings(steps=100))
    assert train(pictures, tmp_path / "b.safetensors", settings(steps=2)).card["step"] == 4


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100, None], ids=["empty", "garbage", "cut short"])
def test_a_damaged_checkpoint_is_an_error_that_restart_cures(
    tmp_path: Path, pictures: Path, stop: StopAtStep, damage: bytes | None
) -> None:
    target = tmp_path / "m.safetensors"
    stopped(pictures, target, stop, 2, settings())
    checkpoint = target.with_name("m.safetensors.training") / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9] if damage is None else damage)
    with pytest.raises(ModelError, match=r"checkpoint\.safetensors: .*--restart"):
        train(pictures, target)
    assert not target.exists()
    result = train(pictures, target, restart=True)
    assert_same_weights(result.file, train(pictures, tmp_path / "anew.safetensors").file)


def test_restart_without_an_earlier_run_just_begins(tmp_path: Path, pictures: Path) -> None:
    assert train(pictures, tmp_path / "m.safetensors", restart=True).file.exists()


def test_two_runs_of_one_model_do_not_mix(tmp_path: Path, pictures: Path) -> None:
    work = tmp_path / "m.safetensors.training"
    work.mkdir()
    with (
        locked(work / "lock", tmp_path / "m.safetensors"),
        pytest.raises(LockedError, match=str(os.getpid())),
    ):
        train(pictures, tmp_path / "m.safetensors")
    train(pictures, tmp_path / "m.safetensors")


def test_what_appears_at_the_target_while_training_is_not_replaced(
    tmp_path: Path, pictures: Path, stop: StopAtStep
) -> None:
    target = tmp_path / "m.safetensors"
    stopped(pictures, target, stop, 2, settings())
    made = False

    def somebody_else() -> None:
        nonlocal made
        if stop.done == 3 and not made:
            made = True
            target.write_bytes(b"mine")

    with pytest.raises((ConfigError, OutputError)):
        train(pictures, target, check_stop=somebody_else)
    assert made
    assert target.read_bytes() == b"mine"


# What is refused


def one_picture(folder: Path) -> Path:
    return folder_of(folder / "in", 1)


def small_pictures(folder: Path) -> Path:
    return folder_of(folder / "in", 5, side=12)


def no_pictures(folder: Path) -> Path:
    (folder / "in" / "sub").mkdir(parents=True)
    (folder / "in" / "notes.txt").write_text("nothing to see")
    return folder / "in"


def bad_pictures(folder: Path) -> Path:
    (folder / "in").mkdir()
    for n in range(3):
        (folder / "in" / f"{n}.png").write_text("no picture")
    return folder / "in"


def a_file(folder: Path) -> Path:
    return folder_of(folder / "in", 1) / "000.png"


def nowhere(folder: Path) -> Path:
    return folder / "nowhere"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (one_picture, "1 of 1 files"),
        (small_pictures, "0 of 5 files are images of at least 16 pixels"),
        (no_pictures, "no images found"),
        (bad_pictures, "0 of 3 files"),
        (a_file, "not a folder"),
        (nowhere, "no such folder"),
    ],
)
def test_a_folder_without_enough_images_is_refused_and_nothing_is_left(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    folder = make(tmp_path)
    before = left(tmp_path)
    with pytest.raises(ConfigError, match=words):
        train(folder, tmp_path / "m.safetensors")
    assert left(tmp_path) == before


def test_a_model_that_is_not_there_leaves_nothing(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ModelError):
        train(pictures, tmp_path / "m.safetensors", settings(model=str(tmp_path / "gone.safetensors")))
    assert left(tmp_path) == set()


def test_three_images_are_enough_but_few(tmp_path: Path) -> None:
    notebook = Notebook()
    result = train(folder_of(tmp_path / "in", 3), tmp_path / "m.safetensors", watcher=notebook)
    assert (result.card["images"], result.card["held_out"]) == (2, 1)
    assert any("3 images are few" in note for note in notebook.of("note"))
    with Image.open(result.sheet) as sheet:
        sheet.load()


def test_a_crop_of_more_than_any_image_is_refused(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match="at least 32 pixels"):
        train(pictures, tmp_path / "m.safetensors", settings(crop=32))


def test_a_crop_may_be_larger_than_a_piece(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 3, side=640)
    result = train(folder, tmp_path / "m.safetensors", settings(crop=600, steps=1, batch_size=1))
    assert result.card["crop"] == 600
    assert result.card["images"] + result.card["held_out"] == 3


def test_a_model_that_is_there_is_replaced_only_on_demand(tmp_path: Path, pictures: Path) -> None:
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        train(pictures, target)
    assert left(tmp_path) == {"m.safetensors"}
    assert target.read_bytes() == b"mine"
    result = train(pictures, target, overwrite=True)
    assert load_model(str(target), CPU).sha256 == result.sha256


def test_a_picture_of_the_users_is_not_replaced_by_the_sheet(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"m\.png"):
        train(pictures, tmp_path / "m.safetensors")
    assert (tmp_path / "m.png").read_bytes() == b"mine"
    assert left(tmp_path) == {"m.png"}


def test_a_folder_in_the_place_of_the_sheet_is_refused_at_once(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "m.png").mkdir()
    notebook = Notebook()
    with pytest.raises((ConfigError, OutputError), match=r"m\.png"):
        train(pictures, tmp_path / "m.safetensors", watcher=notebook, overwrite=True)
    assert notebook.of("progressed") == []


@pytest.mark.parametrize("name", ["m", "m.pt", "m.safetensors.gz", ".safetensors"])
def test_a_model_must_be_called_one(tmp_path: Path, pictures: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.safetensors"):
        train(pictures, tmp_path / name)
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    "name", ["m.safetensors", "deep/m.safetensors", "../in/m.safetensors", "link/m.safetensors"]
)
def test_a_model_inside_the_folder_that_is_learned_from_is_refused(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "in", 4)
    (folder / "link").symlink_to(folder / "deep")
    before = left(tmp_path)
    with pytest.raises(ConfigError, match="learned from"):
        train(folder, folder / name)
    assert left(tmp_path) == before


def test_a_folder_called_like_a_model_is_refused(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(ConfigError, match="folder"):
        train(pictures, tmp_path / "m.safetensors", overwrite=True)


def test_the_folders_above_a_model_are_made(tmp_path: Path, pictures: Path) -> None:
    train(pictures, tmp_path / "a" / "b" / "m.safetensors", settings(steps=1))
    assert left(tmp_path / "a" / "b") == {"m.safetensors", "m.png"}


def test_a_file_in_the_place_of_a_folder_is_an_output_error(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        train(pictures, tmp_path / "file" / "m.safetensors")


# The sheet


@pytest.fixture
def model(tmp_path: Path) -> Prior | UNetPrior:
    return load_model(str(our_file(tmp_path / "model.safetensors")), CPU).model


@pytest.mark.parametrize(("count", "side"), [(1, 16), (5, 24), (12, 64)])
def test_the_sheet_shows_what_it_says(model: Prior, count: int, side: int) -> None:
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = draw_sheet(model, images, seed=3)
    assert data == draw_sheet(model, images, seed=3)
    assert data != draw_sheet(model, images, seed=4)
    zoom = round(128 / side)
    cell = side * zoom + 4
    with Image.open(io.BytesIO(data)) as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (90 + cell * min(8, count), cell * 8)  # held out, three pairs, invented
        drawn = np.asarray(sheet)
    for n in range(min(8, count)):
        corner = 90 + n * cell
        shown = drawn[: side * zoom : zoom, corner : corner + side * zoom : zoom]
        assert np.array_equal(shown, to_pixels(images[n : n + 1])[0])
    rows = [drawn[r * cell : r * cell + side * zoom, 90 : 90 + side * zoom] for r in range(8)]
    errors = [float(np.abs(row.astype(int) - rows[0]).mean()) for row in rows]
    assert errors[1] < errors[3] < errors[5]  # more and more noise
    assert (drawn[:, :90] < 100).any()  # labels


def test_pixels_of_a_sheet_are_those_of_the_images() -> None:
    levels = torch.arange(256).view(1, 1, 16, 16)
    (shown,) = to_pixels(levels / 127.5 - 1)
    assert shown.shape == (16, 16, 3)
    assert np.array_equal(shown[..., 0], levels[0, 0].numpy())
    assert np.array_equal(shown[..., 0], shown[..., 2])
    assert to_pixels(torch.full((1, 3, 2, 2), -7.0))[0].max() == 0


# Purifying with what came of it


def test_what_was_trained_purifies(trained: tuple[Path, TrainResult, Notebook]) -> None:
    from zipcli import Purifier

    purifier = Purifier.from_pretrained(str(trained[0]), device="cpu", steps=2, grid="paper", seed=0)
    picture = Image.fromarray(smooth(3, 20))
    clean = purifier(picture)
    assert clean.size == picture.size
    assert np.asarray(clean).astype(int).std() > 1
