"""Frozen settings of every command, with their checks. No torch here."""

import hashlib
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin

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
FRAMES = ("one", "first")

# What each sampler and each method reads. An option that the chosen one does not use is refused, and what
# was left to us is chosen such that it uses every option that was given.
_PUBLISHED = frozenset({"eta", "lambda_", "grid", "variant", "clip_x0", "travel_length", "travel_repeat"})
SAMPLER_SETTINGS: Mapping[str, frozenset[str]] = {
    "decoupled": frozenset({"lambda_"}),
    "warm": frozenset({"eta", "lambda_"}),
    "multistep": frozenset({"eta", "lambda_"}),
    "ddim": _PUBLISHED | {"stride"},
    "sde": frozenset({"variant"}),
    "ddpm": frozenset({"variant"}),
    "ode": frozenset({"variant"}),
}
_OF_SAMPLERS = frozenset().union(*SAMPLER_SETTINGS.values())
METHOD_SAMPLERS: Mapping[str, tuple[str, ...]] = {
    "blind": (),
    "nullspace": ("warm", "decoupled", "multistep"),
    "zip": ("warm", "decoupled", "multistep", "ddim"),
    "ddnm": (),
    "diffpure": ("sde", "ddpm", "ode"),
    "blur+diffpure": ("sde", "ddpm", "ode"),
    "sampdetox": ("ddpm", "ddim"),
    "shrinkpad": (),
    "blur": (),
    "bdmae": (),
    "sancdifi": (),
    "gray": (),
    "none": (),
}
_PIXELS = frozenset({"device", "batch_size"})
_NETWORK = _PIXELS | {"model", "dtype", "compile", "fit", "tile", "overlap", "seed", "offline"}
_CHAIN = _NETWORK | {"transforms", "sampler", "steps", "eta", "lambda_"}
_DIFFPURE = _NETWORK | {"sampler", "t_star"}
METHOD_SETTINGS: Mapping[str, frozenset[str]] = {
    "blind": _NETWORK | {"sigma", "passes", "colour_cell", "keep_colour", "doubt"},
    "zip": _CHAIN | _PUBLISHED,
    "nullspace": _CHAIN,
    "ddnm": _NETWORK
    | {"transforms", "steps", "eta", "grid", "travel_length", "travel_repeat", "simplified", "variant"},
    "diffpure": _DIFFPURE | {"variant"},
    "blur+diffpure": _DIFFPURE | {"transforms"},
    "sampdetox": _NETWORK | {"sampler", "t1", "t2", "stride", "ssim_range", "variant"},
    "bdmae": _PIXELS | {"model", "seed", "offline", "classifier"},
    "sancdifi": _NETWORK | {"classifier", "masks", "saliency_threshold", "t_star"},
    "shrinkpad": _PIXELS | {"pad", "seed", "variant"},
    "blur": _PIXELS | {"transforms"},
    "gray": _PIXELS,
    "none": _PIXELS,
}

ONE_TRANSFORM = ("warm", "decoupled", "multistep", "ddnm")
"""Samplers and methods whose result keeps what any of several transforms keeps, and so take one."""

BLIND_SIGMA = 0.5
"""The noise level that a network is told where it has to see by itself what does not belong into an image."""

METHOD_ASKS = frozenset({"bdmae", "sancdifi"})
"""Methods that ask the suspect classifier for labels; they get it as the argument `ask`."""

AUTOENCODER = "facebook/vit-mae-base"
"""The masked autoencoder of a method that needs one, where nobody names another."""

NEEDS_AUTOENCODER = frozenset({"bdmae"})
"""Methods whose model is no diffusion prior but a masked autoencoder."""

BUILTIN = "builtin"
"""The built-in model, whichever it is of a method."""

METHOD_MODELS: Mapping[str, str] = {"blind": "builtin-blind", "bdmae": AUTOENCODER}
"""The model of a method where nobody names another, if it is not the built-in prior."""

CANDIDATES: Mapping[str, str | None] = {"blind": "blind_states", "nullspace": "partial_noise", "zip": None}
"""The methods that are chosen from where nobody chooses, best first, and the states that their models must
have been trained on, as the cards of models say it."""

T_STAR: Mapping[str, int] = {"diffpure": 100, "blur+diffpure": 100, "sancdifi": 500}
"""How many timesteps of noise a method adds that does not begin with pure noise."""

OF_THE_TRANSFORM = -math.inf
"""A lambda that is left to the transform."""

OF_THE_METHOD = -math.inf
"""An eta that is left to the method."""

KEEPS_PIXELS = ("mask:", "identity")
"""Transforms that keep pixels as they are, because somebody trusts them: no faint trigger is in those."""

DDIM_STEPS = 20
"""Steps of the published chain where nobody says how many (ZIP, section 4)."""

STEPS: Mapping[str, int] = {"nullspace": 3, "zip": 5, "ddnm": 100}
"""The same of the chains that begin near the image: the fewest that are as good as the published one, or for
zip nearly so (examples/measure_samplers.py); and those of the program of DDNM."""

ETA: Mapping[str, float] = {"ddnm": 0.85}
"""Share of fresh noise where nobody says how much, and the method has a value of its own."""

_LEFT_TO_US: Mapping[str, Any] = {
    **{"method": "auto", "sampler": "auto", "steps": 0, "transforms": (), "model": BUILTIN}
}
"""The values of what a model has still a say in, where nobody has chosen."""

# Published settings by name. A variant fixes the values in its row.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    # The released program: gray and block blur averaged, whatever its --deg says (spec 3.8).
    "official": {"method": "zip", "sampler": "ddim", "grid": "official", "steps": 20, "eta": 1.0},
    # Algorithm 1: DDPM, every one of the 1000 timesteps.
    "paper-alg1": {"method": "zip", "sampler": "ddim", "grid": "full", "steps": 1000, "eta": 1.0},
    # Algorithm 2: DDIM over T, T-S, ..., S, 1 with T = 1000 and S = 50.
    "paper-alg2": {"method": "zip", "sampler": "ddim", "grid": "paper", "steps": 20, "eta": 1.0},
    # The program of DDNM, its path by SVD and the one of --simplified; and as ZIP ran it for its table 6.
    "ddnm-paper": {"method": "ddnm", "grid": "official", "steps": 100, "eta": 0.85, "simplified": False},
    "ddnm-simplified": {"method": "ddnm", "grid": "official", "steps": 100, "eta": 0.85, "simplified": True},
    "ddnm-zip": {"method": "ddnm", "grid": "official", "steps": 20, "eta": 0.85, "simplified": False},
    # DiffPure against perturbations of 8/255 on CIFAR-10 and of 4/255 on ImageNet.
    "diffpure-cifar10": {"method": "diffpure", "sampler": "sde", "t_star": 100},
    "diffpure-imagenet": {"method": "diffpure", "sampler": "sde", "t_star": 150},
    # The released program; its levels are those of a linear schedule.
    "sampdetox-code": {"method": "sampdetox", "sampler": "ddpm", "t1": 120, "t2": 120, "ssim_range": 255},
    # The paper has levels 20 and 120 of a cosine schedule, and strides of 20: 1 + 6 evaluations. These have
    # the same alpha_bar.
    "sampdetox-paper": {
        **{"method": "sampdetox", "sampler": "ddim", "t1": 9, "t2": 58, "stride": 10, "ssim_range": 255}
    },
    # BackdoorBox, for images of 32 pixels.
    "shrinkpad-backdoorbox": {"method": "shrinkpad", "pad": 4},
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
        sampler: ddim is the chain of the papers, from pure noise; decoupled, warm and multistep begin near
            the image and take a few steps (see `zipcli.methods.few`).
        steps: Steps of the chain. Each costs one evaluation of the network; grid paper visits
            timestep 0 besides, and time travel repeats some. Of ddim, the stride is T // steps.
        lambda_: Exponent of the confidence weight 1 - alpha_bar^lambda of the correction (ZIP, section
            3.4; 10 is its value). 0 never corrects, infinity keeps `A x` exactly.
        eta: Share of fresh noise in each step: 0 is deterministic DDIM, 1 is DDPM.
        grid: Which timesteps are visited.
        clip_x0: Clip the estimate of x_0 to [-1, 1] before it is corrected.
        travel_length: Time travel goes back this many steps (1 with repeat 1: no travel).
        travel_repeat: How often each stretch is walked.
        simplified: Of ddnm, weaken the noise of the last steps, as the program does with --simplified.
        t_star: Of diffpure and sancdifi, timesteps of noise that are added and removed, of which 1,000 leave
            nothing; None for what the method has. Timesteps here and below are those of DDPM's linear
            schedule; a prior with another one is asked where it has as much noise.
        t1: Of sampdetox, the timestep, from 0, that the whole image is noised to.
        t2: Of sampdetox, the timestep that the pixels are noised to that have changed most.
        stride: Of sampdetox with ddim, timesteps from one evaluation to the next.
        ssim_range: Of sampdetox, range of values that SSIM is told, for values from 0 to 1: 255 is what the
            program says, by which SSIM sees little but brightness, and 1 is what it means.
        pad: Of shrinkpad, pixels that each side loses; None for an eighth, and at least 4.
        sigma: Of blind, standard deviation of the noise that is put on images in [-1, 1]; 0 for none.
        passes: Of blind, how often the prior goes over the image.
        colour_cell: Of blind, side in pixels of the squares whose mean colour is kept; 1 keeps every colour.
        keep_colour: Of blind, trust the mean colour of the image.
        doubt: Of blind: change of a small copy by the network, in [-1, 1], half of which is believed.
        masks: Of sancdifi: random masks for an image, each a query to the classifier.
        saliency_threshold: Of sancdifi: share of the pixels that are kept, the least salient ones.
    """

    sampler: str = "ddim"
    steps: int = 20
    lambda_: float = 10.0
    eta: float = 1.0
    grid: str = "official"
    clip_x0: bool = False
    travel_length: int = 1
    travel_repeat: int = 1
    simplified: bool = False
    t_star: int | None = None
    t1: int = 20
    t2: int = 120
    stride: int = 20
    ssim_range: int = 255
    pad: int | None = None
    sigma: float = 0.05
    passes: int = 1
    colour_cell: int = 4
    keep_colour: bool = False
    doubt: float = 0.2
    masks: int = 2000
    saliency_threshold: float = 0.95

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("sampler", self.sampler, SAMPLER_SETTINGS)
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
        check(self.t_star is None or 1 <= self.t_star <= 1000, f"t star: {self.t_star} is not from 1 to 1000")
        check(1 <= self.t1 <= 999, f"t1: {self.t1} is not from 1 to 999")
        check(1 <= self.t2 <= 999, f"t2: {self.t2} is not from 1 to 999")
        check(1 <= self.stride <= 999, f"stride: {self.stride} is not from 1 to 999")
        check(self.ssim_range in (1, 255), f"ssim range: {self.ssim_range} is neither 255 nor 1")
        check(self.pad is None or self.pad >= 1, f"pad: {self.pad} takes nothing away; give at least 1")
        check(0 <= self.sigma <= 1, f"sigma: {self.sigma} is not from 0 to 1")
        check(1 <= self.passes <= 10, f"passes: {self.passes} is not from 1 to 10")
        check(1 <= self.colour_cell <= 64, f"colour cell: {self.colour_cell} is not from 1 to 64")
        check(self.doubt > 0, f"doubt: {self.doubt} is not a number above 0")
        check(1 <= self.masks <= 1_000_000, f"masks: {self.masks} is not between 1 and 1,000,000")
        check(
            0 <= self.saliency_threshold < 1,
            f"saliency threshold: {self.saliency_threshold} is not from 0 to below 1",
        )


@dataclass(frozen=True, kw_only=True)
class PurifyConfig(MethodConfig):
    """Everything that decides the purified pixels of one image, and where it is computed.

    Once built it says what is done: method, sampler and steps are never "auto" or 0 any more.

    Attributes:
        method: Name of the method; auto is the first of `CANDIDATES` that uses all that was said and fits the
            model, of which `for_model` is told.
        sampler: As in `MethodConfig`; auto is the first of the method that uses all that was said, and ddim
            for several transforms.
        lambda_: Likewise; left out it is 10, and infinite for one transform that keeps pixels as they are.
        eta: Likewise; left out it is 1, and 0.85 of ddnm.
        steps: Likewise; 0 is 100 of ddnm, 20 with ddim, and else 3 of nullspace and 5 of zip.
        transforms: Linear transforms A, ("blur",) where they are used and left out. Each value is one
            transform, or several joined with "+" and applied left to right; the corrections of several values
            are averaged.
        variant: A published group of settings, or None.
        model: A name of the catalog such as "builtin", `owner/name[@revision][/file]` on the
            Hugging Face Hub, or the path of a file or folder. "builtin" is the one of `METHOD_MODELS`.
        t_star: As in `MethodConfig`; None is 500 of sancdifi.
        classifier: The black box that bdmae and sancdifi ask; other methods ask nobody.
        fit: What to do with an image that is larger than one window of the model.
        tile: Side of a window in pixels; None for the model's own.
        overlap: Pixels that neighbouring windows share; None for 64, or half of a small window.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: Precision inside the network; the chain itself is always float32.
        compile: Run the network through `torch.compile`, for GPUs; see `zipcli.models.compiled`.
        batch_size: Images purified together; None to choose by their size. It changes no pixel.
        seed: Seed of the noise. Each image has its own noise, drawn from the seed and its pixels.
        offline: Never connect to the Hub; a model that is not here is an error.
    """

    method: str = "auto"
    sampler: str = "auto"
    steps: int = 0
    lambda_: float = OF_THE_TRANSFORM
    eta: float = OF_THE_METHOD
    transforms: tuple[str, ...] = ()
    variant: str | None = None
    model: str = BUILTIN
    classifier: "ClassifierConfig | None" = None
    fit: str = "tile"
    tile: int | None = None
    overlap: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    batch_size: int | None = None
    seed: int = 1234
    offline: bool = False

    _open: ClassVar[frozenset[str]] = frozenset()
    """What nobody chose, and the model has still a say in."""

    _fitting: ClassVar[tuple[str, ...]] = ()
    """The methods that use all that was said, where nobody chose one."""

    def __post_init__(self) -> None:
        """Check the values."""
        self._check_kinds()
        object.__setattr__(self, "lambda_", float(self.lambda_))  # 10 and 10.0 are one setting
        if isinstance(self.transforms, str):
            object.__setattr__(self, "transforms", (self.transforms,))
        self._choose()
        self._check_variant()
        super().__post_init__()
        check_choice("fit", self.fit, FITS)
        check_choice("dtype", self.dtype, DTYPES)
        check(self.tile is None or self.tile >= 16, f"tile: {self.tile} is not at least 16 pixels")
        check(self.overlap is None or self.overlap >= 0, f"overlap: {self.overlap} is negative")
        check(self.batch_size is None or self.batch_size >= 1, "batch size: at least 1")
        check(0 <= self.seed < 2**63, f"seed: {self.seed} is not between 0 and 2^63 - 1")
        check(
            self.classifier is not None or not self.asks,
            f"classifier: method {self.method} asks it; give --classifier WHAT",
        )
        check(
            self.classifier is None or self.asks,
            f"classifier: method {self.method} does not use it; leave it out",
        )

    def _choose(self) -> None:
        """Choose what was left to us: the first method and the first sampler that use all that was said."""
        said = {name for name in _OF_SAMPLERS if self._says(name)}
        check_choice("method", self.method, ("auto", *METHOD_SETTINGS))
        check_choice("sampler", self.sampler, ("auto", *SAMPLER_SETTINGS))
        if self.method == "auto":
            self._choose_method(said)
        if not self.transforms and "transforms" in METHOD_SETTINGS[self.method]:
            object.__setattr__(self, "transforms", ("blur",))
        samplers = METHOD_SAMPLERS[self.method]
        if not samplers:  # no chain, and what belongs to one is what PurifyConfig has: nothing
            object.__setattr__(self, "sampler", "ddim")
        elif self.sampler == "auto":
            fitting = [name for name in samplers if said <= SAMPLER_SETTINGS[name]]
            if len(self.transforms) > 1 and "ddim" in samplers:
                fitting = ["ddim"]
            object.__setattr__(self, "sampler", (fitting or [samplers[0]])[0])
        check(
            not samplers or self.sampler in samplers,
            f"sampler: method {self.method} has no {self.sampler}; use {', '.join(samplers)}",
        )
        # A correction that is the mean of several, made again at every step, keeps in the end what any of
        # them keeps; only the published chain lets go of it in time.
        kind, name = ("sampler", self.sampler) if samplers else ("method", self.method)
        check(
            name not in ONE_TRANSFORM or len(self.transforms) <= 1,
            f"{kind}: {name} takes one transform, as it keeps what any keeps; join them to "
            f"{'+'.join(self.transforms)}, or use --method zip --sampler ddim",
        )
        for name in said - SAMPLER_SETTINGS[self.sampler]:
            raise ConfigError(f"{name.rstrip('_')}: sampler {self.sampler} does not use it; leave it out")
        for field in fields(self):
            name = field.name
            check(
                name in METHOD_SETTINGS[self.method] | {"method"} or not self._says(name),
                f"{name.rstrip('_')}: method {self.method} does not use it; leave it out",
            )
        if self.lambda_ == OF_THE_TRANSFORM:
            transform = "".join(self.transforms[:1])
            exact = self.sampler != "ddim" and transform.startswith(KEEPS_PIXELS) and "+" not in transform
            object.__setattr__(self, "lambda_", math.inf if exact else MethodConfig.lambda_)
        if self.eta == OF_THE_METHOD:
            object.__setattr__(self, "eta", ETA.get(self.method, MethodConfig.eta))
        if self.model == BUILTIN:
            object.__setattr__(self, "model", METHOD_MODELS.get(self.method, BUILTIN))
        if self.t_star is None:
            object.__setattr__(self, "t_star", T_STAR.get(self.method))
        if self.steps == 0:
            as_published = self.grid == "full" or (samplers and self.sampler == "ddim")
            steps = DDIM_STEPS if as_published else STEPS.get(self.method, DDIM_STEPS)
            object.__setattr__(self, "steps", steps)

    def _says(self, name: str) -> bool:
        """Whether a value was chosen.

        What nobody said has either of two values: the open one, or the settled one of a config that is
        built from another.
        """
        return getattr(self, name) not in (getattr(PurifyConfig, name), getattr(MethodConfig, name, None))

    def _check_kinds(self) -> None:
        """Refuse the word "False" for a flag, and 2.5 for a number of steps."""
        for field in fields(self):
            kind, value = type(getattr(PurifyConfig, field.name)), getattr(self, field.name)
            check(
                kind not in (bool, int) or type(value) is kind,
                f"{field.name.rstrip('_')}: {shown(repr(value)[:60])} is not what belongs there",
            )

    def _choose_method(self, said: set[str]) -> None:
        """Choose the first method that uses all that was said, and remember the others that do."""
        named = {"sampler": "auto", "steps": 0, "transforms": ()}
        said = said | {name for name, nothing in named.items() if getattr(self, name) != nothing}
        said |= {name for name in METHOD_SETTINGS["blind"] - _NETWORK if self._says(name)}

        def fits(method: str) -> bool:
            one = METHOD_SAMPLERS[method] and set(METHOD_SAMPLERS[method]) <= set(ONE_TRANSFORM)
            return (
                said <= METHOD_SETTINGS[method]
                and (self.sampler in ("auto", *METHOD_SAMPLERS[method]))
                and not (one and len(self.transforms) > 1)
            )

        # Where none uses all of it, the last one says which it does not.
        fitting = tuple(method for method in CANDIDATES if fits(method)) or (*CANDIDATES,)[-1:]
        left = frozenset(name for name, value in _LEFT_TO_US.items() if getattr(self, name) == value)
        object.__setattr__(self, "_open", left if len(fitting) > 1 else frozenset())
        object.__setattr__(self, "_fitting", fitting)
        object.__setattr__(self, "method", fitting[0])

    def changed(self, **changes: Any) -> "PurifyConfig":
        """The same with other values; unlike with `replace`, a method that nobody chose stays open.

        What was settled for the method besides, such as its eta, stays as it is.
        """
        return replace(self, **{name: _LEFT_TO_US[name] for name in self._open} | changes)

    def for_model(self, knows: Collection[str]) -> "PurifyConfig":
        """The same; or, where nobody chose a method, with the first one that a model fits.

        Args:
            knows: The states that the model was trained on, as its card says.
        """
        if not self._open:
            return self
        fitting = (
            method for method in self._fitting if CANDIDATES[method] is None or CANDIDATES[method] in knows
        )
        method = next(fitting, self.method)
        return self if method == self.method else self.changed(method=method, model=self.model)

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
        """Whether the method uses a model, most likely a diffusion prior."""
        return "model" in METHOD_SETTINGS[self.method]

    @property
    def needs_autoencoder(self) -> bool:
        """Whether that model is a masked autoencoder."""
        return self.method in NEEDS_AUTOENCODER

    @property
    def asks(self) -> bool:
        """Whether the method asks the suspect classifier."""
        return self.method in METHOD_ASKS

    def pixel_settings(self) -> dict[str, Any]:
        """What can change a pixel: the settings the method reads, less where and how many."""
        # A variant is a name for the values beside it; the digest of a model says more than its path.
        used = METHOD_SETTINGS[self.method] - {"device", "batch_size", "variant", "model", "offline"}
        used -= _OF_SAMPLERS - SAMPLER_SETTINGS[self.sampler]
        used -= set() if self.compile else {"compile"}  # records from before there was one go on to hold
        settings = {name: value for name, value in asdict(self).items() if name in used}
        if settings.get("grid") == "full":
            settings["steps"] = 1000  # whatever was said, all of them are visited
        for name in {"lambda_", "doubt"} & settings.keys():
            if math.isinf(settings[name]):
                settings[name] = "inf"  # JSON has no infinity
        if self.classifier is not None:
            settings["classifier"] = self.classifier.settings()
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
    check(
        given.get("method") not in NEEDS_AUTOENCODER or given.get("model") != BUILTIN,
        f"model: {BUILTIN} is a diffusion model, and method {given.get('method')} needs a masked "
        "autoencoder; leave it out",
    )
    for name in given:
        check(name in known, unknown_name("setting", name, known))
    variant = given.get("variant")
    if variant is not None:
        check_choice("variant", variant, VARIANTS)
        _refuse_variant_of_another(given, variant)
        given = {**VARIANTS[variant], **given, "method": VARIANTS[variant]["method"]}
    _refuse_unused(given)
    if "transforms" in given and not isinstance(given["transforms"], str):
        given["transforms"] = tuple(given["transforms"])
    if variant == "official":
        given["transforms"] = _official_transforms(given.get("transforms", ("blur:2",)))
    return PurifyConfig(**given)


def _refuse_variant_of_another(given: dict[str, Any], variant: str) -> None:
    """Refuse a method beside a variant that is not one of its."""
    own, method = VARIANTS[variant]["method"], given.get("method", "auto")
    check_choice("method", method, ("auto", *METHOD_SETTINGS))
    uses = method == "auto" or "variant" in METHOD_SETTINGS[method]
    check(uses, f"variant: method {method} does not use it; leave it out")
    check(
        method in ("auto", own),
        f"method: variant {variant} fixes it to {own}, not {method}; leave out one of the two",
    )


def _refuse_unused(given: dict[str, Any]) -> None:
    """Refuse a setting that the chosen method or sampler would ignore, also where it has its default."""
    implied_by = ""
    if given.get("method", "auto") == "auto" and given.keys() & METHOD_SETTINGS["blind"] - _NETWORK:
        given["method"] = "blind"
        implied_by = min(given.keys() & METHOD_SETTINGS["blind"] - _NETWORK)
    method, sampler = given.get("method", "auto"), given.get("sampler", "auto")
    check_choice("method", method, ("auto", *METHOD_SETTINGS))
    check_choice("sampler", sampler, ("auto", *SAMPLER_SETTINGS))
    methods = CANDIDATES if method == "auto" else (method,)
    used = frozenset[str]().union(*(METHOD_SETTINGS[name] for name in methods))
    for name in given.keys() - used - {"method"}:
        users = [user for user, used in METHOD_SETTINGS.items() if name in used]
        what = f"say --method {' or '.join(users)}" if method == "auto" else "leave it out"
        if implied_by:
            what = f"that method is meant by {implied_by}; leave out one of the two"
        raise ConfigError(f"{name.rstrip('_')}: method {method} does not use it; {what}")
    if method == "auto" and not any(sampler in ("auto", *METHOD_SAMPLERS[name]) for name in CANDIDATES):
        users = [user for user, samplers in METHOD_SAMPLERS.items() if sampler in samplers]
        raise ConfigError(f"sampler: method auto has no {sampler}; say --method {' or '.join(users)}")
    said = given.keys() & _OF_SAMPLERS
    if sampler != "auto":
        for name in said - SAMPLER_SETTINGS[sampler]:
            raise ConfigError(f"{name.rstrip('_')}: sampler {sampler} does not use it; leave it out")
    elif not said <= SAMPLER_SETTINGS["warm"] and "ddim" in METHOD_SAMPLERS.get(method, ("ddim",)):
        given["sampler"] = "ddim"
    chosen = {name for name, value in given.items() if name != "method" and value not in ("auto", 0)}
    if method == "auto" and chosen - METHOD_SETTINGS["blind"]:
        given.setdefault("transforms", ("blur",))  # what was said is of a method that has transforms


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

# The files that are tar shards, when the user gives no pattern.
TAR_PATTERNS = ("*.tar", "*.tar.gz", "*.tgz")


_SLURM = "SLURM_ARRAY_TASK_"

_INDICES = {
    "JOB_COMPLETION_INDEX": ("ZIPCLI_SHARD_COUNT",),
    "AWS_BATCH_JOB_ARRAY_INDEX": ("AWS_BATCH_JOB_ARRAY_SIZE", "ZIPCLI_SHARD_COUNT"),
}
"""Variables that count from 0, and those that say of how many: the first that is set."""


def _number(environ: Mapping[str, str], name: str) -> int:
    """A variable that holds a whole number.

    Raises:
        ConfigError: It does not, or is not set.
    """
    check(name in environ, f"shard: auto needs {name}, which is not set; set it, or give --shard I/N")
    text = environ[name]
    is_number = text.isascii() and text.isdecimal() and len(text) <= 10
    check(is_number, f"shard: {name} is {shown(text)!r}, which is no whole number")
    return int(text)


@dataclass(frozen=True)
class Shard:
    """One of several parts of a folder that are worked on apart.

    Attributes:
        index: Which, from 1 on.
        count: Of how many.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read a shard, such as 3/8.

        Raises:
            ConfigError: It is none.
        """
        index, slash, count = text.partition("/")
        is_number = all(part.isascii() and part.isdecimal() and len(part) <= 5 for part in (index, count))
        fits = bool(slash) and is_number and 1 <= int(index) <= int(count)
        check(fits, f"shard: {shown(text)} is not I/N with I from 1 to N, such as 1/8")
        return cls(int(index), int(count))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "tuple[Shard, str]":
        """The shard that a scheduler has given to this process, and the variable that says so.

        Of several schedulers that have set something the first of these counts: ZIPCLI_SHARD, Slurm's
        job arrays, Kubernetes' indexed jobs, AWS Batch's array jobs.

        Args:
            environ: The environment, such as `os.environ`.

        Raises:
            ConfigError: No scheduler has, or what it has set is incomplete or no number.
        """
        if "ZIPCLI_SHARD" in environ:
            return cls.parse(environ["ZIPCLI_SHARD"]), "ZIPCLI_SHARD"
        if any(name.startswith(_SLURM) for name in environ):
            return cls._from_slurm(environ), f"{_SLURM}ID"
        for name, sizes in _INDICES.items():
            if name in environ:
                size = next((size for size in sizes if size in environ), sizes[-1])
                index, count = _number(environ, name), _number(environ, size)
                return cls._checked(index + 1, count, f"{name} is {index} and {size} is {count}"), name
        raise ConfigError(
            f"shard: auto finds none of ZIPCLI_SHARD, {_SLURM}ID, {', '.join(_INDICES)} in the environment; "
            "give --shard I/N, or set ZIPCLI_SHARD=I/N"
        )

    @classmethod
    def _from_slurm(cls, environ: Mapping[str, str]) -> "Shard":
        """A task of an array that may begin anywhere and have a step, but no gaps."""
        names = ["ID", "MIN", *(name for name in ("STEP", "MAX") if f"{_SLURM}{name}" in environ)]
        names += ["COUNT"] if "MAX" not in names or f"{_SLURM}COUNT" in environ else []
        of = {name: _number(environ, f"{_SLURM}{name}") for name in names}
        words = f"{_SLURM}* is {', '.join(f'{name} {value}' for name, value in of.items())}"
        place, step = of["ID"] - of["MIN"], of.get("STEP", 1)
        is_even = step > 0 and place % step == 0
        last = (of["MAX"] - of["MIN"]) // step + 1 if is_even and "MAX" in of else of.get("COUNT")
        check(
            is_even and of.get("COUNT", last) == last,
            f"shard: auto needs an array without gaps, such as 1-8 or 0-14:2, but {words}",
        )
        return cls._checked(place // step + 1, last or 0, words)

    @classmethod
    def _checked(cls, index: int, count: int, words: str) -> "Shard":
        check(1 <= index <= count <= 99_999, f"shard: auto makes no sense of the environment: {words}")
        return cls(index, count)

    def takes(self, path: str) -> bool:
        """Whether the image at a relative path belongs to this part.

        It follows from the name alone, so that a new image moves no other to another part.
        """
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
        return int.from_bytes(digest) % self.count == self.index - 1

    def __str__(self) -> str:
        """As it is parsed."""
        return f"{self.index}/{self.count}"


REMOTE_JOBS = 16
"""Threads that read and write by default where a folder is remote: an answer takes its time there."""

ON_COLLISION = ("error", "append")
"""What to do about inputs that would share an output: refuse them, or keep their whole names and append."""

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one image file may be and ask for before it is refused.

    Attributes:
        max_bytes: Size of the file; it is read into memory once.
        max_pixels: Width times height as the header declares it, checked before any pixel is
            decoded.
        max_side: Longest side. Memory is bounded by `max_pixels` alone, so this is as large as the
            most generous output format, and a strip of 20,000 x 10 pixels is an ordinary image.
        frames: one refuses animated and multi-page files; first takes their first frame.
        allow_truncated: Whether of a file that ends early what is there is taken.
        strict_ext: Whether a file is refused whose extension promises another format than its content.
        seconds: Processor time of one decode; three times as much may pass on the clock.
        memory: Bytes that one decode may take, the file and the pixels included.
    """

    max_bytes: int = 256 * MIB
    max_pixels: int = 50_000_000
    max_side: int = 65_535
    frames: str = "one"
    allow_truncated: bool = False
    strict_ext: bool = False
    seconds: int = 10
    memory: int = 1024 * MIB

    def __post_init__(self) -> None:
        """Check the values."""
        check(self.max_bytes >= 1, f"max bytes: {self.max_bytes} is not at least 1")
        check(self.max_pixels >= 1, f"max pixels: {self.max_pixels} is not at least 1")
        check_choice("frames", self.frames, FRAMES)
        check(1 <= self.seconds <= 86_400, f"decode seconds: {self.seconds} is not from 1 to 86,400")
        check(
            MIB <= self.memory <= 2**60, f"decode memory: {self.memory // MIB} MiB is not from 1 to 2^40 MiB"
        )


LIMITS = Limits()

FAIL_ON = {"any": 0.0, "all": math.nextafter(1, 0), "never": 1.0}
"""Shares of images that may fail, by name."""


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
        paranoid: Read every output of an earlier run, and purify again where it is not what was written.
        fail_on: When a run counts as failed: any image that fails, more than a share of them ("5%"), all,
            or never.
        jobs: Threads that read and write images while the network runs.
        shard: Which part of the folder to take, I/N; by a digest of each relative path.
        force_unlock: Take the folder from a run on another machine that did not let go of it.
        on_collision: What becomes of inputs that would share an output: error refuses the run, append
            gives `a.jpg.png` to those that would not keep their name.
        portable_names: Refuse names that some other system cannot hold, or cannot tell apart.
        detector: Which detector decides what needs purifying; none purifies everything.
        max_pixels: Most pixels of an image, width times height.
        max_bytes: Most bytes of a file.
        frames: one refuses animated and multi-page files; first takes their first frame.
        allow_truncated: Take what is there of a file that ends early.
        strict_ext: Refuse a file whose extension promises another format than its content.
        decode_seconds: Processor time in which a file must be decoded.
        decode_memory: MiB of memory that decoding a file may take.
    """

    include: tuple[str, ...] = IMAGE_PATTERNS
    exclude: tuple[str, ...] = ()
    format: str = "png"
    quality: int = 95
    metadata: str = "safe"
    overwrite: bool = False
    paranoid: bool = False
    fail_on: str = "any"
    jobs: int = 4
    shard: str = "1/1"
    force_unlock: bool = False
    on_collision: str = "error"
    portable_names: bool = False
    detector: str = "none"
    max_pixels: int = LIMITS.max_pixels
    max_bytes: int = LIMITS.max_bytes
    frames: str = LIMITS.frames
    allow_truncated: bool = LIMITS.allow_truncated
    strict_ext: bool = LIMITS.strict_ext
    decode_seconds: int = LIMITS.seconds
    decode_memory: int = LIMITS.memory // MIB

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("format", self.format, FORMATS)
        check_choice("metadata", self.metadata, METADATA)
        check_choice("on collision", self.on_collision, ON_COLLISION)
        check(1 <= self.quality <= 100, f"quality: {self.quality} is not between 1 and 100")
        check(1 <= self.jobs <= 256, f"jobs: {self.jobs} is not between 1 and 256")
        _ = self.tolerated, self.part, self.limits

    @cached_property  # asked for every image
    def part(self) -> Shard:
        """The part of the folder to take.

        Raises:
            ConfigError: `shard` is not understood.
        """
        return Shard.parse(self.shard)

    @cached_property  # asked for every image
    def limits(self) -> Limits:
        """What one file may be and ask for.

        Raises:
            ConfigError: A limit is wrong.
        """
        return Limits(
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
            frames=self.frames,
            allow_truncated=self.allow_truncated,
            strict_ext=self.strict_ext,
            seconds=self.decode_seconds,
            memory=self.decode_memory * MIB,
        )

    @property
    def tolerated(self) -> float:
        """Share of the images that may fail in a run that succeeds, 0 to 1.

        Raises:
            ConfigError: `fail_on` is not understood.
        """
        if self.fail_on in FAIL_ON:
            return FAIL_ON[self.fail_on]
        number = self.fail_on.removesuffix("%")
        digits = number.replace(".", "", 1)
        is_number = number != self.fail_on and digits.isascii() and digits.isdecimal()
        fits = is_number and float(number) <= 100
        check(fits, f"fail on: {shown(self.fail_on)} is not any, all, never or a share from 0% to 100%")
        return float(number) / 100

    def file_settings(self) -> dict[str, Any]:
        """What changes the bytes of an output besides its purified pixels."""
        keep: dict[str, Any] = {
            "format": self.format,
            "metadata": self.metadata,
            "detector": self.detector,
        }
        # Left out where nobody chose them, as in the records of earlier versions.
        chosen = {name: getattr(self, name) for name in ("frames", "allow_truncated")}
        keep |= {name: value for name, value in chosen.items() if value != getattr(FolderConfig, name)}
        return keep | ({"quality": self.quality} if self.format in ("same", "jpg") else {})


ENGINES = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class CrewConfig:
    """Which processes purify a folder together; by default it is the one that was started, alone.

    Attributes:
        engine: local for this machine, or ray for a cluster.
        devices: Names of devices of this machine with commas between, such as cuda:0,cuda:1, or all; None
            for no processes beside this one.
        workers: How many processes; None for one for each device.
    """

    engine: str = "local"
    devices: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("engine", self.engine, ENGINES)
        check(
            self.engine == "local" or self.devices is None,
            f"devices: those of engine {self.engine} are in its cluster; say cpu or cuda with --device",
        )
        check(self.workers is None or self.workers >= 1, f"workers: {self.workers} is not at least 1")
        check(self.workers is None or self.is_used, "workers: give --devices, or --engine ray")
        check(all(self.device_names), "devices: a name is missing; give a list such as cuda:0,cuda:1")

    @property
    def is_used(self) -> bool:
        """Whether there are workers at all."""
        return self.engine != "local" or self.devices is not None

    @property
    def device_names(self) -> tuple[str, ...]:
        """The devices one by one."""
        return () if self.devices is None else tuple(name.strip() for name in self.devices.split(","))


CLASSIFIER_PREFIXES = {"http://": "http", "https://": "http", "cmd:": "cmd", "cmd-paths:": "cmd-paths"}
"""How the word of --classifier begins, and the kind that it means; anything else is a model file."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What the user says of a classifier that is seen from outside; None is what nobody said.

    Attributes:
        classifier: A model file, http://..., https://..., cmd:PROGRAM ... or cmd-paths:PROGRAM ...
        input_size: Side in pixels that images are resized to (squashed to a square) before they are
            shown; None shows them as they are, or as a model file says.
        mean: Subtracted from the channels of a model file's input, which lie in [0, 1].
        std: What they are divided by then.
        classes: Names in the order of the class indices.
        batch_size: Images shown together.
        timeout: Seconds in which a service or program must have answered a batch; None for 60.
        retries: How often a service that fails is asked again.
        device: Where a model file runs, as torch names it: cpu, cuda, cuda:N or mps.
    """

    classifier: str
    input_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    batch_size: int = 32
    timeout: float | None = None
    retries: int = 3
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the values."""
        check_types(self)
        check(
            bool(self.classifier.strip()) and "\0" not in self.classifier,
            "classifier: name a model file, http://..., cmd:PROGRAM or cmd-paths:PROGRAM",
        )
        check(
            self.input_size is None or 1 <= self.input_size <= 65_500,
            f"input size: {self.input_size} is not between 1 and 65,500 pixels",
        )
        self._check_numbers()
        self._check_classes()
        check(1 <= self.batch_size <= 65_536, f"batch size: {self.batch_size} is not between 1 and 65,536")
        check(
            self.timeout is None or 0 < self.timeout <= 86_400,
            f"timeout: {self.timeout} is not above 0 and at most 86,400 seconds",
        )
        check(0 <= self.retries <= 100, f"retries: {self.retries} is not between 0 and 100")

    def _check_numbers(self) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None:
                check(len(numbers) == 3, f"{name}: {len(numbers)} numbers; give red, green and blue")
                check(
                    self.kind == "file",
                    f"{name}: it belongs to a model file; a service or program is shown plain pixels",
                )
        check(self.std is None or min(self.std) > 0, "std: every number must be above 0")
        check(self.timeout is None or self.kind != "file", "timeout: a model file has none; leave it out")

    def _check_classes(self) -> None:
        if self.classes is None:
            return
        check(len(self.classes) >= 2, "classes: at least two names are needed")
        check(all(name.strip() for name in self.classes), "classes: a name is empty")
        seen: set[str] = set()
        for name in self.classes:
            check(name not in seen, f"classes: {shown(name)} is there twice")
            seen.add(name)

    def settings(self) -> dict[str, Any]:
        """What decides the answers, less where and how many at a time, ready for JSON."""
        settings = asdict(self)
        for name in ("batch_size", "timeout", "retries", "device"):
            del settings[name]
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def kind(self) -> str:
        """What the word means: http, cmd, cmd-paths or file."""
        for prefix, kind in CLASSIFIER_PREFIXES.items():
            if self.classifier.lower().startswith(prefix):
                return kind
        return "file"


DETECTOR_SETTINGS: Mapping[str, frozenset[str]] = {
    "none": frozenset(),
    "scaleup": frozenset({"classifier", "clean", "threshold", "fpr"}),
    "strip": frozenset({"classifier", "clean", "threshold", "fpr", "superimposed", "seed"}),
    "frequency": frozenset({"clean", "threshold", "fpr"}),
    "residual": frozenset({"clean", "threshold", "fpr", "device"}),
}
"""What each detector reads. An option that it does not use is refused."""

DETECTOR_NEEDS: Mapping[str, tuple[str, ...]] = {
    "scaleup": ("classifier",),
    "strip": ("classifier", "clean"),
}


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """Settings of a detector.

    Attributes:
        detector: Name of the detector.
        classifier: The black box that scaleup and strip ask.
        clean: Folder of images that nobody tampered with, one folder for each class where the detector
            looks at classes; the threshold is found on them.
        threshold: Score from which an image is suspicious; None to find or know it.
        fpr: Share of clean images that may be called suspicious; None for that of the detector.
        superimposed: How many clean images strip lays over an image.
        seed: Of strip's choice of them.
        device: Where the prior of residual runs.
    """

    detector: str = "residual"
    classifier: ClassifierConfig | None = None
    clean: Path | None = None
    threshold: float | None = None
    fpr: float | None = None
    superimposed: int = 100
    seed: int = 1234
    device: str = "auto"

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("detector", self.detector, DETECTOR_SETTINGS)
        for name in DETECTOR_NEEDS.get(self.detector, ()):
            what = "WHAT" if name == "classifier" else "DIR"
            check(
                getattr(self, name) is not None,
                f"{name}: detector {self.detector} needs it; give --{name} {what}",
            )
        check(self.threshold is None or self.fpr is None, "threshold, fpr: give one of the two")
        check(
            self.threshold is None or math.isfinite(self.threshold),
            f"threshold: {self.threshold} is not a finite number",
        )
        check(self.fpr is None or 0 < self.fpr < 1, f"fpr: {self.fpr} is not between 0 and 1")
        check(
            self.fpr is None or self.clean is not None or self.detector != "scaleup",
            "fpr: detector scaleup finds such a threshold on clean images only; give --clean DIR",
        )
        check(1 <= self.superimposed <= 10_000, f"superimposed: {self.superimposed} is not from 1 to 10,000")
        check(0 <= self.seed < 2**63, f"seed: {self.seed} is not between 0 and 2^63 - 1")

    def settings(self) -> dict[str, Any]:
        """What decides the scores and the threshold and needs no look at a file, ready for JSON."""
        used = DETECTOR_SETTINGS[self.detector] - {"device", "clean", "classifier"}
        return {name: getattr(self, name) for name in sorted(used)}


def detect_config(detector: str, **given: Any) -> DetectConfig:
    """Build the settings from the given ones only, refusing what would be ignored.

    Args:
        detector: Name of the detector.
        **given: Fields of `DetectConfig` that the user named.

    Raises:
        ConfigError: The detector is unknown, lacks something or does not use a setting, or a value is
            wrong.
    """
    check_choice("detector", detector, DETECTOR_SETTINGS)
    given = {name: value for name, value in given.items() if value is not None}
    for name in given.keys() - DETECTOR_SETTINGS[detector]:
        raise ConfigError(f"{name}: detector {detector} does not use it; leave it out")
    return DetectConfig(detector=detector, **given)


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


SPLITS = ("test", "train")
LAYOUTS = ("plain", "zip", "target", "backdoorbench")
CHOICES = ("python", "numpy", "portable")
PATTERNS = ("normal", "white", "chessboard", "resized")
PHYSICAL_TESTS = ("none", "flip", "jitter", "affine", "all")
CLEAN_LABEL = frozenset({"sig", "lc"})
"""Attacks that alter images of the target class only and keep their label."""

_PATCH = frozenset({"pattern", "patch_size", "margin"})
ATTACK_SETTINGS: Mapping[str, frozenset[str]] = {
    "badnets": _PATCH,
    "blended": frozenset({"alpha", "picture"}),
    "physical": _PATCH | {"physical_test", "test_images"},
    "wanet": frozenset({"grid_k", "grid_s", "cover"}),
    "sig": frozenset({"delta", "freq"}),
    "bpp": frozenset({"levels", "dither", "cover"}),
    "lc": frozenset({"alpha", "eps"}),
    "refool": frozenset({"alpha", "reflections"}),
    "cba": frozenset({"sources", "cover"}),
    "lf": frozenset({"delta"}),
    "trojannn": frozenset({"picture"}),
    "inputaware": frozenset({"cover"}),
    "issba": frozenset({"bits"}),
    "dfst": frozenset({"alpha", "picture"}),
}
"""What each attack reads besides target, rate, seed and size. An option that it does not use is refused."""

_ZIP: Mapping[str, Any] = {"target": "1", "rate": 0.05, "seed": 1234, "choice": "python"}
_BOX: Mapping[str, Any] = {"target": "1", "rate": 0.05, "seed": 666, "choice": "python"}
_BENCH: Mapping[str, Any] = {"target": "0", "rate": 0.1, "seed": 0, "choice": "numpy"}
_BENCH_ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "badnets": {**_BENCH, "pattern": "resized", "margin": 0},
    "blended": {**_BENCH, "alpha": 0.2},
    "wanet": {**_BENCH, "grid_k": 4, "grid_s": 0.5, "cover": 0.2},
    "sig": {**_BENCH, "delta": 40.0, "freq": 6.0},
    "bpp": {**_BENCH, "levels": 8, "dither": False, "cover": 0.1},
    "lc": {**_BENCH, "alpha": 1.0, "eps": 8},
    "refool": {**_BENCH, "alpha": 0.4},
    "cba": {**_BENCH, "target": "2", "sources": ("0", "1"), "cover": 0.5},
    "lf": {**_BENCH, "delta": 51.0},
    "trojannn": _BENCH,
    "inputaware": {**_BENCH, "cover": 0.1},
    "issba": {**_BENCH, "bits": 20},
}
PROFILES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "zip-code": {
        "badnets": {**_ZIP, "pattern": "normal", "margin": 3},
        "blended": {**_ZIP, "alpha": 0.2},
        "physical": {**_ZIP, "pattern": "normal", "margin": 3, "physical_test": "none"},
        # No smooth warp: the released program draws a displacement for each pixel.
        "wanet": {**_ZIP, "target": "0", "rate": 0.1, "grid_k": None, "grid_s": 0.5, "cover": 0.0},
    },
    "zip-paper": {
        "badnets": {**_ZIP, "pattern": "normal", "patch_size": 2, "margin": 3},
        "blended": {**_ZIP, "alpha": 0.2},
        "physical": {**_ZIP, "pattern": "normal", "patch_size": 2, "margin": 3, "physical_test": "all"},
    },
    "backdoorbench": _BENCH_ATTACKS,
    "backdoorbox": {
        "badnets": {**_BOX, "pattern": "white", "patch_size": 3, "margin": 0},
        "physical": {**_BOX, "pattern": "white", "patch_size": 3, "margin": 0, "physical_test": "none"},
        "wanet": {
            **_BOX, "target": "0", "rate": 0.1, "seed": 555, "grid_k": 4, "grid_s": 0.5, "cover": 0.2
        },
        "lc": {**_BOX, "target": "2", "rate": 0.25, "alpha": 1.0, "eps": 8},
        "refool": {**_BOX, "alpha": 0.4},
    },
    "sampdetox": {
        **_BENCH_ATTACKS,
        "badnets": {**_BENCH, "pattern": "chessboard", "patch_size": 3, "margin": 0},
        "dfst": {**_BENCH, "rate": 0.05, "alpha": 0.6},
    },
}  # fmt: skip
"""Published settings: every default of an attack at once."""

NATURAL_PROFILES: Mapping[str, str] = {
    "badnets": "zip-code", "blended": "zip-code", "physical": "zip-code", "dfst": "sampdetox"
}  # fmt: skip
"""Where nobody names a profile: ZIP's for what its paper measures, backdoorbench for what that knows."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Settings of `zipcli attack`; those that the attack does not use are None.

    Attributes:
        attack: Name of the attack.
        profile: Published group of settings that gave every value the user did not.
        split: test poisons every image; train a share of them, and adds cover samples.
        target: Class that the attacker wants, a name or an index.
        rate: Share of the images that is poisoned: of all of them, or of the target class for
            backdoorbox lc.
        size: Side in pixels that images are resized to first, squared; None keeps theirs.
        seed: Of the trigger and of the choice of images.
        choice: How images are chosen: python and numpy as published, or portable, which does not
            depend on the other files.
        pattern: Of a patch: normal (seeded noise), white, chessboard, or resized (a white 3x3 corner
            of a 32-pixel picture, enlarged).
        patch_size: Side of the patch in pixels; None to choose by the image.
        margin: Pixels between the patch and the bottom and right edges.
        alpha: Weight of the trigger (blended, lc, dfst), or of the image (refool), 0 to 1.
        picture: Picture that is blended in, mask of trojannn or style of dfst; None for seeded noise, a
            square or a sunset.
        physical_test: Random transforms of the poisoned test images.
        test_images: How many the test split has: the program of ZIP shuffles them between two shuffles of
            the training images, so its choice depends on their number.
        grid_k: Control points of the warp a side; None for one at each pixel.
        grid_s: Strength of the warp.
        cover: Share of cover samples, whose labels are right, in a training split.
        delta: Amplitude in levels of 255.
        freq: Cycles across the image.
        levels: Levels that bpp leaves of 256.
        dither: Whether bpp dithers.
        eps: Largest change of a training image by lc, in levels of 255.
        reflections: Folder of photographs to reflect.
        sources: The two classes that cba joins.
        bits: Length of the secret of issba.
    """

    attack: str
    profile: str
    target: str
    rate: float
    seed: int
    choice: str
    split: str = "test"
    size: int | None = None
    pattern: str | None = None
    patch_size: int | None = None
    margin: int | None = None
    alpha: float | None = None
    picture: str | None = None
    physical_test: str | None = None
    test_images: int | None = None
    grid_k: int | None = None
    grid_s: float | None = None
    cover: float | None = None
    delta: float | None = None
    freq: float | None = None
    levels: int | None = None
    dither: bool | None = None
    eps: int | None = None
    reflections: str | None = None
    sources: tuple[str, str] | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("attack", self.attack, ATTACK_SETTINGS)
        check_choice("split", self.split, SPLITS)
        check_choice("choice", self.choice, CHOICES)
        check(0 <= self.rate <= 1, f"rate: {self.rate} is not between 0 and 1")
        check(self.cover is None or 0 <= self.cover <= 1, f"cover: {self.cover} is not between 0 and 1")
        check(0 <= self.seed < 2**32, f"seed: {self.seed} is not between 0 and 2^32 - 1")
        check(self.size is None or 4 <= self.size <= 4096, f"size: {self.size} is not from 4 to 4096")
        check(self.alpha is None or 0 <= self.alpha <= 1, f"alpha: {self.alpha} is not between 0 and 1")
        if self.pattern is not None:
            check_choice("pattern", self.pattern, PATTERNS)
        if self.physical_test is not None:
            check_choice("physical test", self.physical_test, PHYSICAL_TESTS)
        for name, lowest, highest in (
            ("patch_size", 1, 4096), ("margin", 0, 4096), ("grid_k", 2, 4096), ("grid_s", 0, 100),
            ("delta", 0, 255), ("freq", 0, 4096), ("levels", 2, 256), ("eps", 0, 255), ("bits", 1, 256),
        ):  # fmt: skip
            value = getattr(self, name)
            check(
                value is None or lowest <= value <= highest,
                f"{name.replace('_', ' ')}: {value} is not from {lowest} to {highest}",
            )

    def settings(self) -> dict[str, Any]:
        """What decides the trigger and the choice of images, ready for JSON."""
        used = ATTACK_SETTINGS[self.attack]
        common = {"attack", "profile", "target", "rate", "seed", "choice", "split", "size"}
        return {name: value for name, value in asdict(self).items() if name in used | common}


def attack_config(attack: str, profile: str | None = None, **given: Any) -> AttackConfig:
    """Build the settings of an attack from its profile and the given ones, refusing what it ignores.

    Args:
        attack: Name of the attack.
        profile: Name of a profile; None for the natural one.
        **given: Fields of `AttackConfig` that the user named.

    Raises:
        ConfigError: A name is unknown, the profile does not know the attack, the attack does not use
            a setting, or a value is wrong.
    """
    check_choice("attack", attack, ATTACK_SETTINGS)
    profile = profile or NATURAL_PROFILES.get(attack, "backdoorbench")
    check_choice("profile", profile, PROFILES)
    known = [name for name, attacks in PROFILES.items() if attack in attacks]
    check(
        profile in known, f"profile {profile}: it does not know the attack {attack}; use {' or '.join(known)}"
    )
    given = {name: value for name, value in given.items() if value is not None}
    of_all = {"target", "rate", "seed", "choice", "split", "size"}
    for name in given.keys() - of_all - ATTACK_SETTINGS[attack]:
        raise ConfigError(f"{name.replace('_', ' ')}: attack {attack} does not use it; leave it out")
    if given.get("split", "test") == "test" and "cover" in given:
        raise ConfigError("cover: a test split has no cover samples; leave it out, or use --split train")
    settings = {**PROFILES[profile][attack], **given}
    if settings.get("split", "test") == "test" and "rate" not in given:
        settings["rate"] = 1.0  # of a test set every image is poisoned; who counts is decided later
    return AttackConfig(attack=attack, profile=profile, **settings)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of `zipcli report`.

    Attributes:
        input: Folder of the images that were purified; None for the one that the run recorded.
        evaluation: Files that `zipcli evaluate` wrote.
        limit: Most images on the page, not counting failures.
        title: Heading of the page; None for the name of the folder.
    """

    input: Path | None = None
    evaluation: tuple[Path, ...] = ()
    limit: int = 5000
    title: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check(self.limit >= 1, f"limit: {self.limit} is not at least 1")
