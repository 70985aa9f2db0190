"""Purifier: suspicious images in, clean images out. The command and the class share all of this."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from zipcli.classifiers import identity, open_classifier
from zipcli.config import (
    AUTOENCODER,
    CANDIDATES,
    METHOD_SETTINGS,
    NoiseSchedule,
    PurifyConfig,
    check,
    purify_config,
)
from zipcli.errors import (
    ConfigError,
    DeviceLostError,
    InputError,
    MemoryExhaustedError,
    NonFiniteError,
    Reason,
)
from zipcli.images.fit import fit, fitted_size, unfit
from zipcli.images.guard import decode
from zipcli.images.load import from_pil, read_file
from zipcli.methods import EVALUATIONS, METHODS
from zipcli.models.catalog import known_architecture
from zipcli.models.compiled import compiled
from zipcli.models.hub import Listener
from zipcli.models.loading import load_autoencoder, load_model
from zipcli.models.mae import Restorer
from zipcli.models.packed import for_inference, is_batch_invariant
from zipcli.models.prior import Prior, UNetPrior
from zipcli.pipeline.device import is_device_lost, is_out_of_memory, pick_device, to_device
from zipcli.pipeline.windows import DEFAULT_OVERLAP, DEFAULT_WINDOW, WindowedModel
from zipcli.protocols import AskingMethod, Classifier, EpsModel, Method
from zipcli.transforms import make_operator

P = TypeVar("P", PIL.Image.Image, Tensor)

BATCH_PIXELS = 64 * 32 * 32
"""Pixels that one batch holds, in whole calls, when the batch size is left to us."""

ASK_PIXELS = 2**22
"""Pixels that the classifier is shown in one call."""

MODELLESS_PIXELS = 16 * 512 * 512
"""Pixels of a batch of a method without a diffusion model, 16 images at most."""

ANY_SIZE = (1, 1)
"""Of an image, where what is asked does not depend on it."""

CROP_SIDE = 256
"""Side that larger images are resized or cropped to, for a model that takes any size."""


class Purifier:
    """Purifies images with one set of settings.

    Attributes:
        config: The settings.
        fingerprint_parts: What decides the purified pixels: settings, model and masks, for JSON.
    """

    def __init__(self, config: PurifyConfig) -> None:
        """Join a method and its transforms; a method that needs a model gets it from `use`.

        Raises:
            ConfigError: A transform is wrong, or the device is absent.
        """
        self.config = config
        self.device = pick_device(config.device)
        self._masks: dict[str, str] = {}
        self._mask_sizes: set[tuple[int, int]] = set()
        settings = config.pixel_settings()
        transforms = settings.get("transforms", ())
        self._operators = tuple(make_operator(text, self._read_mask) for text in transforms)
        self._check_compositions()
        check(
            not self._masks or config.fit == "tile",
            f"transform mask: a mask belongs to the pixels of the image; leave out --fit {config.fit}",
        )
        method = METHODS[config.method]
        self._method: Method = (
            partial(cast(AskingMethod, method), ask=self._ask) if config.asks else cast(Method, method)
        )
        self._model: WindowedModel | None = None
        self._autoencoder: Restorer | None = None
        self._classifier: Classifier | None = None
        self._queries = 0
        self._check_stop: Callable[[], None] = lambda: None
        self._in_float32: Purifier | None = None
        if config.classifier is not None:
            settings["classifier"] = identity(config.classifier)
        if transforms:
            settings["transforms"] = [self._with_digests(text) for text in transforms]
        self.fingerprint_parts = settings

    @classmethod
    def from_pretrained(cls, model: str = "builtin", **settings: Any) -> "Purifier":
        """Load a model by name or path and build a purifier.

        Args:
            model: A name of the catalog, `owner/name[@revision][/file]` on the Hugging Face Hub, a
                file or a folder.
            **settings: Fields of `PurifyConfig`, such as transforms=["blur:2"], steps=20, seed=0.

        Raises:
            ConfigError: A setting is wrong or not used by the method.
            ModelError: The model is missing or damaged.
        """
        if "model" not in settings and model != PurifyConfig.model:
            settings["model"] = model
        return cls.from_config(purify_config(**settings))

    @classmethod
    def from_config(cls, config: PurifyConfig, listener: Listener | None = None) -> "Purifier":
        """Load the model that the settings name and build a purifier.

        `listener` is told of a download, and of what the user should know of the model.
        """
        purifier = cls(config)
        listener = listener or Listener()
        if config.needs_autoencoder:
            purifier._load_autoencoder(listener)
        elif config.needs_model:
            if (known := known_architecture(config.model)) is not None:
                # Better now than after gigabytes have come.
                purifier.window(known.schedule, known.network.side)
            loaded = load_model(
                config.model, purifier.device, config.dtype, offline=config.offline, listener=listener
            )
            for note in loaded.notes:
                listener.note(note)
            if (settled := config.for_model(loaded.card)) != config:
                config, purifier = settled, cls(settled)
            check(
                config.method == "blind" or loaded.card.get("blind_states") != 1.0,
                f"model {config.model}: it is for the method blind only; leave it out",
            )
            if CANDIDATES.get(config.method) not in (None, *loaded.card):
                listener.note(
                    f"model {config.model} was not trained for the method {config.method}, as the built-in "
                    "one and those of zipcli train are; it may purify badly"
                )
            model = laid_out(loaded.model, config, listener.check_stop)
            purifier.use(model, loaded.fingerprint, batch_invariant=is_batch_invariant(model))
        return purifier

    def _load_autoencoder(self, listener: Listener) -> None:
        name = self.config.model
        check(  # better now than after gigabytes have come
            known_architecture(name) is None,
            f"model {name}: it is a diffusion model, and method {self.config.method} needs a masked "
            f"autoencoder, such as {AUTOENCODER}",
        )
        loaded = load_autoencoder(name, self.device, offline=self.config.offline, listener=listener)
        self._autoencoder = loaded.model
        self.fingerprint_parts |= loaded.fingerprint

    def ask_with(self, classifier: Classifier) -> None:
        """Let the method ask this classifier, which must be that of the settings."""
        self._classifier = classifier

    def queries_for(self, images: int) -> int | None:
        """How many images the classifier was shown for each of the last `images`; None without one.

        Counted since this was asked last; failed attempts are in it.
        """
        if not self.config.asks:
            return None
        each, self._queries = divmod(self._queries, images)
        return each

    def _ask(self, images: Tensor) -> Tensor:
        """The classifier as an `Ask`."""
        if self._classifier is None:
            raise ConfigError("this purifier has no classifier yet; give it one with ask_with(classifier)")
        together = max(1, ASK_PIXELS // (images.shape[-2] * images.shape[-1]))
        labels = []
        for some in torch.split(images, together):
            self._check_stop()
            labels.append(torch.from_numpy(self._classifier(list(to_levels(some))).labels))
        self._queries += len(images)
        return torch.cat(labels)

    def use(self, model: EpsModel, fingerprint: dict[str, Any], *, batch_invariant: bool = False) -> None:
        """Purify with a model.

        Args:
            model: A diffusion prior.
            fingerprint: Tells it from others, for JSON.
            batch_invariant: As `WindowedModel` needs it.

        Raises:
            ConfigError: The sizes or the steps do not fit the model.
        """
        check(model.channels == 3, f"model {self.config.model}: it has {model.channels} channels, not 3")
        side, overlap = self.window(model.schedule, model.native_side)
        self._model = WindowedModel(model, side, overlap, batch_invariant=batch_invariant)
        self.fingerprint_parts |= {**fingerprint, "tile": side, "overlap": overlap}

    def window(self, schedule: NoiseSchedule, native_side: int | None) -> tuple[int, int]:
        """Side and overlap of the windows of a model, in pixels.

        Raises:
            ConfigError: The sizes or the steps do not fit such a model.
        """
        config = self.config
        check(
            config.tile is None or native_side in (None, config.tile),
            f"tile: model {config.model} takes {native_side} pixels only; leave out --tile",
        )
        EVALUATIONS[config.method](config, schedule, ANY_SIZE)  # refuses what does not fit
        side = native_side or config.tile or (DEFAULT_WINDOW if config.fit == "tile" else CROP_SIDE)
        check(
            config.overlap is None or config.overlap <= side // 2,
            f"overlap: {config.overlap} is more than half of the window, {side} pixels",
        )
        return side, min(DEFAULT_OVERLAP, side // 2) if config.overlap is None else config.overlap

    @overload
    def __call__(self, image: str | PathLike[str]) -> PIL.Image.Image: ...
    @overload
    def __call__(self, image: P) -> P: ...
    def __call__(self, image: "str | PathLike[str] | PIL.Image.Image | Tensor") -> Any:
        """Purify one picture, or a batch of them as a tensor.

        Args:
            image: A path, a PIL image, or a tensor (3, H, W) or (N, 3, H, W): uint8, or floating
                point in [0, 1].

        Returns:
            The same kind of picture, a PIL image for a path: grey (mode L) where the input was
            grey, RGB otherwise. A tensor keeps its dtype, and its shape except for center-crop.

        Raises:
            InputError: The picture cannot be read or purified; `reason` says why.
        """
        if isinstance(image, Tensor):
            return self._purify_tensor(image)
        if isinstance(image, PIL.Image.Image):
            picture = from_pil(image)
        else:
            picture = decode(read_file(Path(image)), str(image))
        return PIL.Image.fromarray(self.purify_pixels([picture.pixels])[0])

    def purify_pixels(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Purify images of one shape together.

        Args:
            images: uint8 arrays, all (H, W) or all (H, W, 3), sRGB.

        Returns:
            uint8 arrays of the same shape (of the cropped shape for `--fit center-crop`), rounded
            half up. An image does not depend on the others, except on a canvas of a fixed-size
            model, where the network sees its neighbours.

        Raises:
            NonFiniteError: The chain of some images failed; it names them.
        """
        is_grey = images[0].ndim == 2
        x = torch.stack([to_tensor(pixels) for pixels in images])
        clean = self._purify(x, [pixel_digest(pixels) for pixels in images])
        if is_grey:
            clean = clean.mean(dim=1, keepdim=True)
        arrays = to_levels(clean)
        return [np.ascontiguousarray(a[..., 0] if is_grey else a) for a in arrays]

    @property
    def removes_nothing(self) -> bool:
        """Whether its transforms keep the whole image, so that outputs are inputs."""
        return bool(self._operators) and not any(A.removed_rms((64, 64)) for A in self._operators)

    def batch_size(self, size: tuple[int, int]) -> int:
        """Images of `size` (H, W) to purify together: a whole number of canvases or calls."""
        if self._model is None:
            few = max(1, min(16, MODELLESS_PIXELS // (size[0] * size[1])))
            return self.config.batch_size or few
        working = fitted_size(size, self.config.fit, self._model.side)
        per_canvas = self._model.images_per_canvas(working)
        if per_canvas > 1:
            # The neighbours on a canvas change an image: fill it the same way at any batch size.
            return per_canvas * max(1, (self.config.batch_size or per_canvas) // per_canvas)
        window = self._model.window(working)
        in_one_window = working[0] <= window[0] and working[1] <= window[1]
        calls = self._model.images_per_call(window, self.device)
        automatic = calls * max(1, BATCH_PIXELS // (calls * window[0] * window[1])) if in_one_window else 1
        return self.config.batch_size or automatic

    def in_float32(self) -> "Purifier | None":
        """The same purifier, in full precision; None where it has that already.

        What overflows in a short format may be finite in a longer one.
        """
        if self.fingerprint_parts.get("dtype") not in ("bfloat16", "float16"):
            return None
        if self._in_float32 is None:
            self._in_float32 = Purifier.from_config(self.config.changed(dtype="float32", compile=False))
            self._in_float32.stop_with(self._check_stop)
            if self._classifier is not None:
                self._in_float32.ask_with(self._classifier)
        return self._in_float32

    def stop_with(self, check_stop: Callable[[], None]) -> None:
        """Call `check_stop` before every call of a network or classifier; it may raise to stop a batch."""
        self._check_stop = check_stop
        for model in (self._model, self._autoencoder):
            if model is not None:
                model.before_call = check_stop

    def _purify_tensor(self, image: Tensor) -> Tensor:
        batch = (image if image.ndim == 4 else image[None]).contiguous()  # strides change the last bits
        if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
            raise ConfigError(f"tensor: shape {tuple(image.shape)} is not (3, H, W) or (N, 3, H, W)")
        if image.dtype == torch.uint8:
            levels = batch
        else:
            check(image.is_floating_point(), f"tensor: dtype {image.dtype} is neither uint8 nor float")
            in_range = bool(((batch >= 0) & (batch <= 1)).all())
            check(in_range, "tensor: values must lie in [0, 1]; divide by 255 or undo the normalisation")
            levels = (batch * 255 + 0.5).floor().to(torch.uint8)
        digests = [pixel_digest(row.permute(1, 2, 0).cpu().numpy()) for row in levels]
        x = levels / 127.5 - 1 if image.dtype == torch.uint8 else batch.float() * 2 - 1
        size = self.batch_size((x.shape[-2], x.shape[-1]))
        chunks = range(0, len(x), size)
        parts = [self._purify(x[start : start + size], digests[start : start + size]) for start in chunks]
        clean = (torch.cat(parts).clamp(-1, 1) + 1) / 2
        if image.dtype == torch.uint8:
            clean = (clean * 255 + 0.5).floor()
        clean = clean.to(image.device, image.dtype)
        return clean if image.ndim == 4 else clean[0]

    @torch.inference_mode()
    def _purify(self, x: Tensor, digests: Sequence[bytes]) -> Tensor:
        """Purify (N, 3, H, W) in [-1, 1]; `digests` identify the images."""
        model = self._autoencoder or self._model
        if self.config.needs_model and model is None:
            raise ConfigError("this purifier has no model yet; build it with Purifier.from_config(config)")
        size = (x.shape[-2], x.shape[-1])
        x = to_device(x, self.device)
        side = self._model.side if self._model else max(size)
        fitted = fit(x, self.config.fit, side)
        noise = ImageNoise(self.config.seed, digests)
        try:
            clean = self._method(
                fitted, cast(EpsModel | None, model), self._operators, self.config, noise=noise
            )
        except (MemoryError, RuntimeError) as e:
            if is_device_lost(e):
                what = " ".join(str(e).split())[:200]
                raise DeviceLostError(
                    f"device {self.device}: it has failed ({what}); what is written is complete; run the "
                    "same command again"
                ) from e
            if not is_out_of_memory(e):
                raise
            height, width = x.shape[-2:]
            smaller = "--tile or image" if "tile" in METHOD_SETTINGS[self.config.method] else "image"
            raise MemoryExhaustedError(
                f"not enough memory for {len(x)} images of {width}x{height}; use a smaller {smaller}"
            ) from e
        if fitted.shape != x.shape:
            clean = unfit(clean, self.config.fit, size)
        if not clean.isfinite().all():
            bad = (~clean.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise NonFiniteError("in the result", tuple(bad))
        return clean

    def _with_digests(self, transform: str) -> str:
        """A transform as the record names it: a mask by its content, wherever it lies."""
        parts = (part.partition(":") for part in transform.split("+"))
        named = (
            (name, colon, self._masks.get(rest, rest) if name == "mask" else rest)
            for name, colon, rest in parts
        )
        return "+".join("".join(part) for part in named)

    def _check_compositions(self) -> None:
        """Refuse at once what a composition with a mask would refuse for every image of its size."""
        for operator in self._operators:
            for size in self._mask_sizes:
                try:
                    operator.forward(torch.zeros(1, 3, *size))
                except InputError as e:
                    if e.reason is Reason.TRANSFORM_UNFIT:
                        raise ConfigError(str(e)) from e

    def _read_mask(self, file: str) -> Tensor:
        """Read a mask into (1, 1, H, W): white (128 and up) is kept, black is refilled."""
        try:
            data = read_file(Path(file))
            pixels = decode(data, file).pixels
        except InputError as e:
            raise ConfigError(f"transform mask: {e}") from e
        self._mask_sizes.add((pixels.shape[0], pixels.shape[1]))
        self._masks[file] = hashlib.sha256(data).hexdigest()
        grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
        return torch.from_numpy((grey >= 128).astype(np.float32))[None, None]


@contextlib.contextmanager
def asked_classifier(
    config: PurifyConfig, check_stop: Callable[[], None] = lambda: None
) -> Iterator[Classifier | None]:
    """Open the classifier that the method asks, if it asks one; it ends with the block.

    Raises:
        ConfigError: A setting does not fit.
        ClassifierError: The classifier is missing.
    """
    if config.classifier is None:
        yield None
        return
    with open_classifier(config.classifier, check_stop) as classifier:
        yield classifier


def laid_out(
    model: Prior | UNetPrior, config: PurifyConfig, check_stop: Callable[[], None]
) -> Prior | UNetPrior:
    """A model as the settings want it run: compiled, or packed where that is possible.

    Args:
        model: As it was loaded, or as this has returned it; it must not be trained or used any more.
        config: The settings.
        check_stop: See `compiled`.

    Raises:
        ConfigError: This machine cannot compile.
        ModelError: There is no folder to keep what is compiled.
    """
    return compiled(model, check_stop) if config.compile else for_inference(model)


class ImageNoise:
    """Noise of a batch: one CPU generator for each image, seeded by the run and by its pixels.

    So an image gets the same noise alone, in any batch, under any name and on any device. Seeding
    by the path would give two answers to one picture that came by file and through a pipe.
    """

    def __init__(self, seed: int, digests: Sequence[bytes]) -> None:
        """Seed a generator for each image from `seed` and its digest."""
        self._generators = [torch.Generator().manual_seed(image_seed(seed, d)) for d in digests]

    def __call__(self, x_t: Tensor, /) -> Tensor:
        """Draw N(0, I) like x_t, (N, C, H, W)."""
        drawn = [torch.randn(x_t.shape[1:], generator=g) for g in self._generators]
        return to_device(torch.stack(drawn), x_t.device).to(x_t.dtype)


def image_seed(seed: int, digest: bytes) -> int:
    """The seed of one image's noise, 63 bits."""
    mixed = hashlib.blake2b(digest, key=seed.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(mixed, "little") >> 1


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Digest of decoded pixels, uint8 (H, W) or (H, W, 3): what identifies an image.

    A grey image and its copy in three equal channels are the same picture.
    """
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    shape = np.array(pixels.shape, dtype="<u4").tobytes()
    return hashlib.sha256(shape + np.ascontiguousarray(pixels).tobytes()).digest()


def to_levels(x: Tensor) -> np.ndarray:
    """(N, C, H, W) in [-1, 1], clipped here, to uint8 (N, H, W, C), rounded half up."""
    levels = ((x.clamp(-1, 1) + 1) * 127.5 + 0.5).floor().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (H, W) or (H, W, 3) to float32 (3, H, W) in [-1, 1]."""
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    # PIL hands out read-only arrays, which torch refuses to share without a warning.
    return torch.from_numpy(np.require(rgb, np.uint8, ["C", "W"])).permute(2, 0, 1) / 127.5 - 1
