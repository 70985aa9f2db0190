"""What the rooms agree on: the shape of a model, an operator, a method and a detector.

Arguments are positional-only, so any function of the right shape fits. Images are float32
(N, C, H, W) in [-1, 1] in all that computes with a prior; classifiers and detectors, to which pictures
of any sizes come, take uint8 (H, W, 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
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

    def removed_rms(self, size: tuple[int, int], /) -> float:
        """Root mean square, over pixels, of x - A+ A x for clean images of `size` in [-1, 1].

        About 0.5 is the whole image. It decides with how much noise a short chain begins.
        """
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


class MaskedAutoencoder(Protocol):
    """A network that draws what was removed of an image."""

    @property
    def side(self) -> int:
        """Side of its images in pixels."""
        ...

    @property
    def grid(self) -> int:
        """Tokens along a side; each can be removed."""
        ...

    def __call__(self, x: "Tensor", removed: "Tensor", /) -> "Tensor":
        """Predict whole images from parts of them.

        Args:
            x: Images, (N, 3, side, side), in [-1, 1].
            removed: Whether each token is hidden from the network, bool, (N, grid, grid).

        Returns:
            Images like x, not clipped.
        """
        ...


class Ask(Protocol):
    """The suspect classifier, as a method may ask it."""

    def __call__(self, images: "Tensor", /) -> "Tensor":
        """Ask for labels.

        Args:
            images: (N, C, H, W) in [-1, 1]; they are clipped and rounded to the 256 levels of a file.

        Returns:
            Class indices, int64, (N,), on the CPU.

        Raises:
            ClassifierError: It crashed, did not answer in time or answered nonsense.
        """
        ...


class AskingMethod(Protocol):
    """A `Method` that asks the suspect classifier, by its name in `config.METHOD_ASKS`."""

    def __call__(
        self,
        x: "Tensor",
        model: Any,
        operators: "tuple[LinearOperator, ...]",
        config: "MethodConfig",
        /,
        *,
        noise: Noise,
        ask: Ask,
    ) -> "Tensor":
        """Purify (N, C, H, W) in [-1, 1] into the same shape, not clipped.

        `model` is a `MaskedAutoencoder` for a method in `config.NEEDS_AUTOENCODER`, else an `EpsModel`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """What a detector says of one image.

    Attributes:
        score: Higher is more suspicious; what it counts is the detector's own.
        map: How suspicious each pixel is, float32 (H, W); None from a detector that sees the image as
            a whole.
    """

    score: float
    map: "NDArray[np.float32] | None" = None


class Detector(Protocol):
    """Scores how suspicious images are; what scores below `threshold` passes unpurified."""

    @property
    def threshold(self) -> float:
        """Scores below it pass unpurified."""
        ...

    def __call__(self, images: "Sequence[NDArray[np.uint8]]", /) -> list[Suspicion]:
        """Score images, each uint8 (H, W, 3) sRGB; they may differ in size.

        No image depends on the others.

        Raises:
            ClassifierError: The classifier that the detector asks failed.
            NonFiniteError: Some images have no score; it names them.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a classifier says of N images.

    Attributes:
        labels: Class indices, int64, (N,), from 0.
        probabilities: float32, (N, K), each row adding up to 1; None from a classifier that gives
            labels only, which is enough for everything but STRIP.
    """

    labels: "NDArray[np.int64]"
    probabilities: "NDArray[np.float32] | None" = None


class Classifier(Protocol):
    """A black box seen from outside: images in, labels out."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their indices; None where nobody told them."""
        ...

    def __call__(self, images: "Sequence[NDArray[np.uint8]]", /) -> Prediction:
        """Classify images, each uint8 (H, W, 3) sRGB; they may differ in size.

        Raises:
            ClassifierError: The classifier crashed, did not answer in time or answered nonsense.
        """
        ...
