"""Shape and conventions of a published diffusion U-Net. No torch here."""

from dataclasses import dataclass

from zipcli.config import check, check_choice, check_types

RESAMPLING = ("conv", "residual")
ACTIVATIONS = ("silu", "mish", "gelu", "relu")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Everything that decides what a `UNet` computes from its weights.

    The defaults are what most published networks share. Nothing on the list from `head_channels` on
    shows in the shapes of the weights: a wrong value there loads, and silently ruins the output.

    Attributes:
        in_channels: Colour channels in.
        out_channels: Channels out: as many as in, or twice that where a variance was learned too.
        widths: Feature channels of each level, finest first; every level halves the side.
        blocks: Residual blocks of a level on the way down; one more on the way up.
        attention_down: Whether a level has attention on the way down, finest first.
        attention_up: The same on the way up, finest first.
        attention_middle: Whether the coarsest level has attention between the two ways.
        attention_middle_norm: Whether that attention normalises its input.
        time_features: Sines and cosines that describe a timestep.
        time_width: Width of the embedding made from them.
        scale_shift: The embedding scales and shifts features (else it is added to them).
        resample: Levels are joined by residual blocks that pool, or by strided convolutions.
        head_channels: Channels of an attention head, or None.
        heads: Number of attention heads, or None; with neither there is one head.
        sines_first: Sines before cosines.
        frequency_shift: Frequency k is 10000^(-k / (features / 2 - shift)).
        asymmetric_padding: Strided convolutions pad on the right and below only.
        norm_groups: Groups of a normalisation.
        norm_eps: Its epsilon.
        middle_groups: Groups of the normalisation of the middle attention.
        middle_scale: The sums in the middle are divided by it.
        activation: Nonlinearity of the residual blocks.
        center_input: The network takes images in [0, 1] and centres them itself.
        side: Side of the images it was trained on, in pixels; None when not known.
        timestep_scale: Timesteps are multiplied by it before they are embedded.
        prediction: What it predicts.
    """

    in_channels: int = 3
    out_channels: int = 3
    widths: tuple[int, ...]
    blocks: int = 2
    attention_down: tuple[bool, ...]
    attention_up: tuple[bool, ...]
    attention_middle: bool = True
    attention_middle_norm: bool = True
    time_features: int
    time_width: int
    scale_shift: bool = False
    resample: str = "conv"
    head_channels: int | None = None
    heads: int | None = None
    sines_first: bool = False
    frequency_shift: float = 0.0
    asymmetric_padding: bool = False
    norm_groups: int = 32
    norm_eps: float = 1e-5
    middle_groups: int = 32
    middle_scale: float = 1.0
    activation: str = "silu"
    center_input: bool = False
    side: int | None = None
    timestep_scale: float = 1.0
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        """Refuse what cannot be built, and sizes that no honest file has, before anything is built."""
        check_types(self)
        levels = len(self.widths)
        check(1 <= levels <= 8, f"network: {levels} levels; from 1 to 8 are possible")
        check(
            len(self.attention_down) == len(self.attention_up) == levels,
            "network: every level needs to say whether it has attention",
        )
        check(all(1 <= w <= 4096 for w in self.widths), f"network: widths {self.widths} beyond 1 to 4096")
        check(1 <= self.blocks <= 8, f"network: {self.blocks} blocks per level; from 1 to 8 are possible")
        check(1 <= self.in_channels <= 8, f"network: {self.in_channels} channels in")
        check(
            self.out_channels in (self.in_channels, 2 * self.in_channels),
            f"network: {self.out_channels} channels out of {self.in_channels}: not eps, nor eps and variance",
        )
        check(self.time_features in range(4, 4097, 2), "network: time features must be even, from 4 to 4096")
        check(1 <= self.time_width <= 16384, f"network: time width {self.time_width} beyond 1 to 16384")
        check(
            self.frequency_shift < self.time_features // 2, "network: frequency shift leaves no frequencies"
        )
        check_choice("resampling", self.resample, RESAMPLING)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("prediction", self.prediction, PREDICTIONS)
        check(self.heads is None or self.head_channels is None, "network: give heads or head channels")
        check(0 < self.norm_eps < 1, f"network: norm epsilon {self.norm_eps} is not between 0 and 1")
        check(self.middle_scale > 0, "network: middle scale must be positive")
        check(self.timestep_scale > 0, "network: timestep scale must be positive")
        check(self.side is None or 1 <= self.side <= 4096, f"network: side {self.side} beyond 1 to 4096")
        check(
            self.side is None or self.side % self.multiple == 0,
            f"network: side {self.side} cannot be halved {levels - 1} times",
        )
        self._check_groups_and_heads()

    def _check_groups_and_heads(self) -> None:
        groups = max(self.norm_groups, 0)
        check(groups >= 1, "network: at least one group in a normalisation")
        for width in self.widths:
            check(width % groups == 0, f"network: width {width} cannot be split into {groups} groups")
        for width in self.attention_widths:
            heads = self.heads_of(width)
            check(
                heads >= 1 and width % heads == 0,
                f"network: width {width} cannot be split into attention heads",
            )
        last = self.widths[-1]
        check(
            not (self.attention_middle and self.attention_middle_norm)
            or (self.middle_groups >= 1 and last % self.middle_groups == 0),
            f"network: width {last} cannot be split into {self.middle_groups} groups",
        )

    @property
    def attention_widths(self) -> set[int]:
        """Widths of the levels that have attention."""
        used = zip(self.widths, self.attention_down, self.attention_up, strict=True)
        middle = {self.widths[-1]} if self.attention_middle else set()
        return {width for width, down, up in used if down or up} | middle

    @property
    def multiple(self) -> int:
        """Sides must be a multiple of this, in pixels."""
        return int(2 ** (len(self.widths) - 1))

    def heads_of(self, width: int) -> int:
        """Attention heads of a level of `width` channels; 0 where they do not come out even."""
        if self.head_channels is not None:
            even = self.head_channels >= 1 and width % self.head_channels == 0
            return width // self.head_channels if even else 0
        return self.heads or 1
