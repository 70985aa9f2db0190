"""BDMAE and Sancdifi, transcribed slowly in float64.

This shares no code with zipcli, so that the two can be compared. One image (C, H, W) at a time, pixels and
tokens visited with plain loops, and as few numpy functions as that allows.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ask = Callable[[Array], int]
Draw = Callable[..., Array]  # a shape to normal numbers
Restore = Callable[[Array, Array], Array]  # an image (3, S, S) and a mask (grid, grid) of 0 and 1
Eps = Callable[[Array, int], Array]


def share_below(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def nearest(x: Array, H: int, W: int) -> Array:
    C, h, w = x.shape
    return np.array([[[x[c, i * h // H, j * w // W] for j in range(W)] for i in range(H)] for c in range(C)])


def between(position: float, size: int) -> tuple[int, int, float]:
    position = max(position, 0.0)
    low = min(int(position), size - 1)
    return low, min(low + 1, size - 1), position - low


def bilinear(x: Array, H: int, W: int) -> Array:
    C, h, w = x.shape
    out = np.zeros((C, H, W))
    for i in range(H):
        top, bottom, down = between((i + 0.5) * h / H - 0.5, h)
        for j in range(W):
            left, right, along = between((j + 0.5) * w / W - 0.5, w)
            for c in range(C):
                above = (1 - along) * x[c, top, left] + along * x[c, top, right]
                below = (1 - along) * x[c, bottom, left] + along * x[c, bottom, right]
                out[c, i, j] = (1 - down) * above + down * below
    return out


# BDMAE


def ssim_map(u: Array, v: Array) -> Array:
    """Mean over the channels; Gaussian window of 11 by 11, the edge pixel repeated."""
    C, H, W = u.shape
    weight = [math.exp(-((k - 5) ** 2) / (2 * 1.5**2)) for k in range(11)]
    total = sum(weight)
    out = np.zeros((H, W))
    for c in range(C):
        for i in range(H):
            for j in range(W):
                mu_u = mu_v = uu = vv = uv = 0.0
                for a in range(11):
                    for b in range(11):
                        row, column = min(max(i + a - 5, 0), H - 1), min(max(j + b - 5, 0), W - 1)
                        g = weight[a] * weight[b] / total**2
                        p, q = u[c, row, column], v[c, row, column]
                        mu_u, mu_v = mu_u + g * p, mu_v + g * q
                        uu, vv, uv = uu + g * p * p, vv + g * q * q, uv + g * p * q
                above = (2 * mu_u * mu_v + 1e-4) * (2 * (uv - mu_u * mu_v) + 9e-4)
                below = (mu_u**2 + mu_v**2 + 1e-4) * (uu - mu_u**2 + vv - mu_v**2 + 9e-4)
                out[i, j] += above / below / C
    return out


def highest(scores: Array, count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda token: -scores[token])[:count]


def is_near(token: int, chosen: list[int], grid: int) -> bool:
    row, column = divmod(token, grid)
    return any(abs(row - c // grid) + abs(column - c % grid) == 1 for c in chosen)


def bdmae(x: Array, mae: Restore, side: int, grid: int, draw: Draw, ask: Ask) -> Array:
    _, H, W = x.shape
    L, patch = grid * grid, side // grid
    seen = bilinear(x, side, side)
    y0 = ask(x)

    def restore(tokens: list[int]) -> tuple[Array, Array]:
        mask = np.zeros(L)
        for token in tokens:
            mask[token] = 1
        mask = mask.reshape(grid, grid)
        rec = nearest(mae(seen, mask), H, W)
        pixels = np.array([[mask[i // patch, j // patch] for j in range(side)] for i in range(side)])
        M = nearest(pixels[None], H, W)[0]
        return x * (1 - M) + rec * M, M

    # Random masking
    S_i, flips = np.zeros(L), np.zeros(L)
    total, count = np.zeros(x.shape), np.zeros((H, W))
    length = int(0.75 * L)
    for _ in range(5):
        drawn = draw(5, L)
        ids = [token for row in drawn for token in highest(row, L)]
        for k in range(5):
            tokens = sorted(set(ids[k * length : (k + 1) * length]))
            x_hat, M = restore(tokens)
            total, count = total + M * x_hat, count + M
            if ask(x_hat) != y0:
                for token in tokens:
                    flips[token] += 1
        I_o = ssim_map((x + 1) / 2, (total / count + 1) / 2)
        S_i += (1 - nearest(I_o[None], grid, grid)[0].reshape(L)) / 5
    S_l = flips / 25

    # Refinement
    def refine(S: Array, K: int) -> Array:
        S = S.copy()
        for _ in range(10):
            top = highest(S, K)
            U = draw(L // 2, L)
            m: list[int] = []
            for k in range(K // 2):
                best, best_value = -1, -math.inf
                for token in range(L):
                    u = share_below(U[k, token])
                    value = u * S[token]
                    if m:
                        value = u * (S[token] + 0.5 * is_near(token, m, grid))
                        value -= 100 * (token not in top) + 100 * (token in m)
                    if value > best_value:
                        best, best_value = token, value
                m.append(best)
            b = 0.05 if ask(restore(m)[0]) == y0 else -0.05
            for token in range(L):
                if token in m:
                    S[token] -= b
                elif token in top:
                    S[token] += b
        return S

    S_i = refine(S_i, sum(score >= 0.2 for score in S_i))
    S_l = refine(S_l, int(S_l.mean() * L))

    # Fusion
    S = 0.5 * S_i + 0.5 * S_l
    thresholds = [1 - threshold for threshold in (0.6, 0.55, 0.5, 0.45, 0.4)]
    for _ in range(200):
        if sum(score >= 1 - thresholds[-1] for score in S) / L < 0.25:
            break
        thresholds = [0.99 * threshold for threshold in thresholds]
    total, count = np.zeros(x.shape), np.zeros((H, W))
    for threshold in thresholds:
        x_hat, M = restore([token for token in range(L) if S[token] >= 1 - threshold])
        total, count = total + M * x_hat, count + M
    out = x.copy()
    for i in range(H):
        for j in range(W):
            if M[i, j]:  # of the lowest threshold, and so the largest
                out[:, i, j] = total[:, i, j] / count[i, j]
    return out


# Sancdifi


def rise_mask(numbers: Array, H: int, W: int) -> Array:
    """A grid of 7 by 7 cells, enlarged to 8 cells of the image and cropped at a random place."""
    cells = np.array([[1.0 if numbers[7 * i + j] > 0 else 0.0 for j in range(7)] for i in range(7)])
    high, wide = math.ceil(H / 7), math.ceil(W / 7)
    large = bilinear(cells[None], 8 * high, 8 * wide)[0]
    down, right = int(share_below(numbers[49]) * high), int(share_below(numbers[50]) * wide)
    return large[down : down + H, right : right + W]


def sancdifi(
    x: Array,
    eps: Eps,
    alpha_bar: list[float],
    draw: Draw,
    ask: Ask,
    masks: int,
    threshold: float,
    t_star: int,
) -> Array:
    """alpha_bar[t] for t = 0..T, with alpha_bar[0] = 1; eps is fed with t - 1."""
    C, H, W = x.shape
    numbers = draw(masks, 51)
    y0 = ask(x)
    S = np.zeros((H, W))
    for k in range(masks):
        M = rise_mask(numbers[k], H, W)
        if ask(x * M) == y0:
            S += M / (masks * 0.5)
    ordered = sorted(S.ravel().tolist())
    salient = ordered[int(threshold * (H * W - 1))] < S

    def noised(t: int, z: Array) -> Array:
        return math.sqrt(alpha_bar[t]) * x + math.sqrt(1 - alpha_bar[t]) * z

    x_t = noised(t_star, draw(C, H, W))
    for t in range(t_star, 0, -1):
        alpha = alpha_bar[t] / alpha_bar[t - 1]
        beta = 1 - alpha
        e = eps(x_t, t - 1)
        z = draw(C, H, W) if t > 1 else np.zeros(x.shape)
        following = noised(t - 1, z)
        for c in range(C):
            for i in range(H):
                for j in range(W):
                    if not salient[i, j]:
                        continue
                    x_0 = (x_t[c, i, j] - math.sqrt(1 - alpha_bar[t]) * e[c, i, j]) / math.sqrt(alpha_bar[t])
                    x_0 = min(max(x_0, -1.0), 1.0)
                    mean = math.sqrt(alpha_bar[t - 1]) * beta / (1 - alpha_bar[t]) * x_0
                    mean += math.sqrt(alpha) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * x_t[c, i, j]
                    sigma = math.sqrt(beta * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]))
                    following[c, i, j] = mean + sigma * z[c, i, j]
        x_t = following
    return x_t
