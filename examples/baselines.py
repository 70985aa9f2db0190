"""What zipcli is compared with: the loops of ZIP, SampDetox and DiffPure as their programs run them.

Each is written anew from the paper's equations and from what is known of the released program, with what
makes that program slow, so that `measure_speed.py` can time it beside zipcli on one network. To purify,
use zipcli.

All three take images (N, 3, H, W), uint8 or floating point in [0, 1], and any `EpsModel`, and return images
of the same shape and dtype, clipped. Gradients are off (`no_grad`), nothing is compiled, and states are in
the plain order of memory. Where a choice was open we took the faster one, and said so: a baseline should
not be slow by our doing.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipcli.config import NoiseSchedule
from zipcli.protocols import EpsModel, Noise
from zipcli.schedule import alpha_bars, betas

# ZIP

CANVAS = 256
"""Side of the images of the network that ZIP's program uses, in pixels."""


@torch.no_grad()
def zip_official(
    images: Tensor,
    eps_model: EpsModel,
    *,
    noise: Noise,
    blur: int = 2,
    lambda_: float = 10.0,
    steps: int = 20,
    batch: int = 200,
    native: bool = False,
) -> Tensor:
    """ZIP as its program runs it: canvases of small images, DDIM with eta 1, gray and blur averaged.

    Args:
        images: Squares; the cells of a row must fill 252 to 256 pixels, as 32, 64, 84, 128 and 256 do.
        eps_model: The diffusion prior.
        noise: One draw for the start of the chain and one for every step, the last of which is lost.
        blur: Side of the averaged blocks in pixels, a divisor of the side of the canvas.
        lambda_: Exponent of the confidence weight; `--at_threshold` of the program.
        steps: Steps of the chain.
        batch: Canvases at a time, 200 in the program, which has three GPUs for them.
        native: Leave the images as they are, and so need a network for their side.

    Kept from the program: the state is rectified in x_t space (eq. 9) by each operator, the results are
    averaged and then mixed with the state by 1 - alpha_bar^lambda (sections 3.4, 3.5); alpha_bar is
    computed from all betas anew whenever it is needed; every state goes to host memory, stays there until
    the batch is done, and is fetched back (on a CPU nothing is copied); the channels of a learned variance
    are thrown away; leftover cells of the last canvas are black and cost as much as an image. Its operators
    are the simple ones: the file of SVD operators that it carries is never called.

    Where we differ: cells are found again by their index, not by being brighter than 15 of 255, which would
    lose dark images; a canvas holds whatever comes next, not images of one class; results are not written
    to PNG files, which costs the program time and us none; the network runs in the precision that it was
    loaded with (the program: float16 on a GPU).

    Source: Shi et al. 2023, Algorithm 2, and the ZIP program, `preprocess/guided_diffusion`.
    """
    x = as_states(images)
    canvases = x if native else pack(x)
    clean = [
        _zip_chain(part, eps_model, noise, blur, lambda_, steps) for part in torch.split(canvases, batch)
    ]
    purified = torch.cat(clean)
    return as_images(purified if native else unpack(purified, len(x), x.shape[-1]), images.dtype)


def _zip_chain(x: Tensor, eps_model: EpsModel, noise: Noise, blur: int, lambda_: float, steps: int) -> Tensor:
    """Purify one batch of canvases, (N, 3, S, S)."""
    beta = betas(eps_model.schedule).to(x)  # in the precision of the images before the product, as there
    stride = len(beta) // steps
    visited = [*range(stride * (steps - 1), -1, -stride), -1]
    operators = ((gray, ungray), (partial(pool, n=blur), partial(unpool, n=blur)))
    targets = [A(x) for A, _ in operators]
    states = [noise(x).cpu()]
    for i, j in pairwise(visited):
        x_t = states[-1].to(x.device)
        t = torch.ones(len(x), device=x.device) * i
        alpha_bar, alpha_bar_next = alpha_bar_at(beta, i), alpha_bar_at(beta, j)
        e = eps_model(x_t, t)[:, :3]

        rooted, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_hat = torch.zeros_like(x)
        for (A, A_pinv), y in zip(operators, targets, strict=True):  # eq. 9, averaged
            rectified = rooted * A_pinv(y) + x_t - A_pinv(A(x_t)) + spread * A_pinv(A(e))
            x_hat = x_hat + rectified / len(operators)
        doubt = alpha_bar**lambda_
        x_tilde = (1 - doubt) * x_hat + doubt * x_t

        x_0 = (x_tilde - spread * e) / rooted
        sigma = ((1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)).sqrt()
        direction = (1 - alpha_bar_next - sigma**2).clamp(min=0).sqrt()
        states.append((alpha_bar_next.sqrt() * x_0 + direction * e + sigma * noise(x_t)).cpu())
    return states[-1].to(x.device)


def alpha_bar_at(beta: Tensor, i: int) -> Tensor:
    """alpha_bar of the 0-based timestep i, a scalar; 1 at -1, as a beta of 0 comes first."""
    return torch.cat([beta.new_zeros(1), beta]).neg().add(1).cumprod(0)[i + 1]


def gray(x: Tensor) -> Tensor:
    """A x: the mean of the channels, (N, 1, H, W)."""
    return x.mean(dim=1, keepdim=True)


def ungray(y: Tensor) -> Tensor:
    """A+ y: each channel a copy, (N, 3, H, W)."""
    return y.repeat(1, 3, 1, 1)


def pool(x: Tensor, n: int) -> Tensor:
    """A x: the mean of blocks of n by n pixels, (N, 3, H / n, W / n)."""
    return F.adaptive_avg_pool2d(x, (x.shape[-2] // n, x.shape[-1] // n))


def unpool(y: Tensor, n: int) -> Tensor:
    """A+ y: each value repeated over its block."""
    return y.repeat_interleave(n, dim=-2).repeat_interleave(n, dim=-1)


def pack(x: Tensor) -> Tensor:
    """Put square images (N, 3, S, S) on canvases (M, 3, 256, 256), row by row; the rest is black."""
    side = x.shape[-1]
    per_side = CANVAS // side
    assert x.shape[-2] == side, "the program takes squares"
    assert CANVAS - 4 <= per_side * side <= CANVAS, "where the program breaks its rows is fixed"
    canvases = x.new_full((math.ceil(len(x) / per_side**2), 3, CANVAS, CANVAS), -1.0)
    for image, cell in zip(x, cells(canvases, side), strict=False):
        cell.copy_(image)
    return canvases


def unpack(canvases: Tensor, count: int, side: int) -> Tensor:
    """Cut the first `count` images of `side` pixels out of canvases."""
    return torch.stack([cell for cell, _ in zip(cells(canvases, side), range(count), strict=False)])


def cells(canvases: Tensor, side: int) -> Iterator[Tensor]:
    """Views of all cells of all canvases, (3, side, side), row by row."""
    starts = range(0, CANVAS - side + 1, side)
    for canvas in canvases:
        for top in starts:
            for left in starts:
                yield canvas[:, top : top + side, left : left + side]


# SampDetox


@torch.no_grad()
def sampdetox(
    images: Tensor,
    eps_model: EpsModel,
    *,
    noise: Noise,
    t1: int = 120,
    t2: int = 120,
    by_pixel: bool = True,
) -> Tensor:
    """SampDetox as its program runs it: one image at a time, DDPM, t1 + t2 calls of the network.

    Args:
        images: Sides of at least 11 pixels.
        eps_model: The diffusion prior.
        noise: One draw for all images and both stages, then one for each step but the last of a stage.
        t1: Timestep to which the whole image is noised; 120 in the program, 20 in the paper.
        t2: Highest timestep to which a pixel is noised.
        by_pixel: Write a step back pixel by pixel in Python, as the program does; otherwise at once, which
            gives the same.

    Kept from the program: a state noised to timestep 120 is denoised from 119 on; the variance of a step is
    beta; nothing is clipped before the end of a stage; SSIM with a data range of 255 for values in
    [0, 1]; luma weights in the order B, G, R on R, G, B; all 120 steps of the second stage compute the
    whole image, and only pixels whose level is above the step keep the result, so that those of level 0 keep
    their noise.

    Where we differ: an image that changed evenly has level 0 everywhere, where the program divides 0 by 0;
    the network is another one. How the program holds the levels while it loops over them we do not know; we
    hold them in an array of numpy, whose numbers are the faster ones to compare.

    Source: Yang et al. 2024, and the SampDetox program, `SampDetox.py` and `diffusion/Diffusion`.
    """
    x = as_states(images)
    nu = noise(x[:1])
    alpha_bar = alpha_bars(eps_model.schedule)
    clean = []
    for image in torch.split(x, 1):
        start = noised(image, torch.tensor(t1), alpha_bar, nu)
        x_bar = sampdetox_chain(start, eps_model, noise, t1, None, by_pixel=by_pixel).clamp(-1, 1)
        tau = levels((image + 1) / 2, (x_bar + 1) / 2, t2)
        start = noised(x_bar, torch.from_numpy(tau).to(x.device), alpha_bar, nu)
        clean.append(sampdetox_chain(start, eps_model, noise, t2, tau, by_pixel=by_pixel))
    return as_images(torch.cat(clean), images.dtype)


def sampdetox_chain(
    x: Tensor, eps_model: EpsModel, noise: Noise, count: int, tau: np.ndarray | None, *, by_pixel: bool
) -> Tensor:
    """DDPM from timestep count - 1 to 0 for one image (1, 3, H, W); with levels, each pixel in its turn.

    Source: Ho et al. 2020, Algorithm 2 with sigma^2 = beta.
    """
    beta, alpha_bar = betas(eps_model.schedule), alpha_bars(eps_model.schedule)
    for i in range(count - 1, -1, -1):
        t = x.new_ones(1) * i
        e = eps_model(x, t)[:, :3]
        b, a = beta[i].item(), alpha_bar[i].item()
        stepped = (x - b / math.sqrt(1 - a) * e) / math.sqrt(1 - b)
        if i > 0:
            stepped = stepped + math.sqrt(b) * noise(x)
        if tau is None:
            x = stepped
        elif by_pixel:
            write_back_by_pixel(x, stepped, tau, i)
        else:
            x = write_back_at_once(x, stepped, tau, i)
    return x


def levels(u: Tensor, u_bar: Tensor, t2: int) -> np.ndarray:
    """How far each pixel of an image (1, 3, H, W) in [0, 1] will be noised, int64 (H, W), from 0 to t2."""
    from skimage.metrics import structural_similarity  # pip install 'zipcli[evaluate]'

    before, after = (image[0].permute(1, 2, 0).cpu().numpy() for image in (u, u_bar))
    _, similarity = structural_similarity(
        before, after, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, full=True
    )
    g = similarity @ np.array([0.11, 0.59, 0.30], dtype=similarity.dtype)
    low, high = g.min(), g.max()
    g = (g - low) / (high - low) if high > low else np.ones_like(g)
    return ((1 - g) * t2).astype(np.int64)


def noised(x: Tensor, tau: Tensor, alpha_bar: Tensor, nu: Tensor) -> Tensor:
    """Noise images (1, 3, H, W) to one level or to one for each pixel, (H, W)."""
    signal, spread = alpha_bar.sqrt().to(x)[tau], (1 - alpha_bar).sqrt().to(x)[tau]
    return signal * x + spread * nu


def write_back_by_pixel(x_t: Tensor, stepped: Tensor, tau: np.ndarray, i: int) -> None:
    """Write a step into x_t, (1, 3, H, W), where the level is above i."""
    height, width = tau.shape
    for row in range(height):
        for column in range(width):
            if tau[row, column] > i:
                x_t[0, :, row, column] = stepped[0, :, row, column]


def write_back_at_once(x_t: Tensor, stepped: Tensor, tau: np.ndarray, i: int) -> Tensor:
    """The same for all pixels together."""
    return torch.where(torch.from_numpy(tau).to(x_t.device) > i, stepped, x_t)


# DiffPure

BETA_0, BETA_1 = 0.1, 20.0
"""beta(t) = BETA_0 + (BETA_1 - BETA_0) t; the discrete betas go from 1e-4 to 0.02 in 1,000 steps."""


@torch.no_grad()
def diffpure(
    images: Tensor, eps_model: EpsModel, *, noise: Noise, t_star: int = 100, batch: int = 64
) -> Tensor:
    """DiffPure as its program runs it on CIFAR-10: noise, then the reverse VP-SDE by Euler and Maruyama.

    Args:
        images: Images that the network takes.
        eps_model: The diffusion prior, on the linear schedule of 1,000 timesteps.
        noise: One draw for the start, then one for each step.
        t_star: Timesteps to go back, each one evaluation; 100 for CIFAR-10 within 8/255, 150 for ImageNet.
        batch: Images at a time.

    Kept from the program: t falls from t_star / 1000 to 1e-5 in steps of 1e-3, the last one shortened;
    alpha_bar(t) = exp(-9.95 t^2 - 0.1 t) in the steps, and the discrete product for the first noise; noise is
    added in the last step too; nothing is clipped before the end. It does not clip at the end either; we
    do, to have images.

    Where we differ: the program asks a network of its own that takes any t, and we ask `eps_model` at the
    timestep with the same noise, 1000 t - 1, so that the result does not hang on how 1000 t is rounded; it
    leaves the steps to a solver for any SDE, with bookkeeping of the noise that it drew, and we write them
    out, which is faster.

    Source: Nie et al. 2022, section 3 and appendix; Song et al. 2021 (score SDE), eq. 6 and appendix C.
    """
    assert eps_model.schedule == NoiseSchedule(), "the SDE belongs to the linear schedule"
    first = alpha_bars(eps_model.schedule)[t_star - 1].item()
    clean = []
    for x_0 in torch.split(as_states(images), batch):
        x = math.sqrt(first) * x_0 + math.sqrt(1 - first) * noise(x_0)
        for step in range(t_star, 0, -1):
            t, t_next = step / 1000, max((step - 1) / 1000, 1e-5)
            e = eps_model(x, torch.full((len(x),), step - 1.0, device=x.device))[:, :3]
            beta = BETA_0 + (BETA_1 - BETA_0) * t
            alpha_bar = math.exp(-(BETA_1 - BETA_0) / 2 * t**2 - BETA_0 * t)
            score = -e / math.sqrt(1 - alpha_bar)
            drift = beta / 2 * x + beta * score
            x = x + drift * (t - t_next) + math.sqrt(beta * (t - t_next)) * noise(x)
        clean.append(x)
    return as_images(torch.cat(clean), images.dtype)


# Images


def as_states(images: Tensor) -> Tensor:
    """Images, uint8 or floating point in [0, 1], in [-1, 1]."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images * 2 - 1


def as_images(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse, clipped; uint8 is rounded half up."""
    u = ((x + 1) / 2).clamp(0, 1)
    return (u * 255 + 0.5).to(torch.uint8) if dtype == torch.uint8 else u.to(dtype)
