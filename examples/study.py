"""Every defence against every attack on CIFAR-10, with what each costs; where we lose comes first.

    python examples/train_classifier.py base.safetensors                                   # once
    python examples/study.py work base.safetensors --images 500 --seeds 3 > study.md
    python examples/study.py work base.safetensors --attacks badnets,sig --methods default,blur
    python examples/study.py work base.safetensors --attacks wanet --methods sigma=0,method=zip+steps=3

Poisoned images and victims are those of attack_loop.py, in the same WORK, and are made where they are
missing. All defences see the same images. What was measured is kept in WORK/study by its settings, victim
and images, and is not measured twice, so a study that was stopped goes on; remove that folder after changing
how a method computes. WORK/study/result.json has everything, with the interval of each share over the images.
"""

import argparse
import hashlib
import json
import math
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attack_loop import TRIGGERS, unpack, victim
from measure_samplers import Pixels, purify, tensor
from torch import Tensor
from train_classifier import classify, load_classifier

from zipcli import Purifier, __version__, metrics
from zipcli.classifiers import open_classifier
from zipcli.config import ClassifierConfig, FolderConfig, PurifyConfig, purify_config
from zipcli.images.write import psnr
from zipcli.pipeline.evaluation import share_json
from zipcli.pipeline.poisoned_set import Picture, read_picture, read_poisoned_set
from zipcli.pipeline.windows import WindowedModel
from zipcli.protocols import Classifier, EpsModel, Prediction


@dataclass(frozen=True)
class Defence:
    """Settings of `purify_config`, and how much of the study they can afford.

    Attributes:
        settings: What a user of this defence says; None does not purify.
        images: Most images of each kind, spread evenly; None for all.
        seeds: Most seeds; None for all.
        asks: Whether the method asks the victim for labels.
    """

    settings: dict[str, Any] | None
    images: int | None = None
    seeds: int | None = None
    asks: bool = False


DEFENCES = {
    "none": Defence(None),
    "default": Defence({}),
    "blur": Defence({"method": "blur"}),
    "zip": Defence({"method": "zip", "sampler": "ddim"}),  # the chain of the paper
    "nullspace": Defence({"method": "nullspace"}),
    "ddnm": Defence({"variant": "ddnm-paper"}, images=100, seeds=1),
    "diffpure": Defence({"variant": "diffpure-cifar10"}, images=100, seeds=1),
    "blur+diffpure": Defence({"method": "blur+diffpure"}, images=100, seeds=1),
    "sampdetox-paper": Defence({"variant": "sampdetox-paper"}),
    "sampdetox-code": Defence({"variant": "sampdetox-code"}, images=100, seeds=1),
    "shrinkpad": Defence({"variant": "shrinkpad-backdoorbox"}),
    "gray": Defence({"method": "gray"}),
    "sancdifi": Defence({"method": "sancdifi"}, images=25, seeds=1, asks=True),
    "bdmae": Defence({"method": "bdmae"}, images=25, seeds=1, asks=True),
}

OURS = "default"
"""The defence whose losses are listed."""

BETTER = {"CA": 1, "ASR": -1, "PA": 1, "PSNR": 1}
"""What defences are compared by, and whether more of it is better."""

COSTS = ("evaluations", "labels", "images_per_s")

STUDENT = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles by degrees of freedom; beyond them that of the normal distribution comes near."""

NOTES = """\
CA, ASR (images of other classes than the target) and PA (all images) in %. Behind ± is half of Student's 95 %
interval over the seeds of the purification; what draws nothing, or draws once, has none. There is one victim
for each attack: how victims differ is in no interval. PSNR is of purified clean images, against those.
Evaluations (of the diffusion prior) and labels (asked of the victim) are for an image; images/s are for one
core, by processor time, and on a GPU by the clock. A loss is one on the images that the other method has
seen, which may be fewer.
"""


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--attacks", default=",".join(TRIGGERS))
    parser.add_argument("--methods", default=",".join(DEFENCES))
    parser.add_argument("--images", type=int, default=500, help="test images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--training-images", type=int, default=25_000)
    parser.add_argument("--made-at", type=float, default=85, help="ASR in %% from which an attack is made")
    options = parser.parse_args()
    methods = list(dict.fromkeys(["none", OURS, *options.methods.split(",")]))
    for name in methods:
        if "=" in name:
            DEFENCES[name] = Defence(dict(setting(word) for word in name.split("+")))
    if unknown := [name for name in methods if name not in DEFENCES]:
        parser.error(f"--methods: {', '.join(unknown)} not among {', '.join(DEFENCES)}")
    unpack("cifar10-train.zip", options.work / "train", options.training_images)
    unpack("cifar10-test.zip", options.work / "test", options.images)
    unpack("photos-256.zip", options.work / "reflections", 200)
    sets = []
    for attack in options.attacks.split(","):
        sets.append(read_set(attack, *victim(options.work, options.base, attack), options.images))
    store = Store(options.work / "study")
    cells = [cell for name in methods for cell in measure(name, sets, options.seeds, store)]
    study = Study(cells, {each.attack: ceiling(each, options.base) for each in sets}, options.made_at)
    print("\n".join(study.lines()))
    store.write("result.json", study.as_json())


def seeded(config: PurifyConfig, seed: int) -> PurifyConfig:
    """The same settings with a seed, if the method draws anything."""
    return config.changed(seed=seed) if "seed" in config.pixel_settings() else config


def setting(text: str) -> tuple[str, Any]:
    """A field of `PurifyConfig` and its value, from NAME=VALUE."""
    name, _, value = text.partition("=")
    if name == "transforms":
        return name, value.split(",")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            pass
    return name, value


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Test images with and without the trigger of an attack, and the victim that fell for it."""

    __test__ = False  # for pytest

    attack: str
    victim: Path
    target: int
    clean: list[Pixels]
    labels: np.ndarray
    poisoned: list[Pixels]
    poisoned_labels: np.ndarray

    def fewer(self, limit: int | None) -> "TestSet":
        """At most so many images of each kind."""
        names = ("clean", "labels", "poisoned", "poisoned_labels")
        return replace(self, **{name: spread(getattr(self, name), limit) for name in names})


def read_set(attack: str, file: Path, folder: Path, limit: int) -> TestSet:
    """Read the images of a folder that attack_loop.py has made; `file` is the victim."""
    found = read_poisoned_set(folder, FolderConfig(), lambda: None)
    assert found.target is not None

    def pixels(pictures: Sequence[Picture]) -> list[Pixels]:
        return [read_picture(folder, picture)[0] for picture in pictures]

    clean, poisoned = spread(found.clean, limit), spread(found.poisoned, limit)
    return TestSet(
        attack=attack,
        victim=file,
        target=found.target,
        clean=pixels(clean),
        labels=np.array([picture.label for picture in clean]),
        poisoned=pixels(poisoned),
        poisoned_labels=np.array([picture.label for picture in poisoned]),
    )


def spread(items: Any, limit: int | None) -> Any:
    """At most so many, spread evenly: items are sorted by class."""
    if limit is None or limit >= len(items):
        return items
    chosen = [k * len(items) // limit for k in range(limit)]
    return items[chosen] if isinstance(items, np.ndarray) else [items[k] for k in chosen]


class Store:
    """Keeps results by the digest of all that decides them."""

    def __init__(self, folder: Path) -> None:
        """Keep them in a folder."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def facts(self, name: str, key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The facts that belong to a key, which is anything for JSON; they are made where there are none."""
        file = f"{name}-{digest(key)}.json"
        if not (self.folder / file).exists():
            self.write(file, make())
        return json.loads((self.folder / file).read_text())

    def images(
        self, name: str, key: Any, make: Callable[[], tuple[list[Pixels], dict[str, Any]]]
    ) -> tuple[list[Pixels], dict[str, Any]]:
        """The same for images of one size, and facts about them."""
        file = self.folder / f"{name}-{digest(key)}.npz"
        if not file.exists():
            images, facts = make()
            part = file.with_suffix(".part")
            with part.open("wb") as f:
                np.savez(f, images=np.stack(images), facts=json.dumps(facts))
            part.rename(file)
        with np.load(file) as found:
            return list(found["images"]), json.loads(str(found["facts"]))

    def write(self, file: str, facts: dict[str, Any]) -> None:
        """Write a file, whole or not at all."""
        part = self.folder / (file + ".part")
        part.write_text(json.dumps(facts))
        part.rename(self.folder / file)


def digest(key: Any) -> str:
    """What tells a key for JSON from others."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


class CountedModel(WindowedModel):
    """A model that counts the images that it is shown, however many calls of the network they take."""

    evaluations = 0

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Predict the noise; see `EpsModel`."""
        self.evaluations += len(x_t)
        return super().__call__(x_t, t)


class CountedPurifier(Purifier):
    """A purifier that counts the evaluations of its prior."""

    def use(self, model: EpsModel, fingerprint: dict[str, Any], *, batch_invariant: bool = False) -> None:
        """Purify with a model."""
        super().use(model, fingerprint, batch_invariant=batch_invariant)
        window = self.window(model.schedule, model.native_side)
        self._model = CountedModel(model, *window, batch_invariant=batch_invariant)

    @property
    def evaluations(self) -> int:
        """How many there were; of no prior none."""
        return self._model.evaluations if isinstance(self._model, CountedModel) else 0


@dataclass
class CountedClassifier:
    """A classifier that counts the images that it is shown."""

    classifier: Classifier
    labels: int = 0

    def __call__(self, images: Sequence[Pixels], /) -> Prediction:
        """Classify; see `Classifier`."""
        self.labels += len(images)
        return self.classifier(images)


class Run:
    """A defence with a seed.

    Attributes:
        settings: What decides the purified pixels, for JSON.
    """

    def __init__(
        self, defence: Defence, seed: int, file: Path | None = None, asked: CountedClassifier | None = None
    ) -> None:
        """Load what the defence needs; one that asks gets the file of the victim, and the victim, opened."""
        self.purifier, self.asked = None, asked
        self.settings: dict[str, Any] = {"method": "none"}
        if defence.settings is None:
            return
        given = dict(defence.settings)
        if asked is not None:
            given["classifier"] = ClassifierConfig(classifier=str(file))
        self.purifier = CountedPurifier.from_config(seeded(purify_config(**given), seed))
        self.settings = self.purifier.fingerprint_parts
        if asked is not None:
            self.purifier.ask_with(asked)

    def purify(self, images: list[Pixels]) -> tuple[list[Pixels], dict[str, float]]:
        """Purified images, and what that has cost."""
        before = self._spent()
        clean = purify(self.purifier, images) if self.purifier else images
        return clean, {name: value - before[name] for name, value in self._spent().items()}

    def _spent(self) -> dict[str, float]:
        if self.purifier is None:
            return {"s": 0}
        on_cpu = self.purifier.device.type == "cpu"
        return {
            "evaluations": self.purifier.evaluations,
            "labels": self.asked.labels if self.asked else 0,
            "s": time.process_time() if on_cpu else time.perf_counter(),
        }


def measure(name: str, sets: list[TestSet], seeds: int, store: Store) -> Iterator[dict[str, Any]]:
    """A cell for each attack and seed of a defence."""
    defence = DEFENCES[name]
    for seed in range(min(seeds, defence.seeds or seeds)):
        run = None if defence.asks else Run(defence, seed)
        for images in (each.fewer(defence.images) for each in sets):
            print(f"{name}, seed {seed}, {images.attack}", file=sys.stderr, flush=True)
            about = {"defence": name, "attack": images.attack, "seed": seed}
            if run is not None:
                yield about | measure_cell(run, images, store)
                continue
            with open_classifier(ClassifierConfig(classifier=str(images.victim))) as classifier:
                asking = Run(defence, seed, images.victim, CountedClassifier(classifier))
                yield about | measure_cell(asking, images, store)


def measure_cell(run: Run, images: TestSet, store: Store) -> dict[str, Any]:
    """What the victim says of purified images, and what those have cost."""
    victim_sha256 = hashlib.sha256(images.victim.read_bytes()).hexdigest()
    settings = [run.settings, victim_sha256] if run.asked else [run.settings]
    method = run.settings["method"]

    def purify_clean() -> tuple[list[Pixels], dict[str, Any]]:
        clean, cost = run.purify(images.clean)
        return clean, {"cost": cost}

    def look() -> dict[str, Any]:
        key = [*settings, pixels_digest(images.clean)]
        clean, facts = store.images(f"{method}-clean", key, purify_clean)
        poisoned, cost = run.purify(images.poisoned)
        total, costs = len(clean) + len(poisoned), Counter(cost) + Counter(facts["cost"])
        on_clean, on_poisoned = answers(images.victim, clean), answers(images.victim, poisoned)
        return {
            "settings": run.settings,
            "images": [len(clean), len(poisoned)],
            **shares(images, on_clean, on_poisoned),
            "evaluations": costs["evaluations"] / total,
            "labels": costs["labels"] / total,
            "images_per_s": total / costs["s"] if run.purifier else None,
            "each": {**each_image(images, on_clean, on_poisoned), "PSNR": distances(images.clean, clean)},
        }

    key = [run.settings, victim_sha256, pixels_digest(images.clean), pixels_digest(images.poisoned)]
    return store.facts(f"{method}-{images.attack}", key, look)


def shares(images: TestSet, on_clean: np.ndarray, on_poisoned: np.ndarray) -> dict[str, Any]:
    """CA, ASR and PA, as `zipcli evaluate` has them, from the labels that a victim gave."""
    labels = images.poisoned_labels
    return {
        "CA": share_json(metrics.clean_accuracy(images.labels, on_clean)),
        "ASR": share_json(metrics.attack_success(labels, on_poisoned, images.target)),
        "PA": share_json(metrics.poisoned_accuracy(labels, on_poisoned)),
    }


def each_image(images: TestSet, on_clean: np.ndarray, on_poisoned: np.ndarray) -> dict[str, Any]:
    """The same for each image; None where it does not count."""
    labels = images.poisoned_labels
    successes = (on_poisoned == images.target).astype(int).tolist()
    return {
        "CA": (on_clean == images.labels).astype(int).tolist(),
        "ASR": [None if own else hit for own, hit in zip(labels == images.target, successes, strict=True)],
        "PA": (on_poisoned == labels).astype(int).tolist(),
    }


def distances(images: list[Pixels], purified: list[Pixels]) -> list[float | None]:
    """The PSNR of each image in decibels; None of one that was not changed."""
    found = [psnr(a, b) for a, b in zip(images, purified, strict=True)]
    return [round(value, 4) if math.isfinite(value) else None for value in found]


def mean_or_none(values: Sequence[float]) -> float | None:
    """Their mean; None of none."""
    return statistics.mean(values) if values else None


def pixels_digest(images: list[Pixels]) -> str:
    """What tells images from others."""
    return hashlib.sha256(np.stack(images).tobytes()).hexdigest()


def answers(file: Path, images: list[Pixels]) -> np.ndarray:
    """The labels that a victim gives."""
    with open_classifier(ClassifierConfig(classifier=str(file))) as classifier:
        return classifier(images).labels


def ceiling(images: TestSet, base: Path) -> float:
    """PA in % of a classifier without a backdoor: it loses only what the trigger hides of the images."""
    found = classify(load_classifier(base), tensor(images.poisoned)).numpy()
    return 100 * float((found == images.poisoned_labels).mean())


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, and half of its 95 % interval, where there is one."""

    value: float
    half: float | None = None

    def text(self, digits: int = 1) -> str:
        """For a table."""
        return f"{self.value:.{digits}f}" + ("" if self.half is None else f" ± {self.half:.{digits}f}")


class Study:
    """The results.

    Attributes:
        rows: Of each attack and defence, the mean of each measure, where there is one.
        means: Of each defence, the same over the attacks that are made.
        made: Attacks that succeed without a defence, so that a defence has something to do.
    """

    def __init__(self, cells: list[dict[str, Any]], ceilings: dict[str, float], made_at: float) -> None:
        """Average the cells; `made_at` is an ASR in %."""
        self.cells, self.ceilings, self.made_at = cells, ceilings, made_at
        self.defences = list(dict.fromkeys(cell["defence"] for cell in cells))
        pairs = product(ceilings, self.defences)
        self.rows = {(attack, defence): self._row([attack], defence) for attack, defence in pairs}
        self.made = [attack for attack in ceilings if self.rows[attack, "none"]["ASR"].value >= made_at]
        self.means = {defence: self._row(self.made, defence) for defence in self.defences}

    def _row(self, attacks: list[str], defence: str, limit: int | None = None) -> dict[str, Mean]:
        """The mean over attacks for each seed, then over the seeds; of so many of the images."""
        cells = [cell for cell in self.cells if cell["defence"] == defence and cell["attack"] in attacks]
        by_seed = [[cell for cell in cells if cell["seed"] == seed] for seed in {c["seed"] for c in cells}]
        drawn = len({digest(some[0]["settings"]) for some in by_seed}) > 1
        row = {}
        for name in (*BETTER, *COSTS):
            found = [[figure(cell, name, limit) for cell in some] for some in by_seed]
            values = [mean_or_none([value for value in some if value is not None]) for some in found]
            if values and None not in values:
                half = half_interval(values) if drawn else None
                row[name] = Mean(statistics.mean(values), half)
        return row

    def losses(self) -> list[list[str]]:
        """Cells where another defence is better than ours, on the images that the other has seen.

        Not purifying is no defence.
        """
        others = [name for name in self.defences if name not in ("none", OURS)]
        ours = {
            pair: self._row(pair[:1], OURS, self._images_of(pair[1])) for pair in product(self.made, others)
        }
        found = []
        for attack, (measure, sign) in product(self.made, BETTER.items()):
            gaps = {
                name: sign * (self.rows[attack, name][measure].value - ours[attack, name][measure].value)
                for name in others
                if measure in self.rows[attack, name] and measure in ours[attack, name]
            }
            name = max(gaps, key=gaps.__getitem__, default="")
            if name and gaps[name] > 0:
                pair = ours[attack, name][measure], self.rows[attack, name][measure]
                within = "yes" if gaps[name] <= sum(mean.half or 0 for mean in pair) else ""
                found.append([attack, measure, *(mean.text() for mean in pair), name, within])
        return found

    def _images_of(self, defence: str) -> int:
        """How many images of each kind a defence has seen."""
        return max(max(cell["images"]) for cell in self.cells if cell["defence"] == defence)

    def lines(self) -> Iterator[str]:
        """Everything as markdown."""
        losses = self.losses()
        yield f"## Where another defence is better than {OURS}: {len(losses)} of {4 * len(self.made)} cells\n"
        head = ["attack", "measure", OURS, "the best other", "which is", "within the intervals"]
        yield from table(head, losses)
        for attack in self.ceilings:
            if attack not in self.made:
                asr = self.rows[attack, "none"]["ASR"].value
                yield f"\nNot made: {attack}, whose ASR without a defence is {asr:.1f} %."
        names = ["CA", "ASR", "PA", "PSNR", "evaluations", "labels", "images/s"]
        yield f"\n## Means over the {len(self.made)} attacks that are made\n"
        head = ["method", *names, "worst ASR", "images", "seeds"]
        yield from table(head, [self._mean_line(name) for name in self.defences] if self.made else [])
        yield "\n## Each attack\n"
        lines = [
            [attack, name, *texts(self.rows[attack, name])]
            for attack, name in product(self.ceilings, self.defences)
        ]
        yield from table(["attack", "method", *names], lines)
        yield "\n## The most that PA can be: a classifier without a backdoor on the images with the trigger\n"
        yield from table(["attack", "PA"], [[name, f"{pa:.1f}"] for name, pa in self.ceilings.items()])
        yield "\n" + NOTES

    def _mean_line(self, name: str) -> list[str]:
        worst = max(self.made, key=lambda attack: self.rows[attack, name]["ASR"].value)
        cells = [cell for cell in self.cells if cell["defence"] == name]
        return [
            name,
            *texts(self.means[name]),
            f"{self.rows[worst, name]['ASR'].text()} ({worst})",
            str(cells[0]["images"][1]),
            str(len({cell["seed"] for cell in cells})),
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything for JSON, and where it was measured."""

        def means(row: dict[str, Mean]) -> dict[str, Any]:
            return {name: {"mean": mean.value, "half": mean.half} for name, mean in row.items()}

        return {
            "losses": self.losses(),
            "not_made": [attack for attack in self.ceilings if attack not in self.made],
            "means": {name: means(row) for name, row in self.means.items()},
            "rows": [
                {"attack": attack, "defence": name, **means(row)} for (attack, name), row in self.rows.items()
            ],
            "pa_ceiling": self.ceilings,
            "cells": [{name: cell[name] for name in cell if name != "each"} for cell in self.cells],
            "versions": {"zipcli": __version__, "torch": torch.__version__},
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        }


def figure(cell: dict[str, Any], name: str, limit: int | None) -> float | None:
    """A measure of a cell, shares in %, over so many of the images; None where there is none."""
    if name not in BETTER:
        return cell[name]
    mean = mean_or_none([value for value in spread(cell["each"][name], limit) if value is not None])
    return mean if mean is None or name == "PSNR" else 100 * mean


def half_interval(values: list[float]) -> float:
    """Half of Student's 95 % interval of a mean."""
    n = len(values)
    quantile = STUDENT[n - 1] if n <= len(STUDENT) else 1.96
    return quantile * statistics.stdev(values) / math.sqrt(n)


def texts(row: dict[str, Mean]) -> list[str]:
    """The measures of a row for a table."""
    compared = [row[name].text(2 if name == "PSNR" else 1) if name in row else "" for name in BETTER]
    return compared + [f"{row[name].value:,.1f}" if name in row else "" for name in COSTS]


def table(head: list[str], lines: list[list[str]]) -> Iterator[str]:
    """Lines of markdown."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for line in lines:
        yield f"| {' | '.join(line)} |"


if __name__ == "__main__":
    main()
