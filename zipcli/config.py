"""Frozen settings of every command, with their checks. No torch here."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import UnionType
from typing import Any, get_args, get_origin

from zipcli.errors import ConfigError, shown
from zipcli.registry import unknown_name

GRIDS = ("official", "paper", "full")
FITS = ("tile", "resize", "squash", "center-crop")
DTYPES = ("auto", "float32", "bfloat16", "float16")
A_YEAR = 365 * 24 * 60  # minutes
TRAIN_DTYPES = ("auto", "float32", "bfloat16")
SIZES = ("small", "medium", "large")
FORMATS = ("png", "same", "jpg", "webp")
METADATA = ("safe", "none")

# What each method reads. An option that the chosen method does not use is refused.
_SAMPLER = frozenset({"transforms", "model", "steps", "lambda_", "eta", "grid", "variant"})
_NETWORK = frozenset({"device", "dtype", "batch_size", "fit", "tile", "overlap", "seed", "offline"})
METHOD_SETTINGS: Mapping[str, frozenset[str]] = {
    "zip": _SAMPLER | _NETWORK | {"clip_x0", "travel_length", "travel_repeat"},
    "blur": frozenset({"transforms", "device", "batch_size"}),
}

# Published settings by name. A variant fixes the values in its row.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    # The released program: gray and block blur averaged, whatever its --deg says (spec 3.8).
    "official": {"grid": "official", "steps": 20, "eta": 1.0},
    # Algorithm 1: DDPM, every one of the 1000 timesteps.
    "paper-alg1": {"grid": "full", "steps": 1000, "eta": 1.0},
    # Algorithm 2: DDIM over T, T-S, ..., S, 1 with T = 1000 and S = 50.
    "paper-alg2": {"grid": "paper", "steps": 20, "eta": 1.0},
}


def check(condition: bool, message: str) -> None:
    """Raise `ConfigError` with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_choice(kind: str, value: str, known: tuple[str, ...] | Mapping[str, Any]) -> None:
    """Raise `ConfigError` that suggests the nearest known name for an unknown one."""
    check(value in known, unknown_name(kind, value, known))


def check_types(settings: Any) -> None:
    """Raise `ConfigError` for a value of another type than its field.

    Settings that come from a file of somebody else's can have true, "2" or Infinity anywhere.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        check(
            _has_type(value, field.type), f"{field.name}: {shown(repr(value)[:60])} is not what belongs there"
        )


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_has_type(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_has_type(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind  # and so true is no 1


SCHEDULES = ("linear", "scaled_linear", "cosine", "trained")


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The noise that a model was trained with: beta of each timestep.

    Attributes:
        kind: linear, beta rises evenly (Ho et al. 2020, section 4); scaled_linear, its square root
            does (Rombach et al. 2022); cosine (Nichol and Dhariwal 2021, eq. 17); or trained, the
            values of `betas`.
        beta_start: First beta; cosine and trained do not use it.
        beta_end: Last beta; likewise.
        timesteps: T, how many there are.
        betas: Every beta of a trained schedule.
    """

    kind: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    timesteps: int = 1000
    betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_types(self)
        check_choice("noise schedule", self.kind, SCHEDULES)
        check(0 < self.beta_start <= self.beta_end < 1, "need 0 < beta_start <= beta_end < 1")
        check(1 <= self.timesteps <= 100_000, "timesteps: from 1 to 100,000")
        check((self.kind == "trained") == (self.betas is not None), "betas belong to a trained schedule")
        if self.betas is not None:
            check(
                len(self.betas) == self.timesteps, f"{len(self.betas)} betas for {self.timesteps} timesteps"
            )
            check(all(0 < beta < 1 for beta in self.betas), "betas must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class NoiseLevelConfig:
    """Which noise levels sigma a prior is trained at; sigma is the noise over the image in [-1, 1].

    Attributes:
        log_sigma_mean: Centre of ln(sigma); purification lives between sigma 0.05 and 2.
        log_sigma_std: Spread of ln(sigma).
        uniform_share: Share of the noise levels drawn evenly in ln(sigma) over the whole range
            instead, so that the ends of the chain are known too.
        lowest_sigma: About that of the first timestep of DDPM.
        highest_sigma: About that of its last.
    """

    log_sigma_mean: float = -1.0
    log_sigma_std: float = 1.2
    uniform_share: float = 0.15
    lowest_sigma: float = 0.01
    highest_sigma: float = 100.0


@dataclass(frozen=True, kw_only=True)
class LoopConfig(NoiseLevelConfig):
    """Settings of the training loop.

    Attributes:
        steps: Optimizer steps in all; None where `minutes` decides.
        minutes: Time in all, however often the run is stopped and resumed; None where `steps` decides.
        lr: Highest learning rate.
        warmup: Steps in which the rate rises from 0.
        decay: Share of the run, at its end, in which the rate falls linearly to 0.
        average: Exponent of the moving average of the weights: the larger, the shorter is its
            memory. At 16 it spans about a twentieth of the run so far.
        muon: Whether convolutions are moved by Muon, which suits networks that it trained.
        seed: Seed of crops, noise and noise levels.
    """

    steps: int | None = None
    minutes: float | None = None
    lr: float = 4e-3
    warmup: int = 100
    decay: float = 0.5
    average: float = 16.0
    muon: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        check((self.steps is None) != (self.minutes is None), "steps, minutes: give one of the two")
        check(self.steps is None or self.steps >= 1, f"steps: {self.steps} is not at least 1")
        check(
            self.minutes is None or 0 < self.minutes <= A_YEAR,
            f"minutes: {self.minutes} is not between 0 and {A_YEAR:,}",
        )
        check(0 < self.lr < 1, f"lr: {self.lr} is not between 0 and 1")
        check(0 <= self.decay <= 1, f"decay: {self.decay} is not between 0 and 1")
        check(0 <= self.seed < 2**40, f"seed: {self.seed} is not between 0 and 2^40 - 1")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings of the samplers.

    Attributes:
        steps: Steps of the chain; the stride is T // steps. Each costs one evaluation of the
            network; grid paper visits timestep 0 besides, and time travel repeats some.
        lambda_: Exponent of the confidence weight 1 - alpha_bar^lambda (ZIP, section 3.4). 0 ignores
            the input, infinity keeps `A x` exactly.
        eta: Share of fresh noise in each step: 0 is deterministic DDIM, 1 is DDPM.
        grid: Which timesteps are visited.
        clip_x0: Clip the estimate of x_0 to [-1, 1] before it is corrected.
        travel_length: Time travel goes back this many steps (1 with repeat 1: no travel).
        travel_repeat: How often each stretch is walked.
    """

    steps: int = 20
    lambda_: float = 10.0
    eta: float = 1.0
    grid: str = "official"
    clip_x0: bool = False
    travel_length: int = 1
    travel_repeat: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        check(self.steps >= 1, f"steps: {self.steps} is not at least 1")
        check(self.lambda_ >= 0, f"lambda: {self.lambda_} is not a number from 0 to inf")
        check(0 <= self.eta <= 1, f"eta: {self.eta} is not between 0 and 1")
        check_choice("grid", self.grid, GRIDS)
        check(
            self.grid != "full" or self.steps in (MethodConfig.steps, 1000),
            f"grid full visits every timestep; leave out steps {self.steps}",
        )
        check(self.travel_length >= 1, f"travel length: {self.travel_length} is not at least 1")
        check(1 <= self.travel_repeat <= 1000, f"travel repeat: {self.travel_repeat} is not from 1 to 1000")
        check(
            self.travel_length == 1 or self.travel_repeat > 1,
            "travel length: without a travel repeat of 2 or more it does nothing; leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class PurifyConfig(MethodConfig):
    """Everything that decides the purified pixels of one image, and where it is computed.

    Attributes:
        method: Name of the method.
        transforms: Linear transforms A. Each value is one transform, or several joined with "+"
            and applied left to right; the corrections of several values are averaged.
        variant: A published group of settings, or None.
        model: A name of the catalog such as "builtin", `owner/name[@revision][/file]` on the
            Hugging Face Hub, or the path of a file or folder.
        fit: What to do with an image that is larger than one window of the model.
        tile: Side of a window in pixels; None for the model's own.
        overlap: Pixels that neighbouring windows share; None for 64, or half of a small window.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: Precision inside the network; the chain itself is always float32.
        batch_size: Images purified together; None to choose by their size. It changes no pixel.
        seed: Seed of the noise. Each image has its own noise, drawn from the seed and its pixels.
        offline: Never connect to the Hub; a model that is not here is an error.
    """

    method: str = "zip"
    transforms: tuple[str, ...] = ("blur",)
    variant: str | None = None
    model: str = "builtin"
    fit: str = "tile"
    tile: int | None = None
    overlap: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    seed: int = 1234
    offline: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "lambda_", float(self.lambda_))  # 10 and 10.0 are one setting
        if isinstance(self.transforms, str):
            object.__setattr__(self, "transforms", (self.transforms,))
        check_choice("method", self.method, METHOD_SETTINGS)
        self._check_variant()
        super().__post_init__()
        check(len(self.transforms) >= 1, "transforms: at least one is needed")
        check_choice("fit", self.fit, FITS)
        check_choice("dtype", self.dtype, DTYPES)
        check(self.tile is None or self.tile >= 16, f"tile: {self.tile} is not at least 16 pixels")
        check(self.overlap is None or self.overlap >= 0, f"overlap: {self.overlap} is negative")
        check(self.batch_size is None or self.batch_size >= 1, "batch size: at least 1")
        check(0 <= self.seed < 2**63, f"seed: {self.seed} is not between 0 and 2^63 - 1")

    def _check_variant(self) -> None:
        """A variant is a name for values, not a switch: the values must be there."""
        if self.variant is None:
            return
        check_choice("variant", self.variant, VARIANTS)
        for name, value in VARIANTS[self.variant].items():
            check(
                getattr(self, name) == value,
                f"{name.rstrip('_')}: variant {self.variant} fixes it to {value}, not {getattr(self, name)}; "
                "leave out one of the two",
            )
        if self.variant == "official":
            check(
                self.transforms == _official_transforms(self.transforms),
                "variant official: its transforms are gray and one blur:N, averaged",
            )
            check(self.lambda_.is_integer(), "lambda: the official program takes whole numbers only")

    @property
    def needs_model(self) -> bool:
        """Whether the method uses a diffusion prior."""
        return "model" in METHOD_SETTINGS[self.method]

    def pixel_settings(self) -> dict[str, Any]:
        """What can change a pixel: the settings the method reads, less where and how many."""
        # A variant is a name for the values beside it; the digest of a model says more than its path.
        used = METHOD_SETTINGS[self.method] - {"device", "batch_size", "variant", "model", "offline"}
        settings = {name: value for name, value in asdict(self).items() if name in used}
        if settings.get("grid") == "full":
            settings["steps"] = 1000  # whatever was said, all of them are visited
        if math.isinf(self.lambda_) and "lambda_" in settings:
            settings["lambda_"] = "inf"  # JSON has no infinity
        return {"method": self.method, **settings}


def purify_config(**given: Any) -> PurifyConfig:
    """Build the settings from the given ones only, refusing what would be ignored.

    Args:
        **given: Fields of `PurifyConfig` that the user named.

    Raises:
        ConfigError: A setting is unknown or wrong, the method does not use it, or it
            contradicts the variant.
    """
    known = {field.name for field in fields(PurifyConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        check(name in known, unknown_name("setting", name, known))
    method = given.get("method", PurifyConfig.method)
    check_choice("method", method, METHOD_SETTINGS)
    for name in given.keys() - METHOD_SETTINGS[method] - {"method"}:
        raise ConfigError(f"{name.rstrip('_')}: method {method} does not use it; leave it out")
    if "transforms" in given and not isinstance(given["transforms"], str):
        given["transforms"] = tuple(given["transforms"])
    variant = given.get("variant")
    if variant is not None:
        check_choice("variant", variant, VARIANTS)
        given = {**VARIANTS[variant], **given}
        if variant == "official":
            given["transforms"] = _official_transforms(given.get("transforms", ("blur:2",)))
    return PurifyConfig(**given)


def _official_transforms(transforms: tuple[str, ...]) -> tuple[str, ...]:
    """Gray and the block blur averaged, as the released program always does."""
    blurs = [t for t in transforms if t.startswith("blur:") and "+" not in t]
    check(
        len(blurs) == 1 and set(transforms) <= {*blurs, "gray"},
        "variant official: its transforms are gray and one blur:N; give --transform blur:N only",
    )
    return ("gray", blurs[0])


# Extensions that a folder run takes when the user gives no pattern.
IMAGE_PATTERNS = tuple(
    f"*.{extension}"
    for extension in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "tif", "tiff"),
        *("bmp", "dib", "gif", "ppm", "pgm", "pbm", "pnm"),
    )
)


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """How a folder is read and written.

    Attributes:
        include: Patterns of the files to take, matched against the name or the relative path,
            without regard to case.
        exclude: Patterns of the files to leave out.
        format: png (lossless), same (the format of the input), jpg or webp (lossless).
        quality: Quality of JPEG files; they are written without chroma subsampling.
        metadata: safe keeps resolution, date and camera; none keeps nothing.
        overwrite: Replace outputs that have other settings or that we did not write.
        jobs: Threads that read and write images while the network runs.
        detector: Which detector decides what needs purifying; none purifies everything.
    """

    include: tuple[str, ...] = IMAGE_PATTERNS
    exclude: tuple[str, ...] = ()
    format: str = "png"
    quality: int = 95
    metadata: str = "safe"
    overwrite: bool = False
    jobs: int = 4
    detector: str = "none"

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("format", self.format, FORMATS)
        check_choice("metadata", self.metadata, METADATA)
        check(1 <= self.quality <= 100, f"quality: {self.quality} is not between 1 and 100")
        check(1 <= self.jobs <= 256, f"jobs: {self.jobs} is not between 1 and 256")

    def file_settings(self) -> dict[str, Any]:
        """What changes the bytes of an output besides its purified pixels."""
        keep: dict[str, Any] = {
            "format": self.format,
            "metadata": self.metadata,
            "detector": self.detector,
        }
        return keep | ({"quality": self.quality} if self.format in ("same", "jpg") else {})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `zipcli train`.

    Attributes:
        model: What to start from: a name of the catalog, a repository of the Hub or a file; None for
            a new network.
        size: Of a new network.
        steps: Optimizer steps in all; None where `minutes` decides.
        minutes: Time in all, however often the run is stopped and resumed; 30 where neither is given.
        crop: Side of the crops that are learned from; None for 64, less for smaller images, and the
            side that the model sees where it sees only one.
        batch_size: Crops in a step; None to choose by their size and the device.
        lr: Highest learning rate; None to choose by the network and its start.
        holdout: Share of the images that is kept for measuring.
        seed: Seed of everything that is drawn.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: Precision of the multiplications; auto is bfloat16 where the device has it.
        offline: Never connect to the Hub.
        include: Patterns of the files to take.
        exclude: Patterns of the files to leave out.
    """

    model: str | None = None
    size: str = "small"
    steps: int | None = None
    minutes: float | None = None
    crop: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    holdout: float = 0.1
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False
    include: tuple[str, ...] = IMAGE_PATTERNS
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("size", self.size, SIZES)
        check_choice("dtype", self.dtype, TRAIN_DTYPES)
        check(self.crop is None or self.crop >= 8, f"crop: {self.crop} is not at least 8 pixels")
        check(self.batch_size is None or self.batch_size >= 1, "batch size: at least 1")
        check(0 < self.holdout <= 0.5, f"holdout: {self.holdout} is not above 0 and at most 0.5")
        check(self.steps is None or self.minutes is None, "steps, minutes: give one of the two")
        if self.steps is None and self.minutes is None:
            object.__setattr__(self, "minutes", 30.0)
        self.loop(self.lr or LoopConfig.lr, muon=True)  # checks what it reads

    def loop(self, lr: float, *, muon: bool) -> LoopConfig:
        """Settings of the loop, with what is chosen by the network."""
        return LoopConfig(steps=self.steps, minutes=self.minutes, lr=lr, muon=muon, seed=self.seed)
