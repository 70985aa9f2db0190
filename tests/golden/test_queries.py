"""bdmae and sancdifi against slow float64 transcriptions, our autoencoder against that of transformers.

TOLERANCE: measured 8e-16 (bdmae) and 0 (sancdifi); a factor of about 100 is left for other processors. A
token or pixel that was chosen otherwise would be off by 0.01 and more.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import noise_per_image
from golden import queries_transcription as slow
from golden.transcription import linear_schedule
from safetensors.torch import load_file, save_file
from torch import Tensor

from zipcli.config import MethodConfig, NoiseSchedule
from zipcli.methods.bdmae import purify as bdmae
from zipcli.methods.sancdifi import purify as sancdifi
from zipcli.models.loading import load_autoencoder

TOLERANCE = 1e-13

SIZES = [(12, 10), (5, 17), (24, 24)]


def draw_of(seed: int) -> slow.Draw:
    """The numbers that `noise_per_image([seed])` draws, one after the other."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> slow.Array:
        # Masks and orders are drawn in float32, states like the image.
        dtype = torch.float64 if len(shape) == 3 else torch.float32
        return torch.randn(shape, generator=generator, dtype=dtype).double().numpy()

    return draw


def image(seed: int, size: tuple[int, int]) -> Tensor:
    """A smooth picture with a patch that the classifier below falls for."""
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(0.3 * (k + 1) * rows + 0.2 * columns + seed) * 0.4 for k in range(3)]
    x = torch.stack(waves).double()
    x[:, -4:, -4:] = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    return x


def label(x: slow.Array) -> int:
    """1 for the patch at its place, else by the mean of the picture."""
    corner = x[:, -4:, -4:]
    contrast = float(corner[..., 0].mean() - corner[..., 1].mean())
    return 1 if contrast > 1.1 else 2 + int(x.mean() > 0.05)


def ask(images: Tensor) -> Tensor:
    return torch.tensor([label(one.numpy()) for one in images])


class WaveAutoencoder:
    """Takes each token for a wave, the mean of what is left, and a bit of what is left at the other end."""

    side = 20
    grid = 5

    def one(self, x: slow.Array, mask: slow.Array) -> slow.Array:
        left = 1 - mask.repeat(4, 0).repeat(4, 1)
        mean = (x * left).sum() / max(1.0, 3 * left.sum())
        turned = (x * left)[:, ::-1, ::-1]
        wave = np.sin(np.arange(20) / 3)
        return 0.5 * mean + 0.3 * turned + 0.2 * wave

    def __call__(self, x: Tensor, removed: Tensor, /) -> Tensor:
        both = zip(x.numpy(), removed.double().numpy(), strict=True)
        return torch.tensor(np.stack([self.one(one, mask) for one, mask in both]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [1, 2])
def test_bdmae_is_its_transcription(seed: int, size: tuple[int, int]) -> None:
    x, mae = image(seed, size), WaveAutoencoder()
    expected = slow.bdmae(x.numpy(), mae.one, mae.side, mae.grid, draw_of(seed), label)
    assert np.abs(expected - x.numpy()).max() > 0.1
    found = bdmae(x[None], mae, (), MethodConfig(), noise=noise_per_image([seed]), ask=ask)[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=TOLERANCE)


class WaveEps:
    """A prior that mixes neighbours and channels, the same in numpy and torch."""

    schedule = NoiseSchedule()
    channels = 3
    native_side = None
    minimum_side = 1

    def one(self, x_t: slow.Array, i: int) -> slow.Array:
        mixed = 0.5 * x_t + 0.3 * np.roll(x_t, 1, axis=0) - 0.2 * np.roll(x_t, 1, axis=2)
        return math.sin(math.pi / 2 * (i + 1) / 1000) * np.tanh(mixed) + 0.1

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        both = zip(x_t.numpy(), t.tolist(), strict=True)
        return torch.tensor(np.stack([self.one(one, int(i)) for one, i in both]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("t_star", [1, 60])
def test_sancdifi_is_its_transcription(t_star: int, size: tuple[int, int]) -> None:
    x, eps = image(3, size), WaveEps()
    alpha_bar = linear_schedule().alpha_bar
    expected = slow.sancdifi(x.numpy(), eps.one, alpha_bar, draw_of(3), label, 40, 0.7, t_star)
    changed = np.abs(expected - x.numpy()).max(axis=0) > 0
    assert 0.2 < changed.mean() < 0.4
    config = MethodConfig(t_star=t_star, masks=40, saliency_threshold=0.7)
    found = sancdifi(x[None], eps, (), config, noise=noise_per_image([3]), ask=ask)[0]
    # The betas of one are rounded, and of the other quotients of products of them: measured 1.2e-13.
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=10 * TOLERANCE)


# The masked autoencoder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small network of transformers with random weights, biases and positions, and where it was saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another library
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        torch.manual_seed(0)
        network = ViTMAEForPreTraining(
            ViTMAEConfig(
                **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
                **{"intermediate_size": 48, "image_size": 24, "patch_size": 6, "layer_norm_eps": 1e-3},
                **{"decoder_hidden_size": 20, "decoder_num_hidden_layers": 2},
                **{"decoder_num_attention_heads": 5, "decoder_intermediate_size": 40},
            )
        ).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        folder = tmp_path_factory.mktemp("mae")
        network.save_pretrained(folder)
    return network.double(), folder


def answer(network: Any, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What transformers draws of all tokens, as pixels, and the tokens that it had removed."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        output = network(x, noise=noise)
    return network.unpatchify(output.logits), output.mask.bool()


def test_our_autoencoder_draws_what_that_of_transformers_draws(theirs: tuple[Any, Path]) -> None:
    network, folder = theirs
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, 24, 24, generator=generator, dtype=torch.float64)
    expected, removed = answer(network, x, torch.rand(5, 16, generator=generator))
    assert removed.sum(dim=1).tolist() == [12] * 5
    net = load_autoencoder(str(folder), torch.device("cpu")).model.net.double()
    removed = removed.view(5, 4, 4)
    one_by_one = torch.cat([net(x[n : n + 1], removed[n : n + 1]) for n in range(5)])
    for found in (net(x, removed), one_by_one):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)  # measured 2e-15


def test_images_of_which_more_or_less_was_removed_go_together(theirs: tuple[Any, Path]) -> None:
    net = load_autoencoder(str(theirs[1]), torch.device("cpu")).model.net.double()
    x = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    removed = torch.zeros(3, 4, 4, dtype=torch.bool)
    removed[1, 2] = removed[2] = True
    one_by_one = torch.cat([net(x[n : n + 1], removed[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(net(x, removed), one_by_one, rtol=0, atol=1e-13)
    assert not torch.equal(net(x, removed)[0], net(-x, removed)[0])
    assert torch.equal(net(x, removed)[2], net(-x, removed)[2])  # nothing of it is seen


def test_an_autoencoder_is_served_in_the_range_of_images(theirs: tuple[Any, Path]) -> None:
    network, folder = theirs
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    normal = ((x.double() + 1) / 2 - mean) / std
    expected, removed = answer(network, normal, torch.rand(2, 16))
    found = load_autoencoder(str(folder), torch.device("cpu")).model(x, removed.view(2, 4, 4))
    torch.testing.assert_close(found.double(), (expected * std + mean) * 2 - 1, rtol=0, atol=2e-5)  # float32


def test_names_of_older_and_newer_transformers_mean_the_same(
    theirs: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = theirs
    weights = load_file(folder / "model.safetensors")
    old, new = "decoder.decoder_layers.", "decoder.decoder_encoder.layer."
    written_as = old if any(name.startswith(old) for name in weights) else new
    other = new if written_as == old else old
    assert any(name.startswith(written_as) for name in weights)
    save_file({name.replace(written_as, other): w for name, w in weights.items()}, tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    x, removed = torch.zeros(1, 3, 24, 24), torch.rand(1, 4, 4) > 0.5
    ours = [load_autoencoder(str(place), torch.device("cpu")).model for place in (folder, tmp_path)]
    assert torch.equal(ours[0](x, removed), ours[1](x, removed))
