"""Names of models, and what the catalog claims of them."""

import re
from pathlib import Path

import pytest
from test_models_foreign import CIFAR

from zipcli.config import NoiseSchedule
from zipcli.errors import ConfigError, ModelError
from zipcli.models.catalog import ARCHITECTURES, CATALOG, Architecture, HubName, KnownModel, parse_name
from zipcli.models.foreign import diffusers_config
from zipcli.models.store import choose_files
from zipcli.models.unet_config import UNetConfig


@pytest.mark.parametrize("known", CATALOG.values(), ids=CATALOG)
def test_every_known_model_is_pinned(known: KnownModel) -> None:
    assert re.fullmatch("[0-9a-f]{64}", known.sha256)
    assert known.size > 1_000_000
    assert known.licence
    assert known.data
    assert bool(known.places) != bool(known.file)
    for place in known.places:
        assert re.fullmatch("[0-9a-f]{40}", place.revision)
        assert place.file
        assert known.architecture is not None, "all but the built-in model are described here"


def test_no_two_models_are_the_same_file() -> None:
    assert len({known.sha256 for known in CATALOG.values()}) == len(CATALOG)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("builtin", "builtin"),
        ("openai-256", "openai-256"),
        ("google/ddpm-cifar10-32", "ddpm-cifar10-32"),
        ("google/ddpm-cifar10-32/diffusion_pytorch_model.safetensors", "ddpm-cifar10-32"),
        ("google/ddpm-cifar10-32@main", HubName(repository="google/ddpm-cifar10-32")),
        (
            "google/ddpm-cifar10-32/diffusion_pytorch_model.bin",
            HubName(repository="google/ddpm-cifar10-32", file="diffusion_pytorch_model.bin"),
        ),
        ("some/one", HubName(repository="some/one")),
        ("some/one@v1.0", HubName(repository="some/one", revision="v1.0")),
        ("some/one@abc/unet/x.bin", HubName(repository="some/one", revision="abc", file="unet/x.bin")),
        ("./some/one", Path("some/one")),
        ("/some/one", Path("/some/one")),
        ("prior.safetensors", Path("prior.safetensors")),
        ("models/prior.safetensors", Path("models/prior.safetensors")),
        ("weights.pt", Path("weights.pt")),
    ],
)
def test_a_name_means_one_thing(name: str, meaning: object) -> None:
    assert parse_name(name) == meaning


def test_a_name_is_written_as_it_is_read() -> None:
    names = ("some/one", "some/one@v1", "some/one/x/y.safetensors", "some/one@v1/y.bin")
    for name in (*names, "google/ddpm-church-256@main"):
        assert str(parse_name(name)) == name


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(parse_name("some/one"), HubName)
    Path("some/one").mkdir(parents=True)
    assert parse_name("some/one") == Path("some/one")


@pytest.mark.parametrize(
    "name",
    [
        "bultin",
        "a/b/../../etc/passwd",
        "a/b@",
        "a b/c",
        "a/b@v1@v2",
        "https://x/y",
        "a/b/c\\d",
        "\0",
        "x" * 5000,
        "a--b/c",
        "owner/name.",
        "own..er/n",
        "owner/name.git",
        "",
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        parse_name(name)


def test_an_architecture_checks_its_names() -> None:
    network = ARCHITECTURES["openai-256"].network
    assert Architecture(network=network).schedule == NoiseSchedule()
    with pytest.raises(ConfigError, match="qkv order"):
        Architecture(network=network, qkv_order="old")
    with pytest.raises(ConfigError, match="layout"):
        Architecture(network=network, layout="keras")


def test_the_catalog_knows_googles_networks_as_their_files_do() -> None:
    cifar = known_network("ddpm-cifar10-32")
    assert cifar == diffusers_config(CIFAR)
    large = CIFAR | {
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
        "sample_size": 256,
    }
    assert known_network("ddpm-celebahq-256") == diffusers_config(large)


def known_network(name: str) -> UNetConfig:
    architecture = CATALOG[name].architecture
    assert architecture is not None
    return architecture.network


WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLE = "diffusion_pytorch_model.bin"


@pytest.mark.parametrize(
    ("there", "wanted", "chosen"),
    [
        (
            ["config.json", PICKLE, WEIGHTS, "model_index.json", "scheduler_config.json", "modeling_ddpm.py"],
            "",
            {
                "index": "model_index.json",
                "config": "config.json",
                "scheduler": "scheduler_config.json",
                "weights": WEIGHTS,
            },
        ),
        (["config.json", PICKLE], "", {"config": "config.json", "weights": PICKLE}),
        (
            ["model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"],
            "",
            {
                "index": "model_index.json",
                "config": "unet/config.json",
                "scheduler": "scheduler/scheduler_config.json",
                "weights": f"unet/{WEIGHTS}",
            },
        ),
        (["README.md", "prior.safetensors"], "", {"weights": "prior.safetensors"}),
        (["a/x.pt", "b/x.pt", "a/config.json"], "b/x.pt", {"weights": "b/x.pt"}),
        (["config.json", WEIGHTS, PICKLE], PICKLE, {"config": "config.json", "weights": PICKLE}),
    ],
)
def test_the_files_of_a_model_are_chosen(there: list[str], wanted: str, chosen: dict[str, str]) -> None:
    choice = choose_files(there, wanted, "here")
    assert choice == chosen
    assert list(choice)[-1] == "weights", "fetched last, they are never there without the rest"


@pytest.mark.parametrize(
    ("there", "wanted", "said"),
    [
        ([], "", "no files"),
        (["README.md", "model.onnx"], "", "README.md, model.onnx"),
        (["a.safetensors", "b.safetensors"], "", "which weights"),
        (["a.safetensors"], "b.safetensors", "there is no b.safetensors"),
    ],
)
def test_what_cannot_be_chosen_is_said(there: list[str], wanted: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        choose_files(there, wanted, "here")
