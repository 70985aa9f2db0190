"""Settings: what they allow, what they refuse and what a refusal says."""

import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import asked_of

from zipcli.config import (
    GRIDS,
    METHOD_SETTINGS,
    VARIANTS,
    FolderConfig,
    MethodConfig,
    PurifyConfig,
    purify_config,
)
from zipcli.errors import ConfigError, ExitCode
from zipcli.methods import METHODS
from zipcli.transforms import TRANSFORMS, make_operator


def make(text: str) -> object:
    return make_operator(text, lambda _: torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"steps": -1}, "steps"),
        ({"steps": -5}, "steps"),
        ({"lambda_": -1.0}, "lambda"),
        ({"lambda_": math.nan}, "lambda"),
        ({"eta": 2.0}, "eta"),
        ({"eta": -0.1}, "eta"),
        ({"eta": math.nan}, "eta"),
        ({"grid": "full", "steps": 50}, "grid full"),
        ({"travel_length": 0}, "travel"),
        ({"travel_length": 5}, "does nothing"),
        ({"travel_repeat": 1001}, "travel repeat"),
        ({"travel_repeat": 0}, "travel"),
        ({"tile": 15}, "tile"),
        ({"overlap": -1}, "overlap"),
        ({"batch_size": 0}, "batch size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"sigma": 1.5}, "sigma"),
        ({"passes": 0}, "passes"),
        ({"passes": 11}, "passes"),
        ({"colour_cell": 0}, "colour cell"),
        ({"colour_cell": 65}, "colour cell"),
        ({"doubt": 0}, "doubt"),
        ({"doubt": float("nan")}, "doubt"),
        ({"stepz": 20}, "'steps'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        purify_config(**wrong)
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "edge",
    [
        {"steps": 1},
        {"lambda_": 0.0},
        {"lambda_": math.inf},
        {"lambda_": 0.5},
        {"doubt": math.inf},
        {"eta": 0.0},
        {"eta": 1.0},
        {"grid": "full"},
        {"grid": "full", "steps": 1000},
        {"tile": 16},
        {"overlap": 0},
        {"seed": 0},
        {"seed": 2**63 - 1},
    ],
    ids=str,
)
def test_the_edges_of_the_ranges_are_allowed(edge: dict[str, Any]) -> None:
    config = purify_config(**edge)
    assert {name: getattr(config, name) for name in edge} == edge
    json.dumps(config.pixel_settings(), allow_nan=False)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"grid": "offical"}, "official"),
        ({"method": "zipp"}, "zip"),
        ({"variant": "paper-alg3"}, "paper-alg"),
        ({"fit": "resise"}, "resize"),
        ({"dtype": "float23"}, "float32"),
    ],
    ids=str,
)
def test_an_unknown_name_suggests_the_nearest(wrong: dict[str, str], nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{nearest}"):
        purify_config(**wrong)


def test_a_name_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown grid 'qqq'\. Known: official, paper, full"):
        purify_config(grid="qqq")


def test_settings_are_frozen() -> None:
    for config in (MethodConfig(), PurifyConfig(), FolderConfig()):
        for field in dataclasses.fields(config):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(config, field.name, getattr(config, field.name))


def test_the_defaults_are_the_documented_ones() -> None:
    config = purify_config()
    assert (config.method, config.model, config.sigma) == ("blind", "builtin-blind", PurifyConfig.sigma)
    assert config.transforms == ()
    for empty in ({}, {"transforms": ()}):
        config = purify_config(method="nullspace", **empty)
        assert (config.sampler, config.steps, config.transforms) == ("warm", 3, ("blur",))
        assert (config.model, config.grid, config.eta, config.seed) == ("builtin", "official", 1.0, 1234)


# Settings that a method does not use


@pytest.mark.parametrize(
    "unused",
    [{"steps": 10}, {"lambda_": 2.0}, {"seed": 1}, {"variant": "official"}, {"model": "m.safetensors"}],
)
def test_a_setting_that_the_method_does_not_use_is_refused(unused: dict[str, Any]) -> None:
    (name,) = unused
    with pytest.raises(ConfigError, match=f"{name.rstrip('_')}: method blur does not use it"):
        purify_config(method="blur", **unused)


def test_a_method_takes_the_settings_it_uses() -> None:
    config = purify_config(method="blur", transforms=["blur:4", "gray"], batch_size=3)
    assert (config.method, config.transforms, config.batch_size) == ("blur", ("blur:4", "gray"), 3)
    assert not config.needs_model
    assert purify_config().needs_model


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"transforms": ["blur:2", "gray"]}, ("zip", "ddim", 20)),
        ({"transforms": ["blur:2+gray"]}, ("nullspace", "warm", 3)),
        ({"method": "zip"}, ("zip", "warm", 5)),
        ({"steps": 7}, ("nullspace", "warm", 7)),
        ({"eta": 1.0}, ("nullspace", "warm", 3)),
        ({"lambda_": 10.0}, ("nullspace", "warm", 3)),
        ({"lambda_": 10.0, "grid": "paper"}, ("zip", "ddim", 20)),
        ({"transforms": ["blur:2", "gray"], "eta": 0.5}, ("zip", "ddim", 20)),
        ({"grid": "official", "eta": 0.5}, ("zip", "ddim", 20)),
        ({"sampler": "ddim"}, ("zip", "ddim", 20)),
        ({"method": "nullspace", "sampler": "multistep"}, ("nullspace", "multistep", 3)),
        ({"variant": "paper-alg2"}, ("zip", "ddim", 20)),
    ],
    ids=str,
)
def test_method_and_sampler_are_chosen_such_that_every_option_counts(
    given: dict[str, Any], chosen: tuple[str, str, int]
) -> None:
    config = purify_config(**given)
    assert (config.method, config.sampler, config.steps) == chosen
    for name in given.keys() - {"model", "variant"}:
        assert name in config.pixel_settings()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "nullspace", "sampler": "ddim"}, "sampler: method nullspace has no ddim"),
        ({"method": "nullspace", "grid": "paper"}, "grid: method nullspace does not use it"),
        ({"method": "blur", "lambda_": 2.0}, "lambda: method blur does not use it"),
        ({"sampler": "decoupled", "eta": 1.0}, "eta: sampler decoupled does not use it"),
        ({"sampler": "warm", "grid": "official"}, "grid: sampler warm does not use it"),
        ({"variant": "official", "sampler": "warm"}, "sampler warm"),
        ({"transforms": ["blur:2", "gray"], "sampler": "warm"}, r"takes one transform.*blur:2\+gray"),
        ({"transforms": ["blur:2", "gray"], "method": "nullspace"}, r"takes one transform.*blur:2\+gray"),
    ],
    ids=str,
)
def test_what_the_sampler_would_ignore_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        purify_config(**given)


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({}, "blind"),
        ({"sigma": 0.1, "tile": 64}, "blind"),
        ({"passes": 1}, "blind"),
        ({"colour_cell": 8, "keep_colour": True}, "blind"),
        ({"doubt": 0.5}, "blind"),
        ({"transforms": "blur"}, "nullspace"),
        ({"steps": 3}, "nullspace"),
        ({"eta": 1.0}, "nullspace"),
        ({"lambda_": 10.0}, "nullspace"),
        ({"transforms": ("blur:2", "gray")}, "zip"),
        ({"grid": "paper"}, "zip"),
        ({"sampler": "ddim"}, "zip"),
    ],
)
def test_the_first_method_is_chosen_that_uses_all_that_was_said(given: dict[str, Any], method: str) -> None:
    assert purify_config(**given).method == method
    assert purify_config(**given).changed(device="cpu").method == method


@pytest.mark.parametrize(
    "given", [{"sigma": 0.2}, {"sigma": PurifyConfig.sigma}, {"passes": 2}, {"keep_colour": True}], ids=str
)
def test_what_no_method_uses_together_is_refused(given: dict[str, Any]) -> None:
    others = {"transforms": "blur:4", "sampler": "multistep", "lambda_": 10.0, "grid": "official"}
    for name, value in others.items():
        words = f"{name.rstrip('_')}: method blind does not use it; that method is meant by {min(given)}; "
        with pytest.raises(ConfigError, match=words):
            purify_config(**given, **{name: value})
        with pytest.raises(ConfigError, match="blind does not use it; leave it out"):
            purify_config(method="blind", **given, **{name: value})
    assert purify_config(**given).method == "blind"


@pytest.mark.parametrize(
    "given",
    [
        {"method": "blind", "transforms": ("gray",)},
        {"method": "blind", "clip_x0": True},
        {"method": "shrinkpad", "clip_x0": True},
        {"method": "sampdetox", "sampler": "ddim", "eta": 0.85},
        {"method": "sampdetox", "lambda_": 5.0},
        {"method": "blur", "tile": 64},
        {"method": "zip", "sigma": 0.2},
        {"method": "zip", "keep_colour": True},
    ],
    ids=str,
)
def test_the_class_refuses_what_its_method_would_ignore(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not use it; leave it out"):
        PurifyConfig(**given)


@pytest.mark.parametrize("method", sorted(METHOD_SETTINGS))
def test_settings_that_were_settled_can_be_built_again(method: str) -> None:
    config = purify_config(method=method, **asked_of(method))
    assert replace(config, device="cpu").pixel_settings() == config.pixel_settings()


@pytest.mark.parametrize("given", [{"simplified": "False"}, {"steps": 2.5}, {"seed": True}], ids=str)
def test_a_value_of_another_kind_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not what belongs there"):
        purify_config(method="ddnm", **given)


def test_options_at_their_open_values_change_nothing() -> None:
    assert purify_config(sampler="auto", steps=0).method == "blind"


def test_a_sampler_of_other_methods_names_them() -> None:
    with pytest.raises(ConfigError, match="no sde; say --method diffpure or"):
        purify_config(sampler="sde")


PARTIAL = ("partial_noise",)


def test_a_model_decides_where_nobody_chose_a_method() -> None:
    blank = purify_config(model="m.safetensors")
    assert blank.for_model(("partial_noise", "blind_states")) is blank
    assert (blank.method, blank.model) == ("blind", "m.safetensors")
    assert blank.for_model(PARTIAL).method == "nullspace"
    assert blank.for_model(PARTIAL).transforms == ("blur",)
    other = purify_config(model="m.safetensors", seed=3).for_model(())
    assert (other.method, other.sampler, other.steps, other.seed) == ("zip", "warm", 5, 3)
    assert other.model == "m.safetensors"
    elsewhere = purify_config(model="m.safetensors", eta=0.5).changed(device="cuda:1", dtype="float32")
    assert (elsewhere.method, elsewhere.sampler, elsewhere.device) == ("nullspace", "warm", "cuda:1")
    assert elsewhere.for_model(()).method == "zip"
    assert elsewhere.for_model(()).steps == 5
    counted = purify_config(model="m.safetensors", steps=2).changed(seed=4)
    assert counted.for_model(()).steps == 2
    chosen = purify_config(model="m.safetensors", method="nullspace")
    assert chosen.changed(device="cpu").for_model(()).method == "nullspace"
    assert chosen.for_model(()) is chosen


def test_the_class_refuses_what_its_sampler_would_ignore() -> None:
    with pytest.raises(ConfigError, match="grid: sampler warm does not use it"):
        PurifyConfig(sampler="warm", grid="paper")
    assert PurifyConfig(grid="paper").sampler == "ddim"


@pytest.mark.parametrize(
    ("transform", "sampler", "lambda_"),
    [
        *(("blur:2", "auto", 10.0), ("mask:m.png", "auto", math.inf), ("identity", "decoupled", math.inf)),
        *(("mask:m.png", "ddim", 10.0), ("mask:m.png+gray", "auto", 10.0)),
    ],
)
def test_pixels_that_somebody_trusts_are_held_exactly(transform: str, sampler: str, lambda_: float) -> None:
    config = purify_config(transforms=transform, sampler=sampler)
    assert config.lambda_ == config.changed(seed=3).lambda_ == lambda_
    assert purify_config(transforms=transform, sampler=sampler, lambda_=2.0).lambda_ == 2


def test_every_sampler_takes_a_lambda() -> None:
    for given in (0.0, 10.0, math.inf):
        for sampler in ("ddim", "warm", "decoupled"):
            config = purify_config(sampler=sampler, lambda_=given)
            assert config.lambda_ == config.changed(device="cpu").lambda_ == given


def test_the_settings_of_every_method_exist() -> None:
    assert set(METHOD_SETTINGS) == set(METHODS)
    known = {field.name for field in dataclasses.fields(PurifyConfig)}
    assert frozenset().union(*METHOD_SETTINGS.values()) <= known


def test_one_transform_may_be_given_as_a_word() -> None:
    assert purify_config(transforms="blur:4").transforms == ("blur:4",)


# Variants


def test_variant_official_averages_gray_and_the_blur_as_the_released_program_does() -> None:
    config = purify_config(variant="official", transforms=["blur:4"])
    assert config.transforms == ("gray", "blur:4")
    assert (config.grid, config.steps, config.eta, config.lambda_) == ("official", 20, 1.0, 10.0)


def test_variant_official_blurs_by_2_when_nothing_is_given() -> None:
    assert purify_config(variant="official").transforms == ("gray", "blur:2")


@pytest.mark.parametrize("transforms", [["gray", "blur:4"], ["blur:4", "gray"]])
def test_variant_official_takes_its_own_transforms_in_any_order(transforms: list[str]) -> None:
    assert purify_config(variant="official", transforms=transforms).transforms == ("gray", "blur:4")


@pytest.mark.parametrize(
    "transforms", [["gray"], ["blur:2", "blur:4"], ["blur:2+gray"], ["blur:2", "identity"], ["mask:m.png"]]
)
def test_variant_official_refuses_other_transforms(transforms: list[str]) -> None:
    with pytest.raises(ConfigError, match="variant official"):
        purify_config(variant="official", transforms=transforms)


@pytest.mark.parametrize("lambda_", [0.98, 2.5, math.inf])
def test_variant_official_takes_whole_lambdas_only(lambda_: float) -> None:
    with pytest.raises(ConfigError, match="lambda"):
        purify_config(variant="official", lambda_=lambda_)
    assert purify_config(variant="official", lambda_=2.0).lambda_ == 2.0


def test_variant_paper_alg1_is_every_timestep_with_all_the_noise() -> None:
    config = purify_config(variant="paper-alg1", transforms="blur:2")
    assert (config.grid, config.steps, config.eta) == ("full", 1000, 1.0)
    assert config.transforms == ("blur:2",)


def test_variant_paper_alg2_visits_the_grid_of_the_paper() -> None:
    config = purify_config(variant="paper-alg2", lambda_=2.5)
    assert (config.grid, config.steps, config.eta, config.lambda_) == ("paper", 20, 1.0, 2.5)


@pytest.mark.parametrize("variant", [name for name, fixed in VARIANTS.items() if "grid" in fixed])
@pytest.mark.parametrize(
    "contradiction", [{"steps": 7}, {"eta": 0.5}, {"grid": None}], ids=["steps", "eta", "grid"]
)
def test_a_setting_that_contradicts_the_variant_is_refused(
    variant: str, contradiction: dict[str, Any]
) -> None:
    (name,) = contradiction
    other_grid = next(grid for grid in GRIDS if grid != VARIANTS[variant]["grid"])
    value = other_grid if name == "grid" else contradiction[name]
    with pytest.raises(ConfigError, match=f"{name}: variant {variant} fixes it to {VARIANTS[variant][name]}"):
        purify_config(variant=variant, **{name: value})


@pytest.mark.parametrize("variant", VARIANTS)
def test_repeating_what_the_variant_fixes_is_allowed(variant: str) -> None:
    fixed = VARIANTS[variant]
    assert purify_config(variant=variant, **fixed) == purify_config(variant=variant)


def test_an_unknown_variant_is_refused_by_the_class_too() -> None:
    """`PurifyConfig` is public: it must not record a variant that does not exist."""
    with pytest.raises(ConfigError):
        PurifyConfig(variant="paper-alg9")


# Settings of one method


FIELDS = [field.name for field in dataclasses.fields(PurifyConfig) if field.name != "method"]


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_a_method_refuses_every_setting_that_it_does_not_read(method: str) -> None:
    defaults = {name: getattr(PurifyConfig(), name) for name in FIELDS} | {"variant": "official", "tile": 64}
    given = {name: 8 if value is None else value for name, value in defaults.items()}
    for name in FIELDS:
        if name in METHOD_SETTINGS[method]:
            continue
        with pytest.raises(ConfigError, match=f"{name.rstrip('_')}: method .* does not use it"):
            purify_config(method=method, **{name: given[name]})


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_a_method_records_what_it_reads_and_nothing_else(method: str) -> None:
    elsewhere = {"device", "batch_size", "model", "variant", "offline", "compile"}
    config = purify_config(method=method, **asked_of(method))
    unread = {"grid", "travel_length", "travel_repeat", "clip_x0"} if config.sampler == "warm" else set()
    unread |= {"stride"} if config.sampler == "ddpm" else set()
    assert config.pixel_settings().keys() == METHOD_SETTINGS[method] - elsewhere - unread | {"method"}


def test_records_of_the_methods_that_were_there_are_what_they_were() -> None:
    """Or no folder could be gone on with."""
    around = {"fit": "tile", "tile": None, "overlap": None, "dtype": "auto", "seed": 1234}
    few = {"sampler": "warm", "eta": 1.0, "lambda_": 10.0, "transforms": ("blur",), **around}
    assert purify_config(transforms="blur").pixel_settings() == {"method": "nullspace", "steps": 3, **few}
    assert purify_config(method="zip").pixel_settings() == {"method": "zip", "steps": 5, **few}
    published = {"grid": "official", "clip_x0": False, "travel_length": 1, "travel_repeat": 1}
    ddim = {"method": "zip", **few, **published, "sampler": "ddim", "steps": 20}
    assert purify_config(sampler="ddim").pixel_settings() == ddim


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"t_star": 50}, r"t_star: method auto does not use it; say --method diffpure or blur\+diffpure"),
        ({"pad": 4}, "pad: method auto does not use it; say --method shrinkpad"),
        ({"sampler": "sde"}, "sampler: method auto has no sde"),
        ({"method": "sampdetox", "sampler": "sde"}, "sampler: method sampdetox has no sde; use ddpm, ddim"),
        ({"method": "sampdetox", "sampler": "ddpm", "stride": 20}, "stride: sampler ddpm does not use it"),
        ({"method": "ddnm", "transforms": ["blur:2", "gray"]}, r"ddnm takes one transform.*blur:2\+gray"),
        (
            {"method": "sampdetox", "variant": "official"},
            "method: variant official fixes it to zip",
        ),
        ({"variant": "diffpure-cifar10", "t_star": 99}, "t_star: variant diffpure-cifar10 fixes it to 100"),
        ({"variant": "ddnm-paper", "lambda_": 10.0}, "lambda: method ddnm does not use it"),
        ({"variant": "sampdetox-code", "transforms": ["gray"]}, "transforms: method sampdetox does not use"),
        ({"method": "diffpure", "t_star": 0}, "t star: 0 is not from 1 to 1000"),
        ({"method": "diffpure", "t_star": 1001}, "t star: 1001 is not"),
        ({"method": "sampdetox", "t1": 0}, "t1: 0 is not from 1 to 999"),
        ({"method": "sampdetox", "t2": 1000}, "t2: 1000 is not"),
        ({"method": "sampdetox", "stride": 0}, "stride: 0 is not"),
        ({"method": "sampdetox", "ssim_range": 2}, "ssim range: 2 is neither 255 nor 1"),
        ({"method": "shrinkpad", "pad": -1}, "pad: -1 takes nothing away"),
        ({"method": "shrinkpad", "pad": 0}, "pad: 0 takes nothing away; give at least 1"),
    ],
    ids=str,
)
def test_what_the_methods_of_other_papers_do_not_take_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        purify_config(**given)


def test_the_class_refuses_what_belongs_to_another_method() -> None:
    with pytest.raises(ConfigError, match="t_star: method zip does not use it"):
        PurifyConfig(method="zip", t_star=50)


@pytest.mark.parametrize(
    ("given", "eta", "steps"),
    [
        ({"method": "ddnm"}, 0.85, 100),
        ({"method": "ddnm", "eta": 1.0, "steps": 20}, 1.0, 20),
        ({"method": "ddnm", "grid": "full"}, 0.85, 20),
        ({"method": "zip"}, 1.0, 5),
        ({"sampler": "decoupled"}, 1.0, 3),
    ],
    ids=str,
)
def test_defaults_that_are_left_to_the_method_survive_a_change(
    given: dict[str, Any], eta: float, steps: int
) -> None:
    config = purify_config(**given)
    for one in (config, config.changed(device="cpu"), config.changed(seed=3).changed(dtype="float32")):
        assert (one.method, one.eta, one.steps) == (config.method, eta, steps)


def test_a_stride_chooses_the_sampler_that_has_one() -> None:
    assert purify_config(method="sampdetox").sampler == "ddpm"
    for stride in (5, 20):
        assert purify_config(method="sampdetox", stride=stride).sampler == "ddim"


# What decides the pixels


@pytest.mark.parametrize("elsewhere", [{"device": "cuda:1"}, {"batch_size": 7}])
def test_where_it_runs_does_not_decide_the_pixels(elsewhere: dict[str, Any]) -> None:
    assert purify_config(**elsewhere).pixel_settings() == purify_config().pixel_settings()


@pytest.mark.parametrize(
    "change",
    [
        *({"lambda_": 2.0}, {"steps": 10}, {"eta": 0.0}, {"grid": "paper"}, {"transforms": ("blur:2",)}),
        *(
            {"clip_x0": True},
            {"seed": 1},
            {"fit": "resize"},
            {"tile": 64},
            {"overlap": 32},
            {"dtype": "float16"},
            {"compile": True},
        ),
        *({"travel_length": 2, "travel_repeat": 2}, {"travel_repeat": 2}, {"method": "blur"}),
    ],
    ids=str,
)
def test_what_changes_a_pixel_is_among_the_pixel_settings(change: dict[str, Any]) -> None:
    assert purify_config(**change).pixel_settings() != purify_config().pixel_settings()


def test_runs_that_compile_nothing_say_nothing_of_it() -> None:
    """Records from before there was --compile go on to hold."""
    assert "compile" not in purify_config(compile=False).pixel_settings()


def test_pixel_settings_are_json_even_with_infinite_lambda() -> None:
    settings = purify_config(lambda_=math.inf).pixel_settings()
    assert json.loads(json.dumps(settings, allow_nan=False))["lambda_"] == "inf"


def test_a_method_without_a_prior_has_no_sampler_settings_among_its_pixels() -> None:
    assert purify_config(method="blur").pixel_settings() == {"method": "blur", "transforms": ("blur",)}


# Folders


@pytest.mark.parametrize(
    "wrong",
    [{"quality": 0}, {"quality": 101}, {"jobs": 0}, {"jobs": 257}, {"format": "gif"}, {"metadata": "all"}],
    ids=str,
)
def test_a_wrong_folder_setting_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        FolderConfig(**wrong)


@pytest.mark.parametrize(
    ("format_", "counts"), [("png", False), ("webp", False), ("jpg", True), ("same", True)]
)
def test_quality_decides_the_file_only_where_the_format_has_it(format_: str, counts: bool) -> None:
    low, high = (FolderConfig(format=format_, quality=quality).file_settings() for quality in (50, 95))
    assert (low != high) == counts


# Transforms by name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("blurr", "Did you mean 'blur'"),
        ("grey", "Did you mean 'gray'"),
        ("blur:2+grai", "Did you mean 'gray'"),
        ("qqq", "Known: identity, blur, gray, mask"),
        ("", "unknown transform ''"),
        ("gray+", "unknown transform ''"),
        ("blur:0", "blur:0: .* whole number from 1"),
        ("blur:x", "blur:x: .* whole number from 1"),
        ("blur:-1", "blur:-1: .* whole number from 1"),
        ("blur:2.5", "blur:2.5: .* whole number from 1"),
        ("blur:", "blur:: .* whole number from 1"),
        ("blur:²", "whole number from 1"),
        ("gray:3", "gray takes no argument"),
        ("identity:1", "identity takes no argument"),
        ("mask", "name the file"),
        ("mask:", "name the file"),
    ],
)
def test_a_wrong_transform_is_refused_with_what_was_meant(wrong: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(wrong)


def test_listing_the_registries_imports_no_torch() -> None:
    code = (
        "import sys, zipcli.config, zipcli.registry\n"
        "from zipcli.methods import METHODS\n"
        "from zipcli.transforms import TRANSFORMS\n"
        "print(*METHODS, *TRANSFORMS, len(METHODS), 'zip' in METHODS, 'torch' in sys.modules)\n"
        "METHODS['zip']\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = f"{' '.join(METHODS)} {' '.join(TRANSFORMS)} {len(METHODS)} True"
    assert done.stdout.splitlines() == [f"{names} False", "True"]


def test_nullspace_takes_one_transform_since_several_would_keep_more() -> None:
    assert purify_config(method="nullspace", transforms=("blur:2+gray",)).transforms == ("blur:2+gray",)
    with pytest.raises(ConfigError, match=r"join them to blur:2\+gray"):
        purify_config(method="nullspace", transforms=("blur:2", "gray"))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_pixels": 0}, "max pixels"),
        ({"max_bytes": 0}, "max bytes"),
        ({"frames": "all"}, "frames"),
        ({"decode_seconds": 0}, "decode seconds"),
        ({"decode_seconds": 86_401}, "decode seconds"),
        ({"decode_memory": 0}, "decode memory"),
    ],
    ids=str,
)
def test_a_wrong_limit_of_files_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FolderConfig(**wrong)


def test_only_a_chosen_policy_that_decides_outputs_is_recorded() -> None:
    usual = FolderConfig().file_settings()
    limits = FolderConfig(max_pixels=9, max_bytes=9, decode_seconds=9, decode_memory=9, strict_ext=True)
    assert limits.file_settings() == usual
    assert FolderConfig(frames="first").file_settings() == {**usual, "frames": "first"}
    assert FolderConfig(allow_truncated=True).file_settings() == {**usual, "allow_truncated": True}
    assert limits.limits.memory == 9 * 2**20
