"""Sizes before and after the network."""

import pytest
import torch

from zipcli.images.fit import fit, unfit


def ramp(height: int, width: int) -> torch.Tensor:
    return torch.linspace(-1, 1, width).expand(1, 3, height, width).contiguous()


@pytest.mark.parametrize(
    ("mode", "size", "fitted"),
    [
        ("tile", (600, 1000), (600, 1000)),
        ("resize", (600, 1000), (256, 427)),
        ("resize", (10, 20_000), (10, 20_000)),
        ("squash", (600, 1000), (256, 256)),
        ("squash", (100, 300), (256, 256)),
        ("center-crop", (600, 1000), (256, 256)),
        ("center-crop", (100, 300), (256, 256)),
        ("squash", (256, 200), (256, 200)),
    ],
)
def test_only_larger_images_are_fitted(mode: str, size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fit(torch.zeros(1, 3, *size), mode, 256).shape == (1, 3, *fitted)


@pytest.mark.parametrize("mode", ["tile", "resize", "squash"])
def test_output_size_equals_input_size(mode: str) -> None:
    x = ramp(300, 500)
    back = unfit(fit(x, mode, 256), mode, (300, 500))
    assert back.shape == x.shape
    torch.testing.assert_close(back, x, atol=0.01, rtol=0)


def test_center_crop_keeps_the_middle_and_its_own_size() -> None:
    x = ramp(512, 1024)
    cropped = unfit(fit(x, "center-crop", 256), "center-crop", (512, 1024))
    assert cropped.shape == (1, 3, 256, 256)
    torch.testing.assert_close(cropped[0, 0, 0], x[0, 0, 0, 256:768].view(256, 2).mean(1), atol=1e-3, rtol=0)
