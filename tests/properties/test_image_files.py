"""What holds for image files of any size and content."""

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from zipcli.errors import InputError
from zipcli.images.load import decode, from_pil
from zipcli.images.write import encode

SIDES = st.integers(1, 24)
SHAPES = st.one_of(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES, st.just(3)))
PIXELS = arrays(np.uint8, SHAPES)
# How a turned camera stores an upright picture; each undoes the orientation of that number.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


@given(PIXELS)
def test_saving_and_loading_png_is_the_identity(pixels):
    picture = decode(encode(pixels, "PNG"), "a.png")
    assert picture.pixels.shape == pixels.shape
    np.testing.assert_array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("format", ["TIFF", "BMP", "PPM"])
@settings(max_examples=30)
@given(pixels=PIXELS)
def test_the_other_lossless_formats_lose_nothing(format, pixels):
    np.testing.assert_array_equal(decode(encode(pixels, format), "a").pixels, pixels)


@pytest.mark.fault("F71")
@given(PIXELS, st.sampled_from(sorted(STORED)))
def test_every_orientation_gives_upright_pixels(upright, orientation):
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(decode(file.getvalue(), "a.png").pixels, upright)


@pytest.mark.fault("F67")
@given(arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(4))))
def test_flattening_never_darkens_and_hides_nothing(pixels):
    flat = from_pil(Image.fromarray(pixels)).pixels
    assert (flat >= pixels[..., :3]).all()
    assert (flat[pixels[..., 3] == 0] == 255).all()
    np.testing.assert_array_equal(flat[pixels[..., 3] == 255], pixels[pixels[..., 3] == 255][:, :3])


@pytest.mark.fault("F57", "F61")
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"P5 ", b"II*\0"]),
)
def test_no_bytes_raise_anything_but_our_error(tail, start):
    with suppress(InputError):
        assert decode(start + tail, "a").pixels.size > 0
