"""The equations of ZIP (Shi et al., NeurIPS 2023) and of its rivals, transcribed slowly in float64.

This shares no code with zipcli, so that the two can be compared. It follows the papers' own letters and
order: timesteps t = T, ..., 1 with alpha_bar[0] = 1, the state x_t is what gets rectified (eq. 9), and
one image (C, H, W) at a time. Pixels are visited with plain loops.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Eps = Callable[[Array, int], Array]  # a state and the 0-based timestep t - 1 that networks are fed with


class Schedule(NamedTuple):
    """beta[t] and alpha_bar[t] for t = 1..T; beta[0] is unused and alpha_bar[0] is 1."""

    beta: list[float]
    alpha_bar: list[float]


def linear_schedule(first: float = 1e-4, last: float = 0.02, T: int = 1000) -> Schedule:
    beta, alpha_bar = [math.nan], [1.0]
    for t in range(1, T + 1):
        beta.append(first + (last - first) * (t - 1) / (T - 1))
        alpha_bar.append(alpha_bar[-1] * (1.0 - beta[-1]))
    return Schedule(beta, alpha_bar)


class Transform(NamedTuple):
    A: Callable[[Array], Array]
    A_pinv: Callable[[Array], Array]

    def project(self, x: Array) -> Array:
        """P x = A+ A x."""
        return self.A_pinv(self.A(x))


def block_mean(x: Array, n: int) -> Array:
    C, H, W = x.shape
    pixel = x.tolist()
    y = np.zeros((C, math.ceil(H / n), math.ceil(W / n)))
    for c in range(C):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                total, count = 0.0, 0
                for row in range(i * n, min((i + 1) * n, H)):
                    for column in range(j * n, min((j + 1) * n, W)):
                        total += pixel[c][row][column]
                        count += 1
                y[c, i, j] = total / count
    return y


def block_repeat(y: Array, n: int, H: int, W: int) -> Array:
    block = y.tolist()
    return np.array(
        [
            [[block[c][row // n][column // n] for column in range(W)] for row in range(H)]
            for c in range(y.shape[0])
        ]
    )


def blur(n: int, H: int, W: int) -> Transform:
    return Transform(lambda x: block_mean(x, n), lambda y: block_repeat(y, n, H, W))


def channel_mean(x: Array) -> Array:
    red, green, blue = x
    return np.array([(red + green + blue) / 3.0])


def channel_copy(y: Array) -> Array:
    return np.array([y[0], y[0], y[0]])


def gray() -> Transform:
    return Transform(channel_mean, channel_copy)


def mask(m: Array) -> Transform:
    """Keep the pixels where m, (H, W), is 1."""

    def keep(x: Array) -> Array:
        kept = np.zeros(x.shape)
        for row, column in zip(*np.nonzero(m == 1), strict=True):
            kept[:, row, column] = x[:, row, column]
        return kept

    return Transform(keep, keep)


def compose(first: Transform, second: Transform) -> Transform:
    return Transform(lambda x: second.A(first.A(x)), lambda y: first.A_pinv(second.A_pinv(y)))


def rectify(x_t: Array, e: Array, y: Array, transform: Transform, alpha_bar: float) -> Array:
    """x_hat_t = sqrt(alpha_bar) A+ y + (I - A+ A) x_t + sqrt(1 - alpha_bar) A+ A e (eq. 9)."""
    return (
        math.sqrt(alpha_bar) * transform.A_pinv(y)
        + x_t
        - transform.project(x_t)
        + math.sqrt(1.0 - alpha_bar) * transform.project(e)
    )


def mix(x_t: Array, x_hat_t: Array, alpha_bar: float, lambda_: float) -> Array:
    """x_tilde_t = (1 - alpha_bar^lambda) x_hat_t + alpha_bar^lambda x_t (section 3.4)."""
    doubt = 0.0 if math.isinf(lambda_) else alpha_bar**lambda_
    return (1.0 - doubt) * x_hat_t + doubt * x_t


def rectify_and_mix(
    x_t: Array,
    e: Array,
    ys: Sequence[Array],
    transforms: Sequence[Transform],
    alpha_bar: float,
    lambda_: float,
) -> Array:
    """Rectify with each of the N transforms, average the N states (section 3.5), then mix."""
    x_hat_t = np.zeros(x_t.shape)
    for transform, y in zip(transforms, ys, strict=True):
        x_hat_t = x_hat_t + rectify(x_t, e, y, transform, alpha_bar) / len(transforms)
    return mix(x_t, x_hat_t, alpha_bar, lambda_)


def algorithm_1_mean(x_tilde_t: Array, e: Array, beta: float, alpha_bar: float) -> Array:
    """alpha_t^(-1/2) (x_tilde_t - (1 - alpha_t) / sqrt(1 - alpha_bar_t) e) (eq. 10)."""
    return (x_tilde_t - beta / math.sqrt(1.0 - alpha_bar) * e) / math.sqrt(1.0 - beta)


def algorithm_1_variance(beta: float, alpha_bar: float, alpha_bar_prev: float) -> float:
    return beta * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)


def algorithm_1(
    x_P: Array,
    eps: Eps,
    transforms: Sequence[Transform],
    lambda_: float,
    noise: Sequence[Array],
    schedule: Schedule,
) -> Array:
    """DDPM, t = T..1. `noise` is the start and one draw per step; the last is not used (z = 0 at t = 1)."""
    ys = [transform.A(x_P) for transform in transforms]
    T = len(schedule.beta) - 1
    x_t = noise[0]
    for step, t in enumerate(range(T, 0, -1), start=1):
        beta, alpha_bar, alpha_bar_prev = schedule.beta[t], schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
        e = eps(x_t, t - 1)
        x_tilde_t = rectify_and_mix(x_t, e, ys, transforms, alpha_bar, lambda_)
        z = noise[step] if t > 1 else np.zeros(x_t.shape)
        sigma = math.sqrt(algorithm_1_variance(beta, alpha_bar, alpha_bar_prev))
        x_t = algorithm_1_mean(x_tilde_t, e, beta, alpha_bar) + sigma * z
    return x_t


def ddim_sigma(alpha_bar: float, alpha_bar_prev: float, eta: float) -> float:
    """Song et al. 2021 (DDIM), eq. 16."""
    return eta * math.sqrt((1.0 - alpha_bar_prev) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_prev))


def algorithm_2(
    x_P: Array,
    eps: Eps,
    transforms: Sequence[Transform],
    lambda_: float,
    noise: Sequence[Array],
    schedule: Schedule,
    visited: Sequence[int],
    eta: float,
) -> Array:
    """DDIM over the falling timesteps `visited` (1-based, as the paper counts), then to alpha_bar = 1."""
    ys = [transform.A(x_P) for transform in transforms]
    x_t = noise[0]
    for step, t in enumerate(visited, start=1):
        t_next = visited[step] if step < len(visited) else 0
        alpha_bar, alpha_bar_prev = schedule.alpha_bar[t], schedule.alpha_bar[t_next]
        e = eps(x_t, t - 1)
        x_tilde_t = rectify_and_mix(x_t, e, ys, transforms, alpha_bar, lambda_)
        x_0 = (x_tilde_t - math.sqrt(1.0 - alpha_bar) * e) / math.sqrt(alpha_bar)
        sigma = ddim_sigma(alpha_bar, alpha_bar_prev, eta)
        # Rounding can leave -1e-17 here where it is 0 by algebra.
        direction = math.sqrt(max(0.0, 1.0 - alpha_bar_prev - sigma**2))
        x_t = math.sqrt(alpha_bar_prev) * x_0 + direction * e + sigma * noise[step]
    return x_t


def ddnm(
    x_P: Array,
    eps: Eps,
    transform: Transform,
    noise: Sequence[Array],
    schedule: Schedule,
    visited: Sequence[int],
    eta: float,
    *,
    simplified: bool,
) -> Array:
    """Wang et al. 2023 (DDNM), algorithm 1, with the noise of the program's two paths; t = `visited`."""
    y = transform.A(x_P)
    x_t = noise[0]
    for step, t in enumerate(visited, start=1):
        t_next = visited[step] if step < len(visited) else 0
        alpha_bar, alpha_bar_prev = schedule.alpha_bar[t], schedule.alpha_bar[t_next]
        e = eps(x_t, t - 1)
        x_0 = (x_t - math.sqrt(1.0 - alpha_bar) * e) / math.sqrt(alpha_bar)
        x_0_hat = transform.A_pinv(y) + x_0 - transform.project(x_0)
        c_1 = math.sqrt(1.0 - alpha_bar_prev) * eta
        c_2 = math.sqrt(1.0 - alpha_bar_prev) * math.sqrt(1.0 - eta**2)
        gamma = math.sqrt(1.0 - alpha_bar_prev**2) if simplified else 1.0
        x_t = math.sqrt(alpha_bar_prev) * x_0_hat + gamma * (c_1 * noise[step] + c_2 * e)
    return x_t


def diffpure_sde(
    x: Array, eps: Eps, noise: Sequence[Array], schedule: Schedule, t_star: int, *, is_ode: bool = False
) -> Array:
    """Nie et al. 2022 (DiffPure), eq. 4 to 6, by Euler-Maruyama; the ODE has half the score and no noise."""
    alpha_bar = schedule.alpha_bar[t_star]
    x_t = math.sqrt(alpha_bar) * x + math.sqrt(1.0 - alpha_bar) * noise[0]
    times = [k / 1000.0 for k in range(t_star, 0, -1)] + [1e-5]
    for step in range(t_star):
        t, dt = times[step], times[step] - times[step + 1]
        beta = 0.1 + 19.9 * t
        integral = 0.1 * t + 19.9 * t**2 / 2.0
        score = -eps(x_t, t_star - 1 - step) / math.sqrt(1.0 - math.exp(-integral))
        f = -0.5 * beta * x_t
        if is_ode:
            x_t = x_t - (f - 0.5 * beta * score) * dt
        else:
            x_t = x_t - (f - beta * score) * dt + math.sqrt(beta) * math.sqrt(dt) * noise[step + 1]
    return x_t


def diffpure_ddpm(x: Array, eps: Eps, noise: Sequence[Array], schedule: Schedule, t_star: int) -> Array:
    """The same by ancestral sampling, Ho et al. 2020, eq. 6 and 7, with x_0 clipped; no noise at t = 1."""
    alpha_bar = schedule.alpha_bar[t_star]
    x_t = math.sqrt(alpha_bar) * x + math.sqrt(1.0 - alpha_bar) * noise[0]
    for step, t in enumerate(range(t_star, 0, -1), start=1):
        beta, alpha_bar, alpha_bar_prev = schedule.beta[t], schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
        e = eps(x_t, t - 1)
        x_0 = np.minimum(1.0, np.maximum(-1.0, (x_t - math.sqrt(1.0 - alpha_bar) * e) / math.sqrt(alpha_bar)))
        mean = math.sqrt(alpha_bar_prev) * beta * x_0 + math.sqrt(1.0 - beta) * (1.0 - alpha_bar_prev) * x_t
        x_t = mean / (1.0 - alpha_bar)
        if t > 1:
            x_t = x_t + math.sqrt(beta * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)) * noise[step]
    return x_t


def ssim_map(u: Array, v: Array, R: float) -> Array:
    """Wang et al. 2004, eq. 13, of one channel (H, W): 11 by 11 Gaussian, mirrored borders, 121 / 120."""
    H, W = u.shape
    window = {(a, b): math.exp(-0.5 * (a * a + b * b) / 1.5**2) for a in range(-5, 6) for b in range(-5, 6)}
    total = sum(window.values())
    C_1, C_2 = (0.01 * R) ** 2, (0.03 * R) ** 2
    S = np.zeros((H, W))
    for i in range(H):
        for j in range(W):
            mu_u = mu_v = uu = vv = uv = 0.0
            for (a, b), weight in window.items():
                row, column = i + a, j + b
                row = -1 - row if row < 0 else 2 * H - 1 - row if row >= H else row
                column = -1 - column if column < 0 else 2 * W - 1 - column if column >= W else column
                p, q, w = float(u[row, column]), float(v[row, column]), weight / total
                mu_u, mu_v = mu_u + w * p, mu_v + w * q
                uu, vv, uv = uu + w * p * p, vv + w * q * q, uv + w * p * q
            var_u, var_v, cov = (121.0 / 120.0 * m for m in (uu - mu_u**2, vv - mu_v**2, uv - mu_u * mu_v))
            S[i, j] = (2.0 * mu_u * mu_v + C_1) * (2.0 * cov + C_2)
            S[i, j] /= (mu_u**2 + mu_v**2 + C_1) * (var_u + var_v + C_2)
    return S


def blind(
    x: Array,
    eps: Eps,
    z: Array,
    schedule: Schedule,
    sigma: float,
    told: float,
    passes: int,
    cell: int,
    keep_colour: bool,
    doubt: float,
) -> Array:
    """The estimate of the clean image (Ho et al. 2020, eq. 15), the network being told the noise `told`.

    Between timesteps the logarithm of noise over image is linear. The mean of each channel becomes the
    mean of all, but for what the estimate of a copy of about 32 pixels has beside it, if the image is
    larger. The rest of what the estimate changes there, and in copies of twice, four times, ... that
    size, changes the image, less where it is little. Before all that and before each estimate of the
    image the colours, which are what the channels have beside their mean, become their means over squares
    of `cell` pixels. An image without any stays so.
    """
    noise_over_image = [math.sqrt((1.0 - a) / a) for a in schedule.alpha_bar[1:]]
    t = 0
    while noise_over_image[t + 1] < told:
        t += 1
    low, high = math.log(noise_over_image[t]), math.log(noise_over_image[t + 1])
    timestep = float(np.float32(t + (math.log(told) - low) / (high - low)))  # what a network is given
    alpha_bar = 1.0 / (1.0 + told**2)

    def estimate(image: Array) -> Array:
        x_t = math.sqrt(alpha_bar) * image
        return (x_t - math.sqrt(1.0 - alpha_bar) * eps(x_t, timestep)) / math.sqrt(alpha_bar)

    def cast(image: Array) -> Array:
        means = np.array([float(channel.mean()) for channel in image])
        return (means - means.mean())[:, None, None]

    def coarse(image: Array) -> Array:
        C, H, W = image.shape
        result = np.zeros(image.shape)
        for top in range(0, H, cell):
            for left in range(0, W, cell):
                square = [
                    (i, j) for i in range(top, min(H, top + cell)) for j in range(left, min(W, left + cell))
                ]
                for c in range(C):
                    colour = sum(image[c, i, j] - sum(image[:, i, j]) / C for i, j in square) / len(square)
                    for i, j in square:
                        result[c, i, j] = sum(image[:, i, j]) / C + colour
        return result

    grey = max(abs(float(x[c, i, j]) - float(x[:, i, j].mean())) for c, i, j in np.ndindex(x.shape)) < 1 / 255
    H, W = x.shape[1:]
    if not keep_colour:
        x = x - cast(x)
    x = coarse(x)
    shrink = coarsest = round(min(H, W) / 32)
    while shrink > 1:
        small = in_blocks(x, shrink)
        change = estimate(small) - small
        if shrink == coarsest and not keep_colour:
            x, change = x + cast(change), change - cast(change)
        x = x + bilinear(with_doubt(change, doubt), shrink, H, W)
        shrink //= 2
    for k in range(1, passes + 1):
        x = coarse(x)
        x = estimate(x + sigma * z if k == passes else x)
    return np.stack([x.mean(axis=0)] * len(x)) if grey else x


def in_blocks(x: Array, n: int) -> Array:
    """The means of an image, (C, H, W), over blocks of n pixels; the last ones may be cut."""
    C, H, W = x.shape
    rows, columns = math.ceil(H / n), math.ceil(W / n)
    small = np.zeros((C, rows, columns))
    for c in range(C):
        for i in range(rows):
            for j in range(columns):
                small[c, i, j] = float(x[c, i * n : (i + 1) * n, j * n : (j + 1) * n].mean())
    return small


def bilinear(small: Array, n: int, H: int, W: int) -> Array:
    """Blocks of n pixels, (C, h, w), as an image, (C, H, W); linear between the middles of blocks."""
    C, h, w = small.shape
    result = np.zeros((C, H, W))
    for i, j in np.ndindex(H, W):
        y, x = (max(0.0, (place + 0.5) / n - 0.5) for place in (i, j))
        top, left = int(y), int(x)
        for row, down in ((top, 1.0 - (y - top)), (min(h - 1, top + 1), y - top)):
            for column, across in ((left, 1.0 - (x - left)), (min(w - 1, left + 1), x - left)):
                result[:, i, j] += down * across * small[:, row, column]
    return result


def with_doubt(change: Array, doubt: float) -> Array:
    """Wiener's filter, its signal the mean square over channels and 3x3 pixels, its noise `doubt`."""
    C, H, W = change.shape
    result = np.zeros(change.shape)
    for i, j in np.ndindex(H, W):
        signal = 0.0
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                row, column = min(max(i + a, 0), H - 1), min(max(j + b, 0), W - 1)
                signal += sum(float(change[c, row, column]) ** 2 for c in range(C)) / C / 9.0
        result[:, i, j] = change[:, i, j] * signal / (signal + doubt**2)
    return result


def sampdetox(
    x: Array,
    eps: Eps,
    noise: Sequence[Array],
    schedule: Schedule,
    T_1: int,
    T_2: int,
    R: float,
    stride: int | None = None,
) -> Array:
    """Yang et al. 2024 (SampDetox) as its program has it, pixel by pixel; with a stride by DDIM.

    T_1 and T_2 count from 0, as in the program, and so does i.
    """
    C, H, W = x.shape
    draws = iter(noise)
    nu = next(draws)

    def alpha_bar(i: int) -> float:
        return schedule.alpha_bar[i + 1]

    def denoise(image: Array, tau: list[list[int]], T: int) -> Array:
        x_t = np.zeros(x.shape)
        for c in range(C):
            for row in range(H):
                for column in range(W):
                    a = alpha_bar(tau[row][column])
                    x_t[c, row, column] = (
                        math.sqrt(a) * image[c, row, column] + math.sqrt(1.0 - a) * nu[c, row, column]
                    )
        for i in range(T - 1, -1, -1) if stride is None else range(T, 0, -stride):
            e = eps(x_t, i)
            if stride is None:
                beta, following = schedule.beta[i + 1], i
                full = (x_t - beta / math.sqrt(1.0 - alpha_bar(i)) * e) / math.sqrt(1.0 - beta)
                if i > 0:
                    full = full + math.sqrt(beta) * next(draws)
            else:
                following = max(0, i - stride)
                a_next = alpha_bar(following) if following else 1.0
                x_0 = (x_t - math.sqrt(1.0 - alpha_bar(i)) * e) / math.sqrt(alpha_bar(i))
                full = math.sqrt(a_next) * x_0 + math.sqrt(1.0 - a_next) * e
            for row in range(H):
                for column in range(W):
                    if tau[row][column] > following:
                        x_t[:, row, column] = full[:, row, column]
        return x_t

    x_bar = np.minimum(1.0, np.maximum(-1.0, denoise(x, [[T_1] * W] * H, T_1)))
    u, u_bar = (x + 1.0) / 2.0, (x_bar + 1.0) / 2.0
    red, green, blue = (ssim_map(u[c], u_bar[c], R) for c in range(C))
    g = 0.11 * red + 0.59 * green + 0.30 * blue
    g = (g - g.min()) / (g.max() - g.min())
    tau = [[int((1.0 - g[row, column]) * T_2) for column in range(W)] for row in range(H)]
    return denoise(x_bar, tau, T_2)
