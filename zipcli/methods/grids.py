"""Which timesteps a chain visits, and in which order."""

import math
from itertools import pairwise

from zipcli.config import MethodConfig, NoiseSchedule
from zipcli.errors import ConfigError
from zipcli.schedule import alpha_bars as alpha_bars_of

CLEAN = -1
"""The index after the last step: alpha_bar is exactly 1 there. Never an index into a table."""

HIGHEST_START = 1e-3
"""A chain starts from pure noise, so its first alpha_bar must be about 0."""


def chain(config: MethodConfig, alpha_bars: list[float]) -> list[int]:
    """List the timesteps of a run in the order they are visited, ending with CLEAN.

    Args:
        config: Grid, steps and time travel.
        alpha_bars: alpha_bar of every timestep of the model.

    Raises:
        ConfigError: The grid has too many steps, or does not start at pure noise.
    """
    visited = timesteps(config.grid, config.steps, len(alpha_bars))
    if alpha_bars[visited[0]] > HIGHEST_START:
        raise ConfigError(
            f"steps: with grid {config.grid} and {config.steps} steps the chain starts at timestep "
            f"{visited[0]}, where {math.sqrt(alpha_bars[visited[0]]):.1%} of the image should still be "
            "there; use --grid paper, or another number of steps"
        )
    if config.travel_repeat > 1 and config.travel_length >= len(visited):
        raise ConfigError(
            f"travel length: {config.travel_length} is not less than the {len(visited)} steps of the chain"
        )
    rising = [*reversed(visited)]
    walk = time_travel(len(visited), config.travel_length, config.travel_repeat)
    return [CLEAN if position == CLEAN else rising[position] for position in walk]


def evaluations(config: MethodConfig, schedule: NoiseSchedule, size: tuple[int, int]) -> int:
    """Calls of the network for an image: as many as there are steps that do not go back.

    Raises:
        ConfigError: The chain does not fit the model.
    """
    visited = chain(config, alpha_bars_of(schedule).tolist())
    return sum(following < step for step, following in pairwise(visited))


def timesteps(grid: str, steps: int, total: int) -> list[int]:
    """List the 0-based timesteps of a chain, falling, without the final clean state.

    Args:
        grid: official is s(K-1), ..., s, 0 with s = T // K (ZIP's program and ADM's ddimK);
            paper is T-1, T-1-s, ..., s-1, 0 (ZIP, Algorithm 2: T, T-S, ..., S, 1); full is all.
        steps: K, at most T.
        total: T.

    Raises:
        ConfigError: More steps than timesteps.
    """
    if grid == "full":
        return list(range(total - 1, -1, -1))
    if steps > total:
        raise ConfigError(f"steps: {steps} is more than the {total} timesteps of the model")
    stride = total // steps
    if grid == "official":
        return [stride * k for k in range(steps - 1, -1, -1)]
    visited = list(range(total - 1, -1, -stride))
    return visited if visited[-1] == 0 else [*visited, 0]


def time_travel(count: int, length: int, repeat: int) -> list[int]:
    """List the positions of a chain that goes back and forth (RePaint; spec of DDNM).

    Args:
        count: Steps of the chain; position count - 1 is the noisiest.
        length: How far back each jump goes.
        repeat: How often each stretch is walked; 1 means no jumps.

    Returns:
        Positions, ending with -1 for the clean state. (6, 2, 2) gives
        5 4 3 2 3 4 3 2 1 0 1 2 1 0 -1.

    Source: Lugmayr et al. 2022 (RePaint), appendix; Wang et al. 2023 (DDNM), Algorithm 2.
    """
    jumps = dict.fromkeys(range(0, count - length, length), repeat - 1)
    walk = []
    t = count
    while t >= 1:
        t -= 1
        walk.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(length):
                t += 1
                walk.append(t)
    return [*walk, -1]
