"""The equations of ZIP (Shi et al., NeurIPS 2023), transcribed slowly in float64.

This shares no code with zipcli, so that the two can be compared. It follows the paper's own letters and
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
