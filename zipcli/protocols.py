"""What the rooms agree on: the shape of a model, an operator, a method and a detector.

Arguments are positional-only, so any function of the right shape fits. Images are float32
(N, C, H, W) in [-1, 1] everywhere.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from zipcli.config import MethodConfig, NoiseSchedule


class EpsModel(Protocol):
    """A pre-trained noise predictor."""

    @property
    def schedule(self) -> "NoiseSchedule":
        """The noise schedule it was trained with."""
        ...

    @property
    def channels(self) -> int:
        """Colour channels C of its images."""
        ...

    @property
    def native_side(self) -> int | None:
        """The one side, in pixels, that it takes (square); None for any side."""
        ...

    @property
    def minimum_side(self) -> int:
        """The smallest side that it takes, in pixels."""
        ...

    def __call__(self, x_t: "Tensor", t: "Tensor", /) -> "Tensor":
        """Predict the noise.

        Args:
            x_t: States, (N, C, H, W), float32.
            t: 0-based timestep of each state on the schedule, (N,); fractions are allowed.

        Returns:
            (N, C, H, W), or (N, 2C, H, W) where the model also learned a variance: the first C
            channels are eps.
        """
        ...


class LinearOperator(Protocol):
    """A linear transform A with a right inverse A+ (`A A+ A = A`)."""

    def forward(self, x: "Tensor", /) -> "Tensor":
        """A x, for x (N, C, H, W) of any H and W."""
        ...

    def pinv(self, y: "Tensor", size: tuple[int, int], /) -> "Tensor":
        """A+ y, (N, C, H, W), where `size` is (H, W)."""
        ...


class Noise(Protocol):
    """A source of N(0, I) that belongs to the images of one batch."""

    def __call__(self, x_t: "Tensor", /) -> "Tensor":
        """Draw fresh noise with the shape, device and dtype of `x_t`."""
        ...


class Method(Protocol):
    """A purification method: suspicious images in, clean images out."""

    def __call__(
        self,
        x: "Tensor",
        eps_model: EpsModel | None,
        operators: "tuple[LinearOperator, ...]",
        config: "MethodConfig",
        /,
        *,
        noise: Noise,
    ) -> "Tensor":
        """Purify (N, C, H, W) in [-1, 1] into the same shape, not clipped.

        `eps_model` is None for a method that says `needs_model = False`.
        """
        ...


class Detector(Protocol):
    """Scores how suspicious images are; what scores below `threshold` passes unpurified."""

    @property
    def threshold(self) -> float:
        """Scores below it pass unpurified."""
        ...

    def __call__(self, x: "Tensor", /) -> "Tensor":
        """Score (N, C, H, W) in [-1, 1] as (N,); higher is more suspicious."""
        ...
