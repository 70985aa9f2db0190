"""SCALE-UP: a poisoned image keeps its label when its pixels are multiplied, a clean one seldom does.

Source: Guo et al., "SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing
Scaled Prediction Consistency", ICLR 2023.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zipcli.config import check

FACTORS = (3, 5, 7, 9, 11)
"""The set S of the paper. The authors' program also has 1, which always agrees, and the even ones."""

THRESHOLD = 0.5
"""SPC from which an image is suspicious; of five factors none gives 0.5, so > and >= agree."""


def scaled_prediction_consistency(
    x: Tensor, predict: Callable[[Tensor], Tensor], factors: Sequence[float] = FACTORS
) -> Tensor:
    """The share of brightened copies that keep the label of the image (SPC, without clean data).

    Args:
        x: Images, (N, C, H, W), in [0, 1], unlike elsewhere in the package: black has to be 0 for
            a product to be brightness, and so they must not be normalised for the network yet.
        predict: From images as x to their labels, (N,); labels are enough. It is called once for x
            and once for each factor, and normalises for itself.
        factors: What to multiply by.

    Returns:
        SPC, float32, (N,), in [0, 1], a multiple of 1 / len(factors); higher is more suspicious.
        Bright benign images also keep their label.

    Raises:
        ConfigError: There are no factors.

    Source: eq. 2. The authors' program adds uniform noise of up to 0.02 to its inputs; the paper and
    we do not.
    """
    check(len(factors) > 0, "factors: at least one is needed")
    assert bool(((x >= 0) & (x <= 1)).all()), "images must be in [0, 1]"
    label = predict(x)
    assert label.shape == (len(x),), "labels wanted, not probabilities"
    kept = [predict((x * factor).clamp(0, 1)) == label for factor in factors]
    return torch.stack(kept).float().mean(dim=0)
