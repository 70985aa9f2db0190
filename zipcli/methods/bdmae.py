"""BDMAE: find the trigger with a masked autoencoder and the labels of the classifier, and restore it.

Two maps of tokens say how suspicious each is: where random restorations do not look like the image (S_i),
and where they change the label (S_l). Both are refined by asking whether the image without some of the
highest tokens still has its label; their mean decides what is restored.

Source: Sun et al., "Mask and Restore: Blind Backdoor Defense at Test Time with Masked Autoencoder"
(arXiv 2303.15564), by its program (tsun/BDMAE, defense/BDMAE.py), whose constants these are. Everything
here is counted and drawn for each image; the program draws one set of masks, and takes the mean of K and of
the threshold, over a batch. Its mask of refinement has one token at least, and one outside the highest K is
moved twice; here an empty mask does nothing, and each token moves once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.methods.ssim_window import RADIUS, windowed_mean
from zipcli.protocols import Ask, LinearOperator, MaskedAutoencoder, Noise

ROUNDS = 5
MASKS_PER_ROUND = 5
MASK_RATIO = 0.75
REFINEMENTS = 10
SUSPICIOUS = 0.2
"""Score from which a token counts for K of the image map."""

TOPOLOGY = 0.5
"""What a neighbour of a chosen token is preferred by."""

STEP = 0.05
THRESHOLDS = (0.6, 0.55, 0.5, 0.45, 0.4)
LARGEST_SHARE = 0.25
SHRINK, SHRINKS = 0.99, 200


def purify(
    x: Tensor,
    model: MaskedAutoencoder,
    operators: tuple[LinearOperator, ...],
    config: MethodConfig,
    /,
    *,
    noise: Noise,
    ask: Ask,
) -> Tensor:
    """Purify a batch of images.

    Args:
        x: Suspicious images, (N, 3, H, W), in [-1, 1].
        model: The masked autoencoder; it is called for 50 masks of each image.
        operators: Not used.
        config: Not used.
        noise: A few draws, always as many.
        ask: The suspect classifier; it is shown 46 images for each. (The program asks for the labels of
            the last six as well, and uses only that of the result.)

    Returns:
        Images of the same shape, not clipped. Where nothing is suspicious they are x itself.
    """
    defence = _Defence(x, model, noise, ask)
    of_image, of_labels = defence.random_masking()
    of_image = defence.refine(of_image, (of_image >= SUSPICIOUS).sum(dim=1))
    of_labels = defence.refine(of_labels, (of_labels.mean(dim=1) * defence.tokens).long())
    return defence.restore_above((of_image + of_labels) / 2)


class _Defence:
    """A batch on its way. Scores and masks, (N, tokens), are float64 and bool, on the CPU."""

    def __init__(self, x: Tensor, model: MaskedAutoencoder, noise: Noise, ask: Ask) -> None:
        self.x, self.model, self.noise, self.ask = x, model, noise, ask
        self.tokens = model.grid**2
        self.size = (x.shape[-2], x.shape[-1])
        self.seen = F.interpolate(x, (model.side, model.side), mode="bilinear", align_corners=False)
        self.labels = ask(x)

    def restore(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The images with what the masks, (N, tokens), remove restored, and the masks as pixels."""
        grid = self.model.grid
        removed = masks.view(-1, grid, grid).to(self.x.device)
        drawn = F.interpolate(self.model(self.seen, removed), self.size, mode="nearest")
        # By way of the model's own size, as the program does: its pixels and those of the mask agree.
        pixels = removed[:, None].to(self.x).repeat_interleave(self.model.side // grid, dim=2)
        pixels = pixels.repeat_interleave(self.model.side // grid, dim=3)
        mask = F.interpolate(pixels, self.size, mode="nearest")
        return self.x * (1 - mask) + drawn * mask, mask

    def is_kept(self, restored: Tensor) -> Tensor:
        """Whether the classifier gives restored images the label of the original, float64, (N, 1)."""
        return (self.ask(restored) == self.labels).double()[:, None]

    def random_masking(self) -> tuple[Tensor, Tensor]:
        """The two maps, (N, tokens), from random masks."""
        n = len(self.x)
        length = int(self.tokens * MASK_RATIO)
        flips = torch.zeros(n, self.tokens, dtype=torch.float64)
        unlike = torch.zeros(n, self.tokens, dtype=torch.float64)
        total, count = torch.zeros_like(self.x), self.x.new_zeros(n, 1, *self.size)
        for _ in range(ROUNDS):
            drawn = self.noise(torch.empty(n, MASKS_PER_ROUND, self.tokens))
            # Permutations one after the other; a mask may begin in one and end in the next.
            order = drawn.argsort(dim=2, descending=True, stable=True).flatten(1)
            for chunk in torch.split(order[:, : MASKS_PER_ROUND * length], length, dim=1):
                mask = torch.zeros(n, self.tokens, dtype=torch.bool).scatter_(1, chunk, True)
                restored, pixels = self.restore(mask)
                total, count = total + pixels * restored, count + pixels
                flips += mask * (1 - self.is_kept(restored))
            similarity = ssim((self.x + 1) / 2, (total / count + 1) / 2)
            grid = self.model.grid
            unlike += 1 - F.interpolate(similarity, (grid, grid), mode="nearest").flatten(1).double().cpu()
        return unlike / ROUNDS, flips / (ROUNDS * MASKS_PER_ROUND)

    def refine(self, scores: Tensor, highest: Tensor) -> Tensor:
        """Ask which of the `highest` (N,) tokens of each image matter, and move their scores, (N, tokens)."""
        for _ in range(REFINEMENTS):
            order = scores.argsort(dim=1, descending=True, stable=True)
            top = torch.zeros_like(scores, dtype=torch.bool)
            top.scatter_(1, order, torch.arange(self.tokens) < highest[:, None])
            mask = self.connected(scores, top, highest // 2)
            step = STEP * (2 * self.is_kept(self.restore(mask)[0]) - 1)
            scores = scores - step * mask + step * (top & ~mask)
        return scores

    def connected(self, scores: Tensor, top: Tensor, sizes: Tensor) -> Tensor:
        """Draw tokens of each image, `sizes` (N,) of them, most of them neighbours of others."""
        n = len(scores)
        most = self.tokens // 2
        # Always as many numbers, so that an image does not depend on what its neighbours need.
        uniform = torch.special.ndtr(self.noise(torch.empty(n, most, self.tokens)).double())
        chosen = torch.zeros_like(top)
        for k in range(int(sizes.max())):
            if k == 0:
                value = uniform[:, 0] * scores
            else:
                near = neighbours(chosen, self.model.grid)
                value = uniform[:, k] * (scores + TOPOLOGY * near) - 100.0 * ~top - 100.0 * chosen
            one = F.one_hot(value.argmax(dim=1), self.tokens).bool()
            chosen |= one & (k < sizes)[:, None]
        return chosen

    def restore_above(self, scores: Tensor) -> Tensor:
        """Restore what lies above each threshold, and join the results by the mean."""
        limits = 1 - torch.tensor(THRESHOLDS, dtype=torch.float64).repeat(len(scores), 1)
        for _ in range(SHRINKS):
            share = (scores >= 1 - limits[:, -1:]).double().mean(dim=1, keepdim=True)
            limits = torch.where(share >= LARGEST_SHARE, limits * SHRINK, limits)
        total, count = torch.zeros_like(self.x), self.x.new_zeros(len(self.x), 1, *self.size)
        for limit in torch.split(limits, 1, dim=1):
            restored, mask = self.restore(scores >= 1 - limit)
            total, count = total + mask * restored, count + mask
        return torch.where(count > 0, total / count.clamp(min=1), self.x)


def neighbours(chosen: Tensor, grid: int) -> Tensor:
    """Tokens, (N, tokens), that lie left, right, above or below of a chosen one."""
    padded = F.pad(chosen.view(-1, grid, grid), (1, 1, 1, 1))
    left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
    above, below = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
    return (left | right | above | below).flatten(1)


def ssim(u: Tensor, v: Tensor) -> Tensor:
    """The map of structural similarity, its mean over the channels.

    Args:
        u: Images, (N, C, H, W), in [0, 1].
        v: Images of the same shape.

    Returns:
        (N, 1, H, W), at most 1.

    Source: Wang et al. 2004, eq. 13, as BDMAE's program has it: Gaussian window of sigma 1.5, 11 by 11, the
    edge pixel repeated beyond the border, population covariance.
    """
    mu_u, mu_v = _blur(u), _blur(v)
    var_u, var_v = _blur(u * u) - mu_u**2, _blur(v * v) - mu_v**2
    covariance = _blur(u * v) - mu_u * mu_v
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mu_u * mu_v + c1) * (2 * covariance + c2)
    below = (mu_u**2 + mu_v**2 + c1) * (var_u + var_v + c2)
    return (above / below).mean(dim=1, keepdim=True)


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean in the window, the edge pixel repeated beyond the border."""
    return windowed_mean(F.pad(x, (RADIUS,) * 4, mode="replicate"))
