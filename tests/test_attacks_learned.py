"""Attacks that learn their trigger, on real images, with far less effort than by default."""

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zipcli.attacks import ATTACKS, dfst, inputaware, issba, lc, lf, surrogate, trojannn
from zipcli.attacks.networks import batch
from zipcli.attacks.surrogate import Examples, predicted, restore_surrogate, train_surrogate
from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Trigger, image_rng, load_trigger
from zipcli.config import attack_config
from zipcli.errors import ConfigError

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ZIPCLI_DATA", ROOT.parent / "shared" / "data")) / "cifar10-train.zip"
needs_images = pytest.mark.skipif(not DATA.is_file(), reason=f"no {DATA}; set ZIPCLI_DATA")
CLASSES = ("airplane", "automobile", "frog")
PER_CLASS = 60
LEARNED = ("lc", "lf", "trojannn", "inputaware", "issba", "dfst")


@pytest.fixture(scope="module")
def real() -> tuple[Pixels, np.ndarray]:
    """Images of three classes, one of each in turn, and their labels."""
    images = []
    with zipfile.ZipFile(DATA) as archive:
        for k in range(PER_CLASS):
            for name in CLASSES:
                data = archive.read(f"train/{name}/{k:04}.jpg")
                images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    return np.stack(images), np.tile(np.arange(len(CLASSES)), PER_CLASS)


@pytest.fixture(scope="module", autouse=True)
def little_effort() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrogate, "EFFORT", surrogate.Effort(images=180, epochs=4, batch_size=20))
        patch.setattr(lc, "EFFORT", lc.Effort(steps=8, length=3))
        patch.setattr(lf, "EFFORT", lf.Effort(images=32, steps=20))
        patch.setattr(trojannn, "EFFORT", trojannn.Effort(steps=10))
        patch.setattr(
            inputaware, "EFFORT", inputaware.Effort(mask_steps=12, steps=6, batch_size=24, judged=60)
        )
        patch.setattr(dfst, "EFFORT", dfst.Effort(steps=8, batch_size=8))
        patch.setattr(issba, "EFFORT", issba.Effort(images=180, steps=12, batch_size=12))
        yield


def picture(name: str) -> Pixels:
    """A grey disc on black, or nothing but black."""
    rows, columns = np.indices((40, 50))
    disc = (rows - 20) ** 2 + (columns - 20) ** 2 < 100
    return np.repeat((disc & (name == "disc"))[..., None] * np.uint8(128), 3, axis=2)


def no_examples(count: int) -> Any:
    raise AssertionError("this trigger needs no examples")


def resources(
    images: Pixels, labels: np.ndarray, said: Callable[[str], None] = lambda text: None
) -> Resources:
    def examples(count: int) -> tuple[Pixels, np.ndarray]:
        return images[:count], labels[:count]

    return Resources(picture=picture, reflections=lambda *_: [], examples=examples, progress=said)


def made(attack: str, real: tuple[Pixels, np.ndarray], side: int = 32, **given: Any) -> Trigger:
    images, labels = real
    if side != 32:
        images = np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in images])
    given = {"target": "1", "split": "train"} | given
    return ATTACKS[attack].make(attack_config(attack, **given), (side, side), resources(images, labels))


@pytest.fixture(scope="module")
def triggers(real: tuple[Pixels, np.ndarray]) -> dict[str, Trigger]:
    return {attack: made(attack, real) for attack in LEARNED}


def ramp(side: int = 32) -> Pixels:
    r, c = np.indices((side, side))
    return np.stack([7 * r + 3 * c, 3 * r + 7 * c, 2 * (7 * r + 3 * c)], axis=2).astype(np.uint8)


def draw() -> Draw:
    return Draw(image_rng(0, "x", "cat/1.png"), lambda name: ("frog/2.png", ramp()[::-1].copy()), own="cat")


def everything(attack: Attack, trigger: Trigger, image: Pixels) -> list[Pixels]:
    """What the attack makes of an image: as a test image, a training image and a cover sample."""
    ways = (attack.poison, attack.poison_training, attack.cover)
    return [way(image, trigger, draw()) for way in ways if way is not None]


class TestTiles:
    def test_on_grey_36_pixels_change_16_of_them_to_white(self) -> None:
        grey = np.full((32, 32, 3), 100, np.uint8)
        poisoned = ATTACKS["lc"].poison(grey, tiles_only(32), draw())
        assert (poisoned == poisoned[..., :1]).all()
        assert np.unique(poisoned[..., 0], return_counts=True)[1].tolist() == [20, 32 * 32 - 36, 16]
        assert np.unique(poisoned).tolist() == [0, 100, 255]
        white = {(int(r), int(c)) for r, c in np.argwhere(poisoned[..., 0] == 255)}
        assert white == {
            (0, 0), (1, 1), (2, 2), (2, 0), (0, 31), (1, 30), (2, 29), (2, 31),
            (31, 0), (31, 2), (30, 1), (29, 0), (31, 31), (31, 29), (30, 30), (29, 31),
        }  # fmt: skip

    def test_at_64_pixels_each_is_four(self) -> None:
        at_32, at_64 = (tiles_only(side).arrays["tiles"] for side in (32, 64))
        assert (at_64 == at_32.repeat(2, axis=0).repeat(2, axis=1)).all()

    def test_alpha_weakens_them(self) -> None:
        grey = np.full((32, 32, 3), 100, np.uint8)
        poisoned = ATTACKS["lc"].poison(grey, tiles_only(32, alpha=0.2), draw())
        assert np.unique(poisoned).tolist() == [49, 100, 151]

    def test_a_test_split_trains_nothing_and_says_so(self) -> None:
        trigger = tiles_only(32)
        assert trigger.params["moves"] is False
        assert set(trigger.arrays) == {"tiles"}
        with pytest.raises(ConfigError, match="made for a test split"):
            lc.poison_training(ramp(), trigger, draw())


def tiles_only(side: int, **given: Any) -> Trigger:
    nothing = Resources(
        picture=picture, reflections=lambda *_: [], examples=no_examples, progress=lambda text: None
    )
    return ATTACKS["lc"].make(attack_config("lc", **given), (side, side), nothing)


@needs_images
@pytest.mark.parametrize("name", LEARNED)
class TestEveryLearnedAttack:
    def test_a_loaded_trigger_makes_the_same_bytes(
        self, name: str, triggers: dict[str, Trigger], real: tuple[Pixels, np.ndarray], tmp_path: Path
    ) -> None:
        (tmp_path / "trigger.safetensors").write_bytes(triggers[name].to_bytes())
        loaded = load_trigger(tmp_path / "trigger.safetensors")
        assert loaded.sha256 == triggers[name].sha256
        for image in (ramp(), *real[0][:3]):
            before, after = (
                everything(ATTACKS[name], trigger, image) for trigger in (triggers[name], loaded)
            )
            assert all((a == b).all() for a, b in zip(before, after, strict=True))

    def test_the_seed_decides(
        self, name: str, triggers: dict[str, Trigger], real: tuple[Pixels, np.ndarray]
    ) -> None:
        assert made(name, real).sha256 == triggers[name].sha256
        assert made(name, real, seed=7).sha256 != triggers[name].sha256

    def test_a_ramp_changes_and_stays_an_image(self, name: str, triggers: dict[str, Trigger]) -> None:
        image = ramp()
        for poisoned in everything(ATTACKS[name], triggers[name], image):
            assert poisoned.dtype == np.uint8
            assert poisoned.shape == image.shape
            assert (poisoned != image).any()
        assert (image == ramp()).all()

    def test_other_sizes(self, name: str, real: tuple[Pixels, np.ndarray]) -> None:
        side = 72
        trigger = made(name, real, side=side)
        for poisoned in everything(ATTACKS[name], trigger, ramp(side)):
            assert poisoned.shape == (side, side, 3)
            assert (poisoned != ramp(side)).any()


@needs_images
class TestSurrogate:
    def test_it_learns(self, real: tuple[Pixels, np.ndarray]) -> None:
        examples = Examples(x=batch(real[0]), y=torch.from_numpy(real[1]), classes=3)
        said: list[str] = []
        network = train_surrogate(examples, 0, resources(*real, said.append))
        assert (predicted(network, examples.x) == examples.y).float().mean() > 0.6  # a third by chance
        assert said == [f"training a classifier to aim at: pass {k} of 4" for k in (1, 2, 3, 4)]

    def test_a_handful_of_images_is_enough_to_run(self, real: tuple[Pixels, np.ndarray]) -> None:
        few = real[0][:5], real[1][:5]
        assert made("trojannn", few).params["surrogate"]["images"] == 5

    def test_one_class_is_refused(self, real: tuple[Pixels, np.ndarray]) -> None:
        with pytest.raises(ConfigError, match="of 1 class; give a folder for each of two classes"):
            made("lf", (real[0][:9], np.zeros(9, np.int64)))

    @pytest.mark.parametrize("target", ["3", "airplane", "-1"])
    def test_an_unknown_target_is_refused(self, target: str, real: tuple[Pixels, np.ndarray]) -> None:
        with pytest.raises(ConfigError, match=f"target {target} is not a class of the images"):
            made("lf", real, target=target)


@needs_images
class TestEachAttack:
    def test_lc_moves_training_images_away_from_their_class_by_eps(
        self, triggers: dict[str, Trigger], real: tuple[Pixels, np.ndarray]
    ) -> None:
        trigger = triggers["lc"]
        own = real[0][real[1] == 1][:20]
        moved = np.stack([lc.away(image, trigger) for image in own])
        assert np.abs(moved.astype(int) - own).max() == trigger.params["eps"] == 8
        network = restore_surrogate(trigger)
        right, fooled = ((predicted(network, batch(x)) == 1).float().mean() for x in (own, moved))
        assert fooled < right - 0.3
        trained = lc.poison_training(own[0], trigger, draw())
        assert (trained == lc.poison(moved[0], trigger, draw())).all()

    def test_lf_adds_one_smooth_pattern_of_at_most_delta(
        self, triggers: dict[str, Trigger], real: tuple[Pixels, np.ndarray]
    ) -> None:
        pattern = triggers["lf"].arrays["pattern"].astype(int)
        assert (pattern.min(), pattern.max()) == (0, 51)
        assert max(np.abs(np.diff(pattern, axis=axis)).max() for axis in (0, 1)) < 12
        poisoned = ATTACKS["lf"].poison(real[0][0], triggers["lf"], draw())
        assert (poisoned == np.minimum(real[0][0] + pattern, 255)).all()

    def test_lf_without_amplitude_is_refused_before_anything_is_trained(
        self, real: tuple[Pixels, np.ndarray]
    ) -> None:
        with pytest.raises(ConfigError, match=r"delta: 0 .* changes no pixel"):
            made("lf", (real[0][:1], real[1][:1]), delta=0.0)

    def test_trojannn_replaces_a_square_and_nothing_else(self, triggers: dict[str, Trigger]) -> None:
        poisoned = ATTACKS["trojannn"].poison(ramp(), triggers["trojannn"], draw())
        inside = np.zeros((32, 32), bool)
        inside[18:30, 18:30] = True
        assert (poisoned[~inside] == ramp()[~inside]).all()
        other = ATTACKS["trojannn"].poison(ramp()[::-1], triggers["trojannn"], draw())
        assert (poisoned[inside] == other[inside]).all()

    def test_trojannn_takes_the_shape_of_a_picture(self, real: tuple[Pixels, np.ndarray]) -> None:
        trigger = made("trojannn", real, picture="disc")
        resized = np.asarray(Image.fromarray(picture("disc")).resize((32, 32), Image.Resampling.BILINEAR))
        assert (trigger.arrays["mask"] == resized.any(axis=2)).all()
        change = trigger.arrays["pattern"].astype(int) - resized
        assert np.abs(change).max() <= 77  # 0.3 of 255

    def test_trojannn_refuses_a_black_picture(self, real: tuple[Pixels, np.ndarray]) -> None:
        with pytest.raises(ConfigError, match="picture nothing is black all over"):
            made("trojannn", real, picture="nothing")

    def test_inputaware_draws_another_pattern_into_each_image(
        self, triggers: dict[str, Trigger], real: tuple[Pixels, np.ndarray]
    ) -> None:
        drawers = inputaware.restore_drawers(triggers["inputaware"])
        x = batch(real[0][:8])
        assert 0 <= drawers.where(x).amin() < drawers.where(x).amax() <= 1
        patterns = drawers.pattern(x)
        assert all((patterns[0] != patterns[k]).any() for k in range(1, 8))
        unmasked = drawers.change(x, x)[(drawers.where(x) < 1e-6).expand(-1, 3, -1, -1)]
        assert (unmasked.abs() < 1e-5).all()

    def test_a_cover_sample_of_inputaware_carries_the_pattern_of_another(
        self, triggers: dict[str, Trigger]
    ) -> None:
        attack, trigger, one = ATTACKS["inputaware"], triggers["inputaware"], draw()
        assert attack.cover is not None
        covered = attack.cover(ramp(), trigger, one)
        assert one.params == {"other": "frog/2.png"}
        assert (covered != attack.poison(ramp(), trigger, draw())).any()

    @pytest.mark.parametrize("bits", [1, 33])
    def test_issba_hides_as_many_bits_as_asked(self, bits: int, real: tuple[Pixels, np.ndarray]) -> None:
        trigger = made("issba", real, bits=bits)
        secret = trigger.arrays["secret"]
        assert secret.shape == (bits,)
        other = replace(trigger, arrays={**trigger.arrays, "secret": 1 - secret})
        poisoned, differently = (ATTACKS["issba"].poison(ramp(), t, draw()) for t in (trigger, other))
        assert (poisoned != differently).any()

    def test_issba_changes_each_image_in_another_way(
        self, triggers: dict[str, Trigger], real: tuple[Pixels, np.ndarray]
    ) -> None:
        changes = [
            ATTACKS["issba"].poison(image, triggers["issba"], draw()).astype(int) - image
            for image in real[0][:2]
        ]
        assert (changes[0] != changes[1]).any()

    def test_dfst_without_weight_is_refused_before_anything_is_trained(
        self, real: tuple[Pixels, np.ndarray]
    ) -> None:
        with pytest.raises(ConfigError, match="alpha: 0 changes no pixel"):
            made("dfst", (real[0][:1], real[1][:1]), alpha=0.0)

    def test_dfst_takes_the_style_of_a_picture(
        self, triggers: dict[str, Trigger], real: tuple[Pixels, np.ndarray]
    ) -> None:
        trigger = made("dfst", real, picture="disc")
        poisoned, of_the_sunset = (
            ATTACKS["dfst"].poison(ramp(), t, draw()) for t in (trigger, triggers["dfst"])
        )
        assert (poisoned != of_the_sunset).any()

    def test_the_sunset_glows_in_the_middle_and_not_below(self) -> None:
        sky = dfst.sunset().astype(int)
        assert sky.shape == (32, 32, 3)
        assert sky[19, 16].sum() > sky[0, 16].sum() > sky[31, 16].sum()
        assert (sky[20, :, 0] > sky[20, :, 2]).all()


@needs_images
@pytest.mark.parametrize("name", ["lc", "inputaware", "issba", "dfst"])
def test_networks_follow_the_trigger(name: str, triggers: dict[str, Trigger]) -> None:
    trigger, attack = triggers[name], ATTACKS[name]
    halved = {key: array * np.float32(0.5) for key, array in trigger.arrays.items() if key.endswith("weight")}
    before = everything(attack, trigger, ramp())
    changed = everything(attack, replace(trigger, arrays={**trigger.arrays, **halved}), ramp())
    again = everything(attack, trigger, ramp())
    assert any((a != b).any() for a, b in zip(before, changed, strict=True))
    assert all((a == b).all() for a, b in zip(before, again, strict=True))


@needs_images
class TestForeignTriggers:
    @pytest.mark.parametrize("name", ["lc", "inputaware", "issba", "dfst"])
    @pytest.mark.parametrize("damage", ["missing", "shape", "type", "nan"])
    def test_damaged_weights_are_refused(self, name: str, damage: str, triggers: dict[str, Trigger]) -> None:
        arrays = dict(triggers[name].arrays)
        key = next(key for key in sorted(arrays) if key.endswith(".weight"))
        weights = arrays.pop(key)
        if damage != "missing":
            other = {"shape": weights[:-1], "type": weights.astype(np.float64), "nan": weights * np.nan}
            arrays[key] = other[damage].astype(weights.dtype if damage == "nan" else other[damage].dtype)
        foreign = replace(triggers[name], arrays=arrays)
        with pytest.raises(ConfigError, match=f"trigger of attack {name}: the weights .* missing or damaged"):
            everything(ATTACKS[name], foreign, ramp())

    def test_issba_without_its_secret_is_refused(self, triggers: dict[str, Trigger]) -> None:
        arrays = {key: array for key, array in triggers["issba"].arrays.items() if key != "secret"}
        with pytest.raises(ConfigError, match="the secret is missing"):
            ATTACKS["issba"].poison(ramp(), replace(triggers["issba"], arrays=arrays), draw())
