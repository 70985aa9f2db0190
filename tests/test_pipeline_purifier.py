"""The Python class: pictures in, the same kind of picture out."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

import zipcli
from zipcli import Purifier, ZipcliError
from zipcli.config import NoiseSchedule, PurifyConfig, purify_config
from zipcli.errors import ConfigError, InputError, MemoryExhaustedError, ModelError, NonFiniteError
from zipcli.images.write import psnr
from zipcli.models.denoiser import Denoiser
from zipcli.models.hub import Listener
from zipcli.models.local_unet import LocalUNet, LocalUNetConfig
from zipcli.models.prior import Prior
from zipcli.models.weights import write_model
from zipcli.pipeline.purifier import ImageNoise, image_seed, pixel_digest

EXAMPLES = Path(__file__).parents[1] / "examples" / "pictures"


@pytest.fixture(scope="module")
def purifier() -> Purifier:
    return Purifier.from_pretrained("builtin", transforms=["blur:2"], seed=0)


def picture(height: int = 12, width: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, axis=0).repeat(4, axis=1)[:height, :width])


def test_nullspace_says_when_the_model_was_not_trained_for_it(tmp_path: Path) -> None:
    prior = Prior(Denoiser(LocalUNet(LocalUNetConfig(widths=(8,), blocks=(1,)))), NoiseSchedule(), channels=3)
    write_model(tmp_path / "old.safetensors", prior, {})
    write_model(tmp_path / "new.safetensors", prior, {"partial_noise": 0.4})
    for name, method, expected in (("old", "nullspace", 1), ("new", "nullspace", 0), ("old", "zip", 0)):
        notes: list[str] = []
        config = purify_config(method=method, model=str(tmp_path / f"{name}.safetensors"))
        Purifier.from_config(config, Listener(note=notes.append))
        assert len(notes) == expected, (name, method)
        assert all("was not trained for the method nullspace" in note for note in notes)


def test_the_public_names_are_few_and_load_on_first_use() -> None:
    assert set(zipcli.__all__) == {"Purifier", "PurifyConfig", "ZipcliError", "__version__"}
    assert issubclass(ConfigError, ZipcliError)
    assert issubclass(ConfigError, ValueError)
    with pytest.raises(AttributeError, match="no attribute 'Purifyer'"):
        _ = zipcli.Purifyer


def test_a_pil_image_a_path_and_a_tensor_give_the_same_pixels(purifier: Purifier, tmp_path: Path) -> None:
    pixels = picture()
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    from_path = purifier(tmp_path / "a.png")
    from_text = purifier(str(tmp_path / "a.png"))
    from_pil = purifier(PIL.Image.fromarray(pixels))
    bytes_in = torch.from_numpy(pixels).permute(2, 0, 1)
    from_bytes = purifier(bytes_in)
    from_floats = purifier(bytes_in / 255)
    assert isinstance(from_pil, PIL.Image.Image)
    assert from_pil.size == (10, 12)
    expected = np.asarray(from_pil)
    assert not np.array_equal(expected, pixels)
    assert np.array_equal(np.asarray(from_path), expected)
    assert np.array_equal(np.asarray(from_text), expected)
    assert from_bytes.dtype == torch.uint8
    assert np.array_equal(from_bytes.permute(1, 2, 0).numpy(), expected)
    assert from_floats.dtype == torch.float32
    rounded = (from_floats * 255 + 0.5).floor().to(torch.uint8).permute(1, 2, 0).numpy()
    # x / 255 * 2 - 1 and x / 127.5 - 1 differ in the last bit, so a level may fall the other way.
    assert (np.abs(rounded.astype(int) - expected) <= 1).all()


def test_a_batch_tensor_keeps_its_shape_dtype_and_range(purifier: Purifier) -> None:
    batch = torch.rand(3, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clean = purifier(batch)
    assert clean.shape == batch.shape
    assert clean.dtype == torch.float64
    assert ((clean >= 0) & (clean <= 1)).all()
    torch.testing.assert_close(purifier(batch[1]), clean[1], atol=0, rtol=0)


def test_grey_stays_grey(purifier: Purifier) -> None:
    grey = PIL.Image.fromarray(picture()[..., 0])
    assert purifier(grey).mode == "L"
    assert purifier(grey).size == grey.size


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(2, 8, 8), torch.zeros(8, 8), torch.full((3, 8, 8), 2.0), torch.full((3, 8, 8), torch.nan)],
)
def test_a_tensor_that_is_no_image_in_range_is_refused(purifier: Purifier, bad: Tensor) -> None:
    with pytest.raises(ConfigError, match="tensor"):
        purifier(bad)


def test_integers_that_are_not_bytes_are_refused(purifier: Purifier) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        purifier(torch.zeros(3, 8, 8, dtype=torch.int64))


def test_a_missing_file_says_so(purifier: Purifier, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png"):
        purifier(tmp_path / "gone.png")


def test_an_image_does_not_depend_on_its_batch(purifier: Purifier) -> None:
    images = [picture(seed=seed) for seed in range(9)]
    together = purifier.purify_pixels(images)
    for n in (0, 5, 8):
        assert np.array_equal(purifier.purify_pixels([images[n]])[0], together[n])
    backwards = purifier.purify_pixels(images[::-1])[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(together, backwards, strict=True))


def test_the_seed_decides_the_noise(purifier: Purifier) -> None:
    other = Purifier.from_pretrained(transforms=["blur:2"], seed=1)
    again = Purifier.from_pretrained(transforms=["blur:2"], seed=0)
    clean = purifier.purify_pixels([picture()])[0]
    assert np.array_equal(again.purify_pixels([picture()])[0], clean)
    assert not np.array_equal(other.purify_pixels([picture()])[0], clean)


def test_grey_and_its_copy_in_three_channels_share_their_noise() -> None:
    grey = picture()[..., 0]
    assert pixel_digest(grey) == pixel_digest(np.repeat(grey[..., None], 3, axis=2))
    assert pixel_digest(grey) != pixel_digest(np.ascontiguousarray(grey.T))


def test_noise_of_an_image_is_its_own() -> None:
    x = torch.zeros(2, 3, 4, 4)
    both = ImageNoise(0, [b"a", b"b"])
    alone = ImageNoise(0, [b"b"])
    for _ in range(3):
        assert torch.equal(both(x)[1], alone(x[:1])[0])
    assert image_seed(0, b"a") != image_seed(1, b"a") != image_seed(0, b"b")
    assert 0 <= image_seed(2**63 - 1, b"a") < 2**63


def test_method_blur_is_the_average_of_the_projections() -> None:
    purifier = Purifier.from_config(purify_config(method="blur", transforms=("blur:4", "gray")))
    pixels = picture(8, 8)
    clean = purifier.purify_pixels([pixels])[0]
    blurred = pixels.reshape(2, 4, 2, 4, 3).mean(axis=(1, 3)).repeat(4, axis=0).repeat(4, axis=1)
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    assert np.abs((blurred + grey) / 2 - clean).max() <= 0.51


def test_lambda_infinity_keeps_what_the_transform_kept() -> None:
    purifier = Purifier.from_pretrained(transforms=["blur:2"], lambda_=float("inf"))
    x = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    pool = torch.nn.AvgPool2d(2)
    clean = purifier(x)
    unclipped = (clean > 0) & (clean < 1)
    assert unclipped.all()
    torch.testing.assert_close(pool(clean), pool(x), atol=1e-5, rtol=0)


def test_lambda_zero_ignores_the_pixels(purifier: Purifier) -> None:
    free = Purifier.from_pretrained(transforms=["blur:2"], sampler="ddim", lambda_=0)
    noise_of = [b"same", b"same"]
    x = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    clean = free._purify(x, noise_of)
    assert torch.equal(clean[0], clean[1])


def test_a_chain_that_fails_names_its_images() -> None:
    class Broken:
        schedule = NoiseSchedule()
        channels = 3
        native_side = None
        minimum_side = 1

        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            eps = torch.zeros_like(x_t)
            eps[1 if len(x_t) > 1 else 0] = torch.nan
            return eps

    purifier = Purifier(purify_config(transforms=("gray",)))
    purifier.use(Broken(), {"model_sha256": "0" * 64})
    with pytest.raises(NonFiniteError, match=r"step 0 \(timestep 180.078\)") as caught:
        purifier.purify_pixels([picture(seed=s) for s in range(4)])
    assert caught.value.images == (1,)


def test_a_purifier_may_be_used_from_several_threads() -> None:
    images = [np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8) for n in range(6)]
    purifier = Purifier.from_pretrained(steps=3)
    expected = [purifier.purify_pixels([image])[0] for image in images]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda image: purifier.purify_pixels([image])[0], images * 3))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected * 3, strict=True))


@pytest.mark.parametrize("wrong", [{"steps": 2, "sampler": "ddim"}, {"tile": 128}, {"overlap": 200}], ids=str)
def test_settings_that_do_not_fit_are_refused_before_a_model_is_fetched(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Purifier.from_pretrained("openai-256", device="cpu", offline=True, **wrong)


def test_unknown_settings_and_models_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'transforms'"):
        Purifier.from_pretrained(transform=["blur:2"])
    with pytest.raises(ModelError, match="Did you mean 'builtin'"):
        Purifier.from_pretrained("bultin")


@pytest.mark.fault("F13")
def test_an_absent_device_is_an_error_and_never_a_silent_cpu_run() -> None:
    with pytest.raises(ConfigError, match=r"cuda:99|--device"):
        Purifier.from_pretrained(device="cuda:99")
    with pytest.raises(ConfigError, match="'gpu' is not"):
        Purifier.from_pretrained(device="gpu")


def test_a_purifier_without_its_model_says_how_to_build_one() -> None:
    with pytest.raises(ConfigError, match="from_config"):
        Purifier(PurifyConfig()).purify_pixels([picture()])


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate")],
)
def test_exhausted_memory_is_one_error_on_every_device(error: Exception) -> None:
    class Hungry:
        schedule = NoiseSchedule()
        channels = 3
        native_side = None
        minimum_side = 1

        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            raise error

    purifier = Purifier(purify_config(transforms=("gray",)))
    purifier.use(Hungry(), {"model_sha256": "0" * 64})
    with pytest.raises(MemoryExhaustedError, match="1 images of 10x12"):
        purifier.purify_pixels([picture()])


def test_a_mask_is_recorded_by_its_content(tmp_path: Path) -> None:
    for name, level in (("m", 255), ("m.png", 255)):
        PIL.Image.fromarray(np.full((12, 10), level, np.uint8)).save(tmp_path / name, format="PNG")
    PIL.Image.fromarray(np.full((12, 10), 200, np.uint8)).save(tmp_path / "other.png")

    def parts(*names: str) -> object:
        words = [f"mask:{tmp_path / name}" for name in names]
        return Purifier(purify_config(method="blur", transforms=words)).fingerprint_parts

    assert parts("m", "m.png") == parts("m.png", "m")
    assert parts("m", "other.png") != parts("m", "m.png")
    assert str(tmp_path) not in str(parts("m"))


def test_a_window_smaller_than_its_overlap_is_refused() -> None:
    with pytest.raises(ConfigError, match="overlap"):
        Purifier.from_pretrained(tile=64, overlap=40)


def test_a_mask_refills_what_is_black_and_keeps_the_rest(tmp_path: Path) -> None:
    mask = np.full((12, 10), 255, np.uint8)
    mask[2:6, 3:7] = 0
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    purifier = Purifier.from_pretrained(transforms=[f"mask:{tmp_path / 'mask.png'}"])
    pixels = picture()
    pixels[2:6, 3:7] = (255, 0, 0)
    clean = purifier.purify_pixels([pixels])[0]
    kept = mask == 255
    assert np.abs(clean[kept].astype(int) - pixels[kept]).max() <= 1
    assert not np.array_equal(clean[~kept], pixels[~kept])
    with pytest.raises(InputError, match="must be alike"):
        purifier.purify_pixels([picture(12, 12)])


def test_windows_of_the_builtin_prior_leave_no_seam() -> None:
    with PIL.Image.open(EXAMPLES / "landscape.png") as image:
        pixels = np.asarray(image)[-96:, :120]  # read-only, as PIL hands it out
    whole = Purifier.from_pretrained(transforms=["blur:4"], steps=10)
    tiled = Purifier.from_pretrained(transforms=["blur:4"], steps=10, tile=64, overlap=32)
    a, b = whole.purify_pixels([pixels])[0], tiled.purify_pixels([pixels])[0]
    assert psnr(a, b) > 42
    across = np.abs(np.diff(b.astype(int), axis=1)).mean(axis=(0, 2))
    usual = np.abs(np.diff(a.astype(int), axis=1)).mean(axis=(0, 2))
    # The borders of the windows are no steeper than the same columns of the whole image.
    assert np.abs(across - usual).max() < 1.5


def test_bfloat16_changes_the_network_only() -> None:
    full, short = (
        Purifier.from_pretrained(transforms=["blur:2"], seed=0, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    a, b = full.purify_pixels([picture()])[0], short.purify_pixels([picture()])[0]
    assert not np.array_equal(a, b)
    assert np.abs(a.astype(int) - b).mean() < 8
