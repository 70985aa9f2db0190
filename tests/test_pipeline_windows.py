"""The network sees windows or canvases; the chain of an image must not notice."""

import pytest
import torch
from torch import Tensor

from zipcli.config import MethodConfig, NoiseSchedule
from zipcli.methods.zip import purify
from zipcli.pipeline.windows import WindowedModel
from zipcli.transforms import make_operator

CPU = torch.device("cpu")


class LocalModel:
    """A smooth, local, nonlinear predictor of eps: every pixel looks 2 pixels around itself."""

    schedule = NoiseSchedule()
    channels = 3
    minimum_side = 8

    def __init__(self, native_side: int | None = None) -> None:
        self.native_side = native_side
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        self.shapes.append(tuple(x_t.shape))
        near = torch.nn.functional.avg_pool2d(
            torch.nn.functional.pad(x_t, (2, 2, 2, 2), mode="replicate"), 5, stride=1
        )
        return torch.tanh(x_t - 0.5 * near + t.view(-1, 1, 1, 1) / 2000)


class PixelModel(LocalModel):
    """Every pixel for itself: windows, padding and neighbours can make no difference at all."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        self.shapes.append(tuple(x_t.shape))
        return torch.tanh(x_t + t.view(-1, 1, 1, 1) / 2000)


def images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(7)) * 2 - 1


def run(model: WindowedModel | LocalModel, x: Tensor, transform: str = "blur:4") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    operators = (make_operator(transform, lambda _: x),)
    return purify(
        x, model, operators, MethodConfig(), noise=lambda z: torch.randn(z.shape, generator=generator)
    )


@pytest.mark.parametrize("size", [(40, 90), (64, 64), (65, 130), (33, 200)])
def test_a_tiled_image_is_purified_as_if_it_were_whole(size: tuple[int, int]) -> None:
    x = images(1, *size)
    whole = run(LocalModel(), x)
    tiled = run(WindowedModel(LocalModel(), 64, 24), x)
    # Only window borders differ, where the fading weight is small: no seam can be seen.
    assert (tiled - whole).abs().max() < 0.01 * whole.std()


def test_windows_share_one_state_so_a_pixelwise_model_tiles_exactly() -> None:
    x = images(1, 70, 150)
    torch.testing.assert_close(
        run(WindowedModel(PixelModel(), 64, 16), x), run(PixelModel(), x), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("count", [1, 3, 65])
def test_small_images_on_canvases_equal_the_same_images_alone(count: int) -> None:
    x = images(count, 32, 32)
    packed = run(WindowedModel(PixelModel(256), 256, 64), x)
    torch.testing.assert_close(packed, run(PixelModel(), x), atol=1e-4, rtol=1e-5)


def test_a_fixed_size_model_sees_its_own_size_only() -> None:
    for size in ((32, 32), (300, 270), (20, 400), (256, 256), (7, 5), (200, 200)):
        model = PixelModel(256)
        run(WindowedModel(model, 256, 64), images(2, *size), "gray")
        assert {shape[1:] for shape in model.shapes} == {(3, 256, 256)}


def test_a_cell_needs_no_block_size_that_divides_it() -> None:
    x = images(5, 30, 30)
    packed = run(WindowedModel(PixelModel(256), 256, 64), x, "blur:4")
    torch.testing.assert_close(packed, run(PixelModel(), x, "blur:4"), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 200)])
def test_images_smaller_than_the_model_takes_keep_their_size(size: tuple[int, int]) -> None:
    model = LocalModel()
    out = run(WindowedModel(model, 512, 64), images(1, *size), "gray")
    assert out.shape == (1, 3, *size)
    assert all(min(shape[2:]) >= 8 for shape in model.shapes)


def test_the_network_is_called_with_one_shape_whatever_the_batch() -> None:
    shapes = set()
    for count in (1, 3, 4, 7, 64):
        model = LocalModel()
        WindowedModel(model, 512, 64)(images(count, 32, 32), torch.full((count,), 500.0))
        shapes |= set(model.shapes)
    assert shapes == {(4, 3, 32, 32)}


def test_a_network_that_is_known_to_be_invariant_sees_no_more_images_than_there_are() -> None:
    model = LocalModel()
    WindowedModel(model, 512, 64, batch_invariant=True)(images(21, 32, 32), torch.full((21,), 500.0))
    assert [shape[0] for shape in model.shapes] == [16, 5]


def test_learned_variance_channels_are_dropped() -> None:
    class SixChannels(LocalModel):
        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            return torch.cat([super().__call__(x_t, t), torch.full_like(x_t, 99.0)], dim=1)

    x, t = images(2, 16, 16), torch.full((2,), 10.0)
    six = WindowedModel(SixChannels(), 512, 64)(x, t)
    assert torch.equal(six, WindowedModel(LocalModel(), 512, 64)(x, t))


def test_a_stop_is_heard_between_two_calls_of_the_network() -> None:
    class StopNowError(Exception):
        pass

    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise StopNowError

    model = WindowedModel(LocalModel(), 64, 16)
    model.before_call = stop
    with pytest.raises(StopNowError):
        model(images(1, 200, 200), torch.zeros(1))
    assert len(model.model.shapes) == 2  # type: ignore[attr-defined]
