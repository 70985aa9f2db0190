"""Which images of a training set are poisoned, and which are cover samples."""

import hashlib
import os
import random
from collections.abc import Sequence

import numpy as np

from zipcli.config import CLEAN_LABEL, AttackConfig, check


def choose(
    config: AttackConfig, labels: Sequence[int], paths: Sequence[str], target: int, source: int | None
) -> tuple[set[int], set[int]]:
    """Choose the indices to poison, and those of cover samples.

    Args:
        config: Rate, share of cover samples, seed and way of choosing.
        labels: Class index of each image, in the order of the data set.
        paths: Path of each image relative to the input folder.
        target: Class index that the attacker wants.
        source: Class index of the only images that the attack alters, or None.

    Raises:
        ConfigError: A clean-label attack wants more images than the target class has.
    """
    total = len(labels)
    own = target if config.attack in CLEAN_LABEL and config.split == "train" else source
    candidates = [k for k in range(total) if own is None or labels[k] == own]
    count = _count(config, total, len(candidates))
    check(
        count <= len(candidates) or source is not None,
        f"rate: {config.rate:g} of all {total:,} images are {count:,}, but attack {config.attack} alters "
        f"images of the target class only, and it has {len(candidates):,}; use a rate of at most "
        f"{len(candidates) / max(1, total):.4f}",
    )
    order = _ordered(config, candidates, paths, total)
    poisoned = order[:count]
    covers = round((config.cover or 0) * total) if config.split == "train" else 0
    if own is not None:
        chosen = set(poisoned)
        order = poisoned + [k for k in _ordered(config, list(range(total)), paths, total) if k not in chosen]
    return set(poisoned), set(order[len(poisoned) : len(poisoned) + covers])


def _count(config: AttackConfig, total: int, candidates: int) -> int:
    """How many are poisoned: ZIP and BackdoorBox round down, BackdoorBench to even."""
    if config.attack == "lc" and config.profile == "backdoorbox" and config.split == "train":
        total = candidates  # its rate is of the target class
    return int(total * config.rate) if config.choice == "python" else round(total * config.rate)


def _ordered(config: AttackConfig, candidates: list[int], paths: Sequence[str], total: int) -> list[int]:
    """The candidates in the order in which they are taken."""
    if config.choice == "numpy":
        order = np.random.RandomState(config.seed).permutation(len(candidates))
        return [candidates[k] for k in order]
    if config.choice == "python":
        shuffler = random.Random(config.seed)
        if config.attack == "physical" and config.test_images is not None:
            # The released program builds its training set twice, with the test set in between.
            for length in (total, config.test_images):
                shuffler.shuffle(list(range(length)))
        shuffled = list(candidates)
        shuffler.shuffle(shuffled)
        return shuffled
    return sorted(candidates, key=lambda k: _rank(config, paths[k]))


def _rank(config: AttackConfig, path: str) -> bytes:
    """A number that depends on the image's path alone."""
    return hashlib.sha256(f"{config.seed}\0{config.attack}\0choice\0".encode() + os.fsencode(path)).digest()
