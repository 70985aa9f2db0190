"""Every name in a table leads to code that works on a tiny image."""

import pytest
import torch
from fakes import asked_of, model_of, noise_per_image, parts_of

from zipcli.cli.main import COMMANDS, cli
from zipcli.config import (
    DETECTOR_SETTINGS,
    METHOD_SAMPLERS,
    METHOD_SETTINGS,
    NEEDS_AUTOENCODER,
    purify_config,
)
from zipcli.detectors import DETECTORS
from zipcli.errors import ConfigError
from zipcli.methods import EVALUATIONS, METHODS
from zipcli.registry import Registry
from zipcli.transforms import TRANSFORMS, make_operator


@pytest.mark.parametrize("name", METHODS)
def test_every_method_purifies_a_tiny_image(name: str) -> None:
    x = torch.rand(2, 3, 12, 11, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = purify_config(method=name, **asked_of(name))
    operators = (make_operator("blur:2", lambda _: x),)
    noise = noise_per_image([1, 2])
    clean = METHODS[name](x, model_of(name), operators, config, noise=noise, **parts_of(name))
    assert clean.shape == x.shape
    assert clean.isfinite().all()
    assert torch.equal(clean, x) == (name == "none")


def test_every_method_says_which_settings_it_reads() -> None:
    assert set(METHODS) == set(METHOD_SETTINGS) == set(METHOD_SAMPLERS)
    networks = {name for name, used in METHOD_SETTINGS.items() if "model" in used} - NEEDS_AUTOENCODER
    assert set(EVALUATIONS) == networks


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_keeps_the_size(name: str) -> None:
    x = torch.rand(1, 3, 6, 5)
    word = "mask:any.png" if name == "mask" else name
    operator = make_operator(word, lambda _: torch.ones(1, 1, 6, 5))
    assert operator.pinv(operator.forward(x), (6, 5)).shape == x.shape


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_can_be_imported(name: str) -> None:
    assert callable(DETECTORS[name])


def test_every_detector_says_which_settings_it_reads() -> None:
    assert set(DETECTORS) == set(DETECTOR_SETTINGS)


def test_every_command_loads() -> None:
    with cli.make_context("zipcli", ["--help"], resilient_parsing=True) as ctx:
        assert [cli.get_command(ctx, name).name for name in cli.list_commands(ctx)] == list(COMMANDS)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    registry: Registry[object] = Registry("fruit", {"apple": "json:loads", "pear": "json:dumps"})
    with pytest.raises(ConfigError, match=r"unknown fruit 'aple'. Did you mean 'apple'\? Known: apple, pear"):
        registry["aple"]
    assert "aple" not in registry
    assert len(registry) == 2
