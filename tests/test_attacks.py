"""The attacks against the published bytes, and the properties that all of them share."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from zipcli.attacks import ATTACKS, bpp, physical
from zipcli.attacks.choice import choose
from zipcli.attacks.trigger import (
    Attack,
    Draw,
    Pixels,
    Resources,
    Trigger,
    image_rng,
    load_trigger,
)
from zipcli.config import ATTACK_SETTINGS, PROFILES, AttackConfig, attack_config
from zipcli.errors import ConfigError

PURE = ("badnets", "blended", "physical", "wanet", "sig", "bpp", "refool", "cba")


def ramp(height: int = 32, width: int = 32) -> Pixels:
    """R = 7r + 3c, G = 3r + 7c, B = 2R, modulo 256."""
    r, c = np.indices((height, width))
    return np.stack([7 * r + 3 * c, 3 * r + 7 * c, 2 * (7 * r + 3 * c)], axis=2).astype(np.uint8)


def grey(level: int, side: int = 32) -> Pixels:
    return np.full((side, side, 3), level, np.uint8)


def no_examples(count: int) -> Any:
    raise AssertionError("this attack needs no examples")


RESOURCES = Resources(
    picture=lambda name: ramp(40, 50),
    reflections=lambda folder, size: [
        ("a.png", ramp(*size)),
        ("b.png", np.ascontiguousarray(ramp(*size)[::-1])),
    ],
    examples=no_examples,
    progress=lambda text: None,
)


def config_of(attack: str, **given: Any) -> AttackConfig:
    if attack == "refool":
        given.setdefault("reflections", "photos")
    return attack_config(attack, **given)


def made(attack: str, side: int = 32, **given: Any) -> tuple[Attack, Trigger]:
    return ATTACKS[attack], ATTACKS[attack].make(config_of(attack, **given), (side, side), RESOURCES)


def draw(path: str = "cat/1.png", seed: int = 0, attack: str = "x") -> Draw:
    return Draw(image_rng(seed, attack, path), lambda name: (f"other of {name}", ramp()[::-1]), own="cat")


def sha(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


class TestVectors:
    def test_zip_patch_up_to_128_pixels(self) -> None:
        _, trigger = made("badnets")
        patch = trigger.arrays["pattern"][26:29, 26:29].transpose(2, 0, 1).reshape(-1).tolist()
        assert patch == [
            228, 130, 41, 32, 13, 170, 241, 137, 202, 225, 63, 115, 247, 125, 107, 203, 131, 224,
            212, 4, 141, 65, 154, 106, 239, 1, 176,
        ]  # fmt: skip
        assert np.argwhere(trigger.arrays["mask"][..., 0]).min() == 26
        assert trigger.arrays["mask"].sum() == 27

    def test_first_normal_numbers(self) -> None:
        drawn = torch.randn(27, generator=torch.Generator().manual_seed(1234))[:6].tolist()
        assert drawn == pytest.approx([-0.1117, -0.4966, 0.1631, -0.8817, 0.0539, 0.6684], abs=5e-5)

    def test_zip_patch_above_128_pixels(self) -> None:
        _, trigger = made("badnets", side=256)
        patch = trigger.arrays["pattern"][244:253, 244:253].transpose(2, 0, 1)
        assert patch[0, 0].tolist() == [228, 130, 41, 32, 13, 170, 241, 137, 202]
        assert patch[1, 0].tolist() == [80, 99, 70, 109, 72, 193, 52, 217, 153]
        assert patch[2, 0].tolist() == [6, 192, 88, 72, 244, 158, 22, 177, 57]
        assert sha(patch) == "c58fa07fe4e5dfb783d0b1ab9201fc7f1a398a998226bec51be818e5f3629d5b"

    def test_paper_patch_is_the_corner_of_the_published_one(self) -> None:
        _, trigger = made("badnets", profile="zip-paper")
        assert trigger.arrays["pattern"][27:29, 27:29, 0].tolist() == [[228, 130], [32, 13]]
        assert trigger.arrays["mask"].sum() == 12

    @pytest.mark.parametrize(
        ("side", "digest"),
        [
            (32, "ee9296313cc1061f44c1c272f01d9a65b16972f6c569fd19aeac2437c984d39a"),
            (256, "df60ce1913cbacc3e252c00455fa7efefc81721fd97d9f23b51cf122c8a4bc0f"),
        ],
    )
    def test_zip_noise(self, side: int, digest: str) -> None:
        _, trigger = made("blended", side=side)
        pattern = trigger.arrays["pattern"]
        assert pattern[0, :10, 0].tolist() == [210, 156, 141, 65, 56, 34, 177, 15, 130, 189]
        assert sha(pattern[..., 0]) == digest
        assert (pattern == pattern[..., :1]).all()

    @pytest.mark.parametrize(("x", "p", "expected"), [(100, 200, 120), (5, 0, 4), (255, 254, 254)])
    def test_blended_in_whole_numbers(self, x: int, p: int, expected: int) -> None:
        attack, trigger = made("blended")
        trigger = replace(trigger, arrays={"pattern": grey(p)})
        assert (attack.poison(grey(x), trigger, draw()) == expected).all()

    def test_sig_offsets(self) -> None:
        attack, trigger = made("sig")
        offsets = attack.poison(grey(100), trigger, draw())[0, :, 0].astype(int) - 100
        half = [0, 36, 28, -16, -40, -16, 28, 36, 0, -37, -29, 15, 40, 15, -29, -37]
        assert offsets.tolist() == [*half, -1, *half[1:]]
        attack, trigger = made("sig", side=256)
        offsets = attack.poison(grey(100, 256), trigger, draw())[7, :16, 2].astype(int) - 100
        assert offsets.tolist() == [0, 5, 11, 17, 22, 26, 30, 34, 36, 38, 39, 39, 39, 37, 35, 32]

    @pytest.mark.parametrize(
        ("levels", "expected"),
        [
            (8, [0, 36, 73, 109, 146, 182, 219, 255]),
            (
                32,
                [
                    0, 8, 16, 25, 33, 41, 49, 58, 66, 74, 82, 90, 99, 107, 115, 123, 132, 140, 148, 156, 165,
                    173, 181, 189, 197, 206, 214, 222, 230, 239, 247, 255,
                ],
            ),
        ],
    )  # fmt: skip
    def test_bpp_levels(self, levels: int, expected: list[int]) -> None:
        attack, trigger = made("bpp", levels=levels)
        every = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
        assert np.unique(attack.poison(every, trigger, draw())).tolist() == expected

    def test_wanet(self) -> None:
        attack, trigger = made("wanet", seed=1234)
        warped = attack.poison(ramp(), trigger, draw())
        assert sha(warped).startswith("2ffed03974bd0f5c")
        attack, trigger = made("wanet", seed=0)
        assert sha(attack.poison(ramp(), trigger, draw())).startswith("5c7e8e21e7ff5cb6")

    def test_wanet_grid(self) -> None:
        grid = made("wanet", seed=1234)[1].arrays["grid"]
        identity = np.linspace(-1, 1, 32)
        noise = (grid[16, 16] - [identity[16], identity[16]]) * 32 / 0.5
        assert noise.tolist() == pytest.approx([-0.061472, -0.440561], abs=1e-4)

    def test_sampdetox_chessboard(self) -> None:
        _, trigger = made("badnets", profile="sampdetox")
        assert trigger.arrays["pattern"][29:, 29:, 1].tolist() == [[0, 255, 0], [255, 0, 255], [0, 255, 0]]

    @pytest.mark.parametrize(
        ("side", "corner"),
        [(64, [64, 191] + [255] * 5), (256, [16, 48, 80, 112, 143, 175, 207, 239] + [255] * 20)],
    )
    def test_resized_mask_has_a_grey_fringe(self, side: int, corner: list[int]) -> None:
        _, trigger = made("badnets", side=side, profile="backdoorbench")
        row = trigger.arrays["pattern"][-1, :, 0].tolist()
        assert [level for level in row if level] == corner

    @pytest.mark.parametrize(
        ("count", "n", "first", "digest"),
        [
            (50_000, 2_500, [4564, 15975, 32972, 20607, 32086], "ae00df5d3286001e"),
            (39_209, 1_960, [27858, 16913, 27873, 29400, 27250], "2dfeb7adc2dc4290"),
            (9_469, 473, [5455, 5274, 5947, 8371, 5115], "2e3f5f7884ac5823"),
        ],
    )
    def test_zip_indices(self, count: int, n: int, first: list[int], digest: str) -> None:
        config = attack_config("badnets", split="train")
        chosen, covers = choose(config, [0] * count, [""] * count, 1, None)
        assert (len(chosen), covers) == (n, set())
        assert set(first) <= chosen
        assert index_digest(chosen) == digest

    def test_physical_shuffles_three_times(self) -> None:
        config = attack_config("physical", split="train", test_images=10_000)
        chosen, _ = choose(config, [0] * 50_000, [""] * 50_000, 1, None)
        assert {49515, 16125, 13974, 34756, 48676} <= chosen
        assert index_digest(chosen) == "32e2633ca4605ab4"

    def test_backdoorbench_indices(self) -> None:
        config = attack_config("badnets", "backdoorbench", split="train")
        chosen, _ = choose(config, [0] * 50_000, [""] * 50_000, 0, None)
        assert {11841, 19602, 45519, 25747, 42642, 31902, 30346, 12363} <= chosen
        assert index_digest(chosen) == "76e71e838aa4faf2"


def index_digest(chosen: set[int]) -> str:
    return hashlib.sha256(",".join(map(str, sorted(chosen))).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", PURE)
class TestEveryPureAttack:
    def test_changes_a_ramp_losslessly(self, name: str) -> None:
        attack, trigger = made(name)
        image = ramp()
        before = image.copy()
        poisoned = attack.poison(image, trigger, draw())
        assert poisoned.shape == image.shape
        assert poisoned.dtype == np.uint8
        assert (poisoned != image).any()
        assert (image == before).all()

    def test_depends_on_the_path_and_the_seed_alone(self, name: str) -> None:
        attack, trigger = made(name)
        first = attack.poison(ramp(), trigger, draw("cat/1.png"))
        attack.poison(ramp(), trigger, draw("cat/2.png"))
        assert (attack.poison(ramp(), trigger, draw("cat/1.png")) == first).all()

    def test_reloaded_trigger_gives_the_same_bytes(self, name: str, tmp_path: Any) -> None:
        attack, trigger = made(name)
        (tmp_path / "trigger.safetensors").write_bytes(trigger.to_bytes())
        loaded = load_trigger(tmp_path / "trigger.safetensors")
        assert loaded.sha256 == trigger.sha256
        assert (attack.poison(ramp(), loaded, draw()) == attack.poison(ramp(), trigger, draw())).all()

    def test_is_made_again_from_its_seed(self, name: str) -> None:
        assert made(name)[1].to_bytes() == made(name)[1].to_bytes()


class TestPatch:
    @pytest.mark.parametrize(
        "profile", ["zip-code", "zip-paper", "backdoorbench", "backdoorbox", "sampdetox"]
    )
    def test_changes_nothing_outside_the_mask(self, profile: str) -> None:
        attack, trigger = made("badnets", profile=profile)
        poisoned = attack.poison(ramp(), trigger, draw())
        outside = trigger.arrays["mask"] == 0
        assert (poisoned == ramp())[outside].all()
        assert (poisoned == trigger.arrays["pattern"])[~outside].all()

    def test_that_does_not_fit_is_refused(self) -> None:
        config = attack_config("badnets", patch_size=30, margin=3)
        with pytest.raises(
            ConfigError, match=r"30 pixels, 3 from the edge, does not fit into images of 32x32"
        ):
            ATTACKS["badnets"].make(config, (32, 32), RESOURCES)


class TestPhysical:
    def test_test_images_are_badnets_as_published(self) -> None:
        attack, trigger = made("physical")
        badnets, patch = made("badnets")
        assert (attack.poison(ramp(), trigger, draw()) == badnets.poison(ramp(), patch, draw())).all()

    @pytest.mark.parametrize("kind", ["flip", "jitter", "affine", "all"])
    def test_transforms_are_drawn_and_recorded(self, kind: str) -> None:
        attack, trigger = made("physical", physical_test=kind)
        draws = [draw(f"{k}.png") for k in range(8)]
        images = {attack.poison(ramp(), trigger, one).tobytes() for one in draws}
        assert len(images) >= (2 if kind == "flip" else 8)
        assert any(one.params for one in draws)

    def test_affine_shrinks_and_leaves_a_black_border(self) -> None:
        moved = physical.transform(grey(200), draw(), ("affine",))
        assert set(np.unique(moved)) == {0, 200}
        assert (moved[0] == 0).all() or (moved[-1] == 0).all()
        assert 0.55 < (moved > 0).mean() < 0.85


class TestWanet:
    def test_needs_squares(self) -> None:
        with pytest.raises(ConfigError, match="48x32 pixels are not square; use --size"):
            ATTACKS["wanet"].make(attack_config("wanet"), (32, 48), RESOURCES)

    def test_cover_is_another_warp(self) -> None:
        attack, trigger = made("wanet")
        assert attack.cover is not None
        assert (attack.cover(ramp(), trigger, draw()) != attack.poison(ramp(), trigger, draw())).any()

    def test_released_program_of_zip_jitters_each_pixel(self) -> None:
        grid = made("wanet", profile="zip-code")[1].arrays["grid"]
        smooth = made("wanet")[1].arrays["grid"]
        assert np.abs(np.diff(grid, 2, axis=0)).mean() > 10 * np.abs(np.diff(smooth, 2, axis=0)).mean()


class TestBpp:
    def test_dithering_keeps_the_mean(self) -> None:
        attack, trigger = made("bpp", levels=2, dither=True)
        dithered = attack.poison(grey(100), trigger, draw())
        assert set(np.unique(dithered)) == {0, 255}
        assert dithered.mean() == pytest.approx(100, abs=4)

    def test_dithering_against_a_plain_transcription(self) -> None:
        image = ramp(6, 7)
        attack, trigger = made("bpp", dither=True)
        work = image.astype(np.float64)
        for r in range(6):
            for c in range(7):
                for k in range(3):
                    old = work[r, c, k]
                    new = round(old / 255 * 7) / 7 * 255
                    work[r, c, k] = new
                    for dr, dc, share in ((0, 1, 7), (1, 1, 1), (1, 0, 5), (1, -1, 3)):
                        if r + dr < 6 and 0 <= c + dc < 7:
                            work[r + dr, c + dc, k] += (old - new) * share / 16
        expected = np.clip(np.rint(work), 0, 255).astype(np.uint8)
        assert (attack.poison(image, trigger, draw()) == expected).all()

    def test_cover_adds_what_another_image_loses(self) -> None:
        attack, trigger = made("bpp")
        assert attack.cover is not None
        other = ramp()[::-1]
        change = np.rint(bpp.quantised(other, 8)) - other
        expected = np.clip(grey(128) + change, 0, 255)
        assert (attack.cover(grey(128), trigger, draw()) == expected).all()


class TestCba:
    def test_joins_two_images_and_nothing_else(self) -> None:
        attack, trigger = made("cba")
        one = draw()
        one.other = lambda name: (f"of {name}", grey(200))
        joined = attack.poison(grey(50), trigger, one)
        assert set(np.unique(joined)) == {50, 200}
        assert 0.35 < (joined == 50).mean() < 0.65
        assert one.params["other"] == "of 1"

    def test_cover_joins_within_a_class(self) -> None:
        attack, trigger = made("cba")
        one = draw()
        assert attack.cover is not None
        attack.cover(grey(50), trigger, one)
        assert one.params["other"] == "other of cat"

    def test_of_one_class_alone_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="names 0 twice"):
            made("cba", sources=("0", "0"))


class TestRefool:
    def test_needs_photographs(self) -> None:
        with pytest.raises(ConfigError, match="--reflections DIR"):
            ATTACKS["refool"].make(attack_config("refool"), (32, 32), RESOURCES)

    def test_both_kinds_are_drawn_and_recorded(self) -> None:
        attack, trigger = made("refool")
        draws = [draw(f"{k}.png") for k in range(20)]
        for one in draws:
            attack.poison(grey(90), trigger, one)
        assert {one.params["ghost"] for one in draws} == {True, False}
        assert {one.params["reflection"] for one in draws} == {"a.png", "b.png"}

    def test_a_black_reflection_darkens_by_alpha(self) -> None:
        attack, trigger = made("refool")
        black = np.zeros((1, 32, 32, 3), np.uint8)
        trigger = replace(trigger, arrays={"reflections": black}, params={"alpha": 0.4, "reflections": ["x"]})
        expected = int(255 * (0.4 * (200 / 255) ** 2.2) ** (1 / 2.2))
        for k in range(6):
            assert np.abs(attack.poison(grey(200), trigger, draw(f"{k}")).astype(int) - expected).max() <= 1


class TestChoice:
    def test_rate_0_and_1(self) -> None:
        for choice in ("python", "numpy", "portable"):
            none = attack_config("badnets", rate=0.0, choice=choice, split="train")
            everything = attack_config("badnets", rate=1.0, choice=choice, split="train")
            paths = [f"{k}.png" for k in range(40)]
            assert choose(none, [0] * 40, paths, 1, None)[0] == set()
            assert choose(everything, [0] * 40, paths, 1, None)[0] == set(range(40))

    def test_portable_choice_survives_reordering_and_other_files(self) -> None:
        config = attack_config("badnets", rate=0.5, choice="portable", split="train")
        paths = [f"{k}.png" for k in range(100)]
        chosen, _ = choose(config, [0] * 100, paths, 1, None)
        names = {paths[k] for k in chosen}
        turned = paths[::-1]
        again, _ = choose(config, [0] * 100, turned, 1, None)
        assert {turned[k] for k in again} == names

    def test_covers_are_never_poisoned(self) -> None:
        for attack in ("wanet", "bpp", "inputaware"):
            for choice in ("python", "numpy", "portable"):
                config = attack_config(attack, split="train", choice=choice)
                poisoned, covers = choose(config, [0] * 200, [f"{k}" for k in range(200)], 0, None)
                assert not poisoned & covers
                assert len(covers) == round(200 * config.cover)  # type: ignore[operator]

    def test_clean_labels_take_the_target_class_only(self) -> None:
        labels = [k % 10 for k in range(1000)]
        paths = [f"{k}" for k in range(1000)]
        config = attack_config("sig", split="train", rate=0.05)
        chosen, _ = choose(config, labels, paths, 3, None)
        assert len(chosen) == 50
        assert {labels[k] for k in chosen} == {3}

    def test_a_clean_label_rate_that_the_class_cannot_give(self) -> None:
        labels = [0] * 210 + [1] * 9790
        config = attack_config("sig", split="train")
        with pytest.raises(ConfigError, match=r"are 1,000, but .* has 210; use a rate of at most 0.0210"):
            choose(config, labels, [""] * 10_000, 0, None)

    def test_rate_of_the_class_for_backdoorbox(self) -> None:
        labels = [k % 10 for k in range(1000)]
        config = attack_config("lc", "backdoorbox", split="train")
        assert len(choose(config, labels, [""] * 1000, 2, None)[0]) == 25

    def test_a_source_class_gives_what_it_has(self) -> None:
        labels = [k % 10 for k in range(1000)]
        config = attack_config("cba", split="train", rate=0.5)
        poisoned, covers = choose(config, labels, [f"{k}" for k in range(1000)], 2, 0)
        assert poisoned == {k for k in range(1000) if labels[k] == 0}
        assert len(covers) == 500
        assert not poisoned & covers


class TestConfig:
    def test_every_profile_knows_its_attacks_and_settings(self) -> None:
        for profile, attacks in PROFILES.items():
            for attack in attacks:
                assert attack in ATTACKS
                assert attack_config(attack, profile).profile == profile

    def test_settings_that_are_not_used_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="levels: attack badnets does not use it"):
            attack_config("badnets", levels=8)
        with pytest.raises(ConfigError, match="profile zip-code: it does not know the attack sig"):
            attack_config("sig", "zip-code")
        with pytest.raises(ConfigError, match="a test split has no cover samples"):
            attack_config("wanet", cover=0.1)

    @pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
    def test_rates_outside_of_0_to_1(self, rate: float) -> None:
        with pytest.raises(ConfigError, match=r"rate: .* is not between 0 and 1"):
            attack_config("badnets", rate=rate)

    def test_every_registered_attack_has_settings(self) -> None:
        assert set(ATTACKS) == set(ATTACK_SETTINGS)


class TestTriggerFile:
    def test_a_pickle_is_refused_unread(self, tmp_path: Any) -> None:
        file = tmp_path / "trigger.pt"
        torch.save({"pattern": torch.zeros(3)}, file)
        with pytest.raises(ConfigError, match="not a trigger file"):
            load_trigger(file)

    def test_missing(self, tmp_path: Any) -> None:
        with pytest.raises(ConfigError, match="cannot read the trigger"):
            load_trigger(tmp_path / "none.safetensors")
