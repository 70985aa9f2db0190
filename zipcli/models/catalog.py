"""The models that we know by name, and what a model can be called. No torch here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zipcli.config import NoiseSchedule, check_choice
from zipcli.errors import ModelError, shown
from zipcli.models.foreign import guided_config
from zipcli.models.unet_config import UNetConfig
from zipcli.registry import unknown_name

LAYOUTS = ("guided", "diffusers")
QKV_ORDERS = ("new", "legacy")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network and its conventions, for a file of weights that does not say them itself.

    Attributes:
        network: The network.
        schedule: The noise it was trained with.
        layout: What the file calls its tensors.
        qkv_order: Rows of an attention's q, k and v in one matrix: new is [3, heads, d], legacy
            [heads, 3, d]. No shape tells them apart.
    """

    network: UNetConfig
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    layout: str = "guided"
    qkv_order: str = "legacy"

    def __post_init__(self) -> None:
        """Check the names."""
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("qkv order", self.qkv_order, QKV_ORDERS)


@dataclass(frozen=True, kw_only=True)
class HubName:
    """Where a model is on the Hub.

    Attributes:
        repository: owner/name.
        revision: A commit, tag or branch.
        file: Its weights, or empty to choose from what is there.
    """

    repository: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        """Write it as `--model` takes it."""
        # Without a revision, a repository of the catalog is the pinned model.
        is_known = any(place.repository == self.repository for m in CATALOG.values() for place in m.places)
        revision = f"@{self.revision}" if self.revision != "main" or is_known else ""
        return f"{self.repository}{revision}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model in the catalog.

    Attributes:
        places: Where it is on the Hub, with a pinned revision, best first; the digest makes all of
            them the same. Empty for what is in this package.
        file: A path inside this package, where it is there.
        sha256: Digest of the weights; other bytes are refused.
        size: Their size in bytes.
        licence: The terms of use.
        data: What it was trained on.
        architecture: Network and conventions, for a file that does not say them.
    """

    places: tuple[HubName, ...] = ()
    file: str = ""
    sha256: str
    size: int
    licence: str
    data: str
    architecture: Architecture | None = None


def _ddpm(side: int, widths: tuple[int, ...], attention: tuple[bool, ...]) -> Architecture:
    """A network of DDPM's authors, as Google converted them to diffusers."""
    network = UNetConfig(
        widths=widths,
        attention_down=attention,
        attention_up=attention,
        time_features=widths[0],
        time_width=4 * widths[0],
        sines_first=True,
        frequency_shift=1,
        asymmetric_padding=True,
        norm_eps=1e-6,
        side=side,
    )
    return Architecture(network=network, layout="diffusers", qkv_order="new")


def _improved(side: int, multipliers: tuple[float, ...]) -> Architecture:
    """An unconditional network of OpenAI's improved-diffusion on a cosine schedule."""
    network = guided_config(
        side=side,
        base=128,
        multipliers=multipliers,
        blocks=3,
        attention_sides=(16, 8),
        heads=4,
        residual=False,
        timestep_scale=0.25,
    )
    return Architecture(network=network, schedule=NoiseSchedule(kind="cosine", timesteps=4000))


# Networks by the names of `zipcli models convert --like`. A file of weights shows half of their settings at
# most: these are of the READMEs of OpenAI's programs, and of Google's config.json.
ARCHITECTURES: Mapping[str, Architecture] = {
    # 256x256_diffusion_uncond.pt and the three of LSUN (bedroom, cat, horse)
    "openai-256": Architecture(
        network=guided_config(side=256, base=256, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, head_channels=64),
    ),
    # 512x512_diffusion_uncond_finetune_008100.pt
    "openai-512": Architecture(
        network=guided_config(
            side=512, base=256, multipliers=(0.5, 1, 1, 2, 2, 4, 4), blocks=2, head_channels=64
        ),
    ),
    # cifar10_uncond_50M_500K.pt
    "openai-cifar10": _improved(32, (1, 2, 2, 2)),
    # imagenet64_uncond_100M_1500K.pt
    "openai-64": _improved(64, (1, 2, 3, 4)),
    # lsun_uncond_100M_*.pt
    "openai-lsun": Architecture(
        network=guided_config(
            side=256,
            base=128,
            multipliers=(1, 1, 2, 2, 4, 4),
            blocks=2,
            attention_sides=(16,),
            heads=1,
            scale_shift=False,
            residual=False,
        ),
    ),
    # google/ddpm-cifar10-32
    "ddpm-32": _ddpm(32, (128, 256, 256, 256), attention=(False, True, False, False)),
    # google/ddpm-celebahq-256 and the others of 256 pixels
    "ddpm-256": _ddpm(
        256, (128, 128, 256, 256, 512, 512), attention=(False, False, False, False, True, False)
    ),
}

_OPENAI_LICENCE = "MIT; its model card: research only, not for commercial deployment"


def _google(name: str, revision: str, suffix: str, sha256: str, size: int, data: str) -> KnownModel:
    """A model of DDPM's authors; `ema` in a name marks averaged weights, which draw better pictures."""
    place = HubName(repository=f"google/{name}", revision=revision, file=f"diffusion_pytorch_model.{suffix}")
    architecture = ARCHITECTURES["ddpm-32" if name.endswith("-32") else "ddpm-256"]
    return KnownModel(
        places=(place,),
        sha256=sha256,
        size=size,
        licence="Apache-2.0",
        data=data,
        architecture=architecture,
    )


CATALOG: Mapping[str, KnownModel] = {
    "builtin": KnownModel(
        file="builtin/prior.safetensors",
        sha256="6660df2c585b05629c6bcdc648cab9adb3805498edcc95f7c368fea12600e269",
        size=9_887_126,
        licence="Apache-2.0",
        data="CIFAR-10 and 700 photographs",
    ),
    "builtin-blind": KnownModel(
        file="builtin/blind.safetensors",
        sha256="4e747fdd9f51dcc07eb99fe84322be4aa916fb2b08d9bc19ad5ee4f718760768",
        size=3_295_650,
        licence="Apache-2.0",
        data="CIFAR-10 and 700 photographs, with things in them that do not belong there",
    ),
    "openai-256": KnownModel(
        places=(
            HubName(
                repository="sj98/DiffuseIT",
                revision="eb6c9ffac727defc5e1b119a809a57f885b359d0",
                file="256x256_diffusion_uncond.pt",
            ),
            HubName(
                repository="deepinv/diffunet",
                revision="6b0a2cf45decab1f022d22eefe3787d9d515f32b",
                file="diffusion_openai.pt",
            ),
            HubName(
                repository="devilops/openai-guided-diffusion",
                revision="b98c608a1d3c02071d6137608d3e29af9dd6fece",
                file="diffusion_ckpts/256x256_diffusion_uncond.pt",
            ),
        ),
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        size=2_211_383_297,
        licence=_OPENAI_LICENCE,
        data="ImageNet (ILSVRC-2012)",
        architecture=ARCHITECTURES["openai-256"],
    ),
    "openai-512": KnownModel(
        places=(
            HubName(
                repository="lowlevelware/512x512_diffusion_unconditional_ImageNet",
                revision="fcc7c6effdb89d7e35830f48c142bb5896ab3449",
                file="512x512_diffusion_uncond_finetune_008100.pt",
            ),
        ),
        sha256="9c111ab89e214862b76e1fa6a1b3f1d329b1a88281885943d2cdbe357ad57648",
        size=2_232_025_447,
        licence=_OPENAI_LICENCE,
        data="ImageNet (ILSVRC-2012), fine-tuned to need no labels",
        architecture=ARCHITECTURES["openai-512"],
    ),
    "ddpm-cifar10-32": _google(
        "ddpm-cifar10-32",
        "267b167dc01f0e4e61923ea244e8b988f84deb80",
        "safetensors",
        "1558dbe3fb093b0857d473e376b711eeda1b186c557be5e85b3a56300cd49f0f",
        143_020_084,
        "CIFAR-10",
    ),
    "ddpm-celebahq-256": _google(
        "ddpm-celebahq-256",
        "cd5c944777ea2668051904ead6cc120739b86c4d",
        "bin",
        "efff89712093ad060ce99d9b461bbe542b49d8dd4ce30f23fe5761dca292361d",
        454_853_117,
        "CelebA-HQ (faces)",
    ),
    "ddpm-church-256": _google(
        "ddpm-church-256",
        "5a1118b5a35e744d59a4215a8c72a4d7619b9e04",
        "bin",
        "3111c176c9848d8d9b91d6fb8e2aa2945c220845aced8f47efb44f9deadd412c",
        454_853_117,
        "LSUN church",
    ),
    "ddpm-bedroom-256": _google(
        "ddpm-bedroom-256",
        "d6ccd889ac8a4c072ae35e63fed664718cdaa060",
        "bin",
        "d0c4c246baad16eb12629b6a4d458fecf210483b76796e6fa9cd1756b217966a",
        454_853_117,
        "LSUN bedroom",
    ),
    "ddpm-cat-256": _google(
        "ddpm-cat-256",
        "82ca0d5db4a5ec6ff0e9be8d86852490bc18a3d9",
        "safetensors",
        "0806be43de621861d03d96670492ea2e65943c96155b5d1c81bcc813668946a9",
        454_741_132,
        "LSUN cat",
    ),
    "ddpm-ema-church-256": _google(
        "ddpm-ema-church-256",
        "adb3310e276abf2c09ef3e2bb8b1946b47b1468d",
        "bin",
        "0825f31de9d51f6b94f8080233432e77ee5aa9a185b7172a1fd9863916444847",
        454_853_117,
        "LSUN church",
    ),
    "ddpm-ema-bedroom-256": _google(
        "ddpm-ema-bedroom-256",
        "df329a8d5319a212e813ba83427e4af56760c35f",
        "bin",
        "73d137f32e27a033b1fbf2684e007aceef4bf458d897354f325349985662fd78",
        454_853_117,
        "LSUN bedroom",
    ),
    "ddpm-ema-cat-256": _google(
        "ddpm-ema-cat-256",
        "65067ecb2808d298f0eb3703587950ea7a797dc0",
        "bin",
        "842b428ec548f693ffb59ed7c352706a988c6d2a0e3872ed342a581ce1212fe0",
        454_853_117,
        "LSUN cat",
    ),
}

MODEL_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl")

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_NAME = re.compile(rf"({_WORD}/{_WORD})(?:@([A-Za-z0-9][A-Za-z0-9._-]{{0,127}}))?(?:/(.+))?")


def parse_name(name: str) -> str | HubName | Path:
    """Tell what a model name means.

    Args:
        name: A name of the catalog, `owner/name[@revision][/file]` on the Hub, or a path.

    Returns:
        The name of the catalog, the place on the Hub, or the path. A repository of the catalog
        without a revision is the catalog's own model.

    Raises:
        ModelError: It is none of them.
    """
    if name in CATALOG:
        return name
    if not name.strip():
        raise ModelError("model: the name is empty")
    try:
        path = Path(name).expanduser()
        if name.startswith((".", "/", "~")) or path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as e:  # a name too long, a home folder of nobody
        raise ModelError(f"model {shown(name[:100])}: cannot look there: {str(e)[:100]}") from e
    match = _HUB_NAME.fullmatch(name)
    if match is None or (path.suffix in MODEL_SUFFIXES and len(path.parts) <= 2):
        if path.suffix in MODEL_SUFFIXES:
            return path
        raise ModelError(
            unknown_name("model", name[:100], CATALOG)
            + " Or give owner/name on the Hugging Face Hub, a .safetensors file, or a folder."
        )
    repository, revision, file = match.groups()
    if "--" in repository or ".." in repository or repository.endswith((".", "-", ".git", ".ipynb")):
        raise ModelError(f"model {name[:100]}: {repository} is no name that a repository of the Hub can have")
    if file and (".." in Path(file).parts or file.startswith("/") or "\\" in file):
        raise ModelError(f"model {shown(name[:100])}: {shown(file)} is not a file inside a repository")
    if revision is None:
        for known, model in CATALOG.items():
            if any(place.repository == repository and file in (None, place.file) for place in model.places):
                return known
    return HubName(repository=repository, revision=revision or "main", file=file or "")


def known_architecture(name: str) -> Architecture | None:
    """What the catalog says of the network that a model name means, before anything is fetched."""
    meaning = parse_name(name)
    return CATALOG[meaning].architecture if isinstance(meaning, str) else None
