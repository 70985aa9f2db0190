"""Attackers who know the defence: they have its program, prior and settings, and lack only its draws.

    python examples/train_classifier.py base.safetensors                                      # once
    python examples/adaptive.py work base.safetensors                                         # the default
    python examples/adaptive.py work base.safetensors --method zip --set sampler=ddim --stages poisoning

    poisoning   BadNets and Blended, where the images that the victim learns from were purified with the same
                settings and other noise once they had the trigger (ZIP, table 4)
    optimised   a patch, and a bounded change of the whole image, fitted to be kept: by gradients through
                transforms, network and sampler, over images and noise
    smooth      the same of a change that has low frequencies only, for several bands (Zeng et al. 2021)
    resubmit    the victims of attack_loop.py, shown each image ten times with other noise: the best of ten
                counts an image if any of them gets through

Each trigger has its own victim, fine-tuned from BASE with a tenth of its images poisoned. "kept" is the
share of a trigger d that is left in purified images, <P(x + d) - P(x), d> / <d, d>, and PSNR is of the images
with the trigger; all else is in %, too. A trigger that hardly works before the defence tells little of it:
give its victim more --epochs or --training-images. Results stay in WORK/adaptive by all that decides them,
and are not made twice, so that a run which was stopped goes on; remove that folder after changing how a
method computes. About half an hour on two cores with the default method, once WORK has the victims of
attack_loop.py. It reads cifar10-train.zip and cifar10-test.zip from ../shared/data, or from the folder that
ZIPCLI_DATA names.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attack_loop import unpack, victim
from measure_samplers import Pixels, purify, tensor
from study import (
    Store,
    TestSet,
    answers,
    digest,
    pixels_digest,
    read_set,
    seeded,
    setting,
    shares,
    spread,
    table,
)
from torch import Tensor
from train_classifier import CLASSES, labelled_images, load_classifier
from train_victim import export, fine_tune

from zipcli import Purifier
from zipcli.attacks import ATTACKS
from zipcli.config import METHOD_ASKS, attack_config, purify_config
from zipcli.images.write import psnr
from zipcli.methods import METHODS
from zipcli.metrics import attack_success, share
from zipcli.models.loading import load_model
from zipcli.pipeline.evaluation import share_json
from zipcli.pipeline.windows import WindowedModel
from zipcli.protocols import Noise
from zipcli.transforms import make_operator

SIDE = 32
TARGET = 0
DEFENDER, ATTACKER = 0, 1000
"""Seeds of the noise: the attacker cannot know that of the defender."""

MARGIN = 3
"""Pixels between a patch and the bottom right corner, as in the program of ZIP."""

LR = 0.1

Facts = dict[str, Any]


def main() -> None:
    """Do what is missing, and print a table for each stage."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--method", help="of the defence")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of PurifyConfig")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--images", type=int, default=500, help="test images")
    parser.add_argument("--training-images", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=0.1, help="share of them that is poisoned")
    parser.add_argument("--epochs", type=int, default=4, help="of each victim")
    parser.add_argument("--steps", type=int, default=100, help="of fitting a trigger")
    parser.add_argument("--batch-size", type=int, default=16, help="images in such a step")
    parser.add_argument("--patches", default="3,5", help="sides of the patches in pixels")
    parser.add_argument("--bounds", default="16,32", help="largest change of a pixel, in levels of 255")
    parser.add_argument("--bands", default="2,4,8", help="frequencies of the smooth changes, along each axis")
    parser.add_argument("--smooth-bound", type=int, default=16, help="their largest change of a pixel")
    parser.add_argument("--purified", action="store_true", help="their victims learn from purified ones")
    parser.add_argument("--submissions", type=int, default=10)
    parser.add_argument("--attacks", default="badnets,blended,wanet", help="whose images are submitted again")
    options = parser.parse_args()
    if options.method in METHOD_ASKS:
        parser.error(f"--method: {options.method} asks a classifier, and has no gradient")
    stages = options.stages.split(",")
    if unknown := [name for name in stages if name not in STAGES]:
        parser.error(f"--stages: {', '.join(unknown)} not among {', '.join(STAGES)}")
    lab = Lab(options)
    results: Facts = {"settings": lab.settings, "options": {k: str(v) for k, v in vars(options).items()}}
    for name in stages:
        results[name] = list(STAGES[name](lab))
        shown = [words(facts) for facts in results[name]]
        print(f"## {name}\n")
        print("\n".join(table(list(shown[0]), [list(line.values()) for line in shown])) + "\n", flush=True)
    lab.store.write(f"result-{lab.config.method}-{digest(results['options'])}.json", results)


def words(facts: Facts) -> dict[str, str]:
    """A row for people: shares in %."""
    shown = {
        name: 100 * found["value"] if isinstance(found, dict) else found for name, found in facts.items()
    }
    return {name: found if name == "trigger" else f"{found:.1f}" for name, found in shown.items()}


class Lab:
    """What an attacker has: images, a clean classifier, and the defence.

    Attributes:
        config: The defence.
        settings: What decides its pixels, for JSON.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        """Load the defence."""
        self.options = options
        given = dict(setting(text) for text in options.set) | {"method": options.method}
        purifier = Purifier.from_config(purify_config(**given))
        self.config = purifier.config  # not what was given: the model may decide the method
        self.settings = purifier.fingerprint_parts
        self.store = Store(options.work / "adaptive")
        self.key = [
            self.settings,
            [options.images, options.training_images, options.rate, options.epochs],
            hashlib.sha256(options.base.read_bytes()).hexdigest(),
        ]

    def purify(self, images: list[Pixels], seed: int) -> list[Pixels]:
        """What the defence makes of images, with the noise of a seed."""
        return purify(Purifier.from_config(seeded(self.config, seed)), images)

    @cached_property
    def training(self) -> tuple[list[Pixels], np.ndarray]:
        """Images to learn from, and their labels."""
        return read_images("cifar10-train.zip", self.options.training_images)

    @cached_property
    def test(self) -> tuple[list[Pixels], np.ndarray]:
        """Images to purify, and their labels."""
        return read_images("cifar10-test.zip", self.options.images)

    @cached_property
    def purified(self) -> list[Pixels]:
        """Those, purified without a trigger."""
        return self.purify(self.test[0], DEFENDER)

    def differentiable(self, x: Tensor, noise: Noise) -> Tensor:
        """The defence in float32, with a gradient; (N, 3, H, W) in [-1, 1]."""
        model, operators = self._parts
        return METHODS[self.config.method](x, model, operators, self.config, noise=noise).clamp(-1, 1)

    @cached_property
    def _parts(self) -> tuple[WindowedModel | None, tuple[Any, ...]]:
        """The prior as it is loaded, since what `Purifier` makes of it for speed has no gradient."""

        def no_mask(name: str) -> Tensor:
            sys.exit(f"{name}: no trigger can be fitted to the transform mask")

        operators = tuple(make_operator(text, no_mask) for text in self.config.transforms)
        if not self.config.needs_model:
            return None, operators
        model = load_model(self.config.model, torch.device("cpu"), "float32").model
        side, overlap = Purifier(self.config).window(model.schedule, model.native_side)
        return WindowedModel(model, side, overlap), operators


def read_images(archive: str, limit: int) -> tuple[list[Pixels], np.ndarray]:
    """Images and labels, spread evenly over an archive."""
    x, labels = labelled_images(archive, limit)
    return spread(to_pixels(x), limit), spread(labels.numpy(), limit)


def to_pixels(x: Tensor) -> list[Pixels]:
    """Images in [-1, 1], (N, 3, H, W), as those of a file."""
    levels = ((x.clamp(-1, 1) + 1) * 127.5 + 0.5).floor().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).contiguous().numpy())


# Victims


@dataclass(frozen=True)
class Trigger:
    """What an attacker puts on images.

    Attributes:
        put_on: Gives the images with the trigger.
        poison: What is done to those that the victim learns from, besides.
    """

    name: str
    put_on: Callable[[list[Pixels]], list[Pixels]]
    poison: Callable[[list[Pixels]], list[Pixels]] = lambda images: images


def attack(lab: Lab, trigger: Trigger) -> Facts:
    """Train a victim, and say what it makes of images with the trigger, before and after the defence."""
    images, labels = lab.test
    triggered = trigger.put_on(images)

    def look() -> Facts:
        print(f"{trigger.name}: training its victim", file=sys.stderr, flush=True)
        file = train_victim(lab, trigger)
        purified = lab.purify(triggered, DEFENDER)
        seen = TestSet(
            attack=trigger.name,
            victim=file,
            target=TARGET,
            clean=images,
            labels=labels,
            poisoned=triggered,
            poisoned_labels=labels,
        )
        before = shares(seen, answers(file, images), answers(file, triggered))
        after = shares(seen, answers(file, lab.purified), answers(file, purified))
        return {
            "trigger": trigger.name,
            "PSNR": float(np.mean([psnr(a, b) for a, b in zip(images, triggered, strict=True)])),
            "kept": kept(tensor(triggered) - tensor(images), tensor(purified) - tensor(lab.purified)),
            **{f"{name} before": value for name, value in before.items()},
            **{f"{name} after": value for name, value in after.items()},
        }

    name = f"{lab.config.method}-{trigger.name}"
    return lab.store.facts(name, [lab.key, trigger.name, pixels_digest(triggered)], look)


def kept(wanted: Tensor, found: Tensor) -> dict[str, float]:
    """How much of a change is found again: a share, but for what lies across it."""
    return {"value": float((wanted * found).sum() / wanted.square().sum())}


def train_victim(lab: Lab, trigger: Trigger) -> Path:
    """Fine-tune the clean classifier on images of which some have the trigger and the attacker's label."""
    images, labels = lab.training
    draw = np.random.default_rng(0)
    others = np.flatnonzero(labels != TARGET)
    chosen = np.sort(draw.permutation(others)[: round(lab.options.rate * len(images))])
    images, labels = list(images), labels.copy()
    for k, poisoned in zip(chosen, trigger.poison(trigger.put_on([images[k] for k in chosen])), strict=True):
        images[k] = poisoned
    labels[chosen] = TARGET
    torch.manual_seed(0)
    model = load_classifier(lab.options.base)
    # Not mirrored: a trigger that lies on one side would be learned on both.
    fine_tune(model, tensor(images), torch.from_numpy(labels), lab.options.epochs, mirror=False)
    file = lab.store.folder / f"{lab.config.method}-{trigger.name}-victim.pt"
    export(model, list(CLASSES), file)
    return file


def poisoning(lab: Lab) -> Iterator[Facts]:
    """The victim learns from purified triggers, and so what a purification leaves of them."""
    for name in ("badnets", "blended"):
        kind = ATTACKS[name]
        config = attack_config(name, split="train", target=str(TARGET))
        known = kind.make(config, (SIDE, SIDE), None)  # these two need no resources and no draw

        def put_on(images: list[Pixels], kind: Any = kind, known: Any = known) -> list[Pixels]:
            return [kind.poison(image, known, None) for image in images]

        yield attack(lab, Trigger(f"{name}-purified", put_on, lambda images: lab.purify(images, ATTACKER)))


# Triggers that are fitted to the defence


@dataclass(frozen=True)
class Family:
    """The triggers among which an attacker seeks one.

    Attributes:
        size: Shape of its parameters.
        put_on: Takes images, (N, 3, H, W) in [-1, 1], and parameters to images with the trigger.
    """

    name: str
    size: tuple[int, ...]
    put_on: Callable[[Tensor, Tensor], Tensor]


def patch(side: int) -> Family:
    """Squares of any colours."""
    where = slice(SIDE - MARGIN - side, SIDE - MARGIN)

    def put_on(x: Tensor, parameters: Tensor) -> Tensor:
        x = x.clone()
        x[..., where, where] = parameters.tanh()
        return x

    return Family(f"patch-{side}", (3, side, side), put_on)


def change(bound: int) -> Family:
    """Changes of the whole image by at most so many levels of 255."""

    def put_on(x: Tensor, parameters: Tensor) -> Tensor:
        return (x + bound / 127.5 * parameters.tanh()).clamp(-1, 1)

    return Family(f"change-{bound}", (3, SIDE, SIDE), put_on)


def smooth_change(bound: int, band: int) -> Family:
    """The same of the lowest `band` frequencies of the cosine transform along each axis."""
    k, n = torch.arange(band)[:, None], torch.arange(SIDE)
    waves = torch.cos(torch.pi * k * (n + 0.5) / SIDE)

    def put_on(x: Tensor, parameters: Tensor) -> Tensor:
        pattern = waves.T @ parameters @ waves
        return (x + bound / 127.5 * pattern / pattern.abs().max()).clamp(-1, 1)

    return Family(f"smooth-{bound}-band-{band}", (3, band, band), put_on)


def fit(lab: Lab, family: Family) -> Trigger:
    """Seek the trigger of which the defence keeps most."""
    options = lab.options

    def seek() -> tuple[list[np.ndarray], Facts]:
        images = tensor(lab.training[0])
        draw = torch.Generator().manual_seed(ATTACKER)
        parameters = torch.randn(family.size, generator=draw).requires_grad_()
        optimizer = torch.optim.Adam([parameters], lr=LR)
        found = []
        for step in range(options.steps):
            x = images[torch.randint(len(images), (options.batch_size,), generator=draw)]
            triggered = family.put_on(x, parameters)
            with torch.no_grad():
                without = lab.differentiable(x, noise_of(ATTACKER + step))
            wanted, left = triggered - x, lab.differentiable(triggered, noise_of(ATTACKER + step)) - without
            # What is lost of the trigger, less all of it: else the best trigger would be none.
            loss = ((left - wanted).square() - wanted.square()).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(kept(wanted.detach(), left.detach())["value"])
            if step % 20 == 0:
                print(f"{family.name}: step {step}, {found[-1]:.2f} kept", file=sys.stderr, flush=True)
        return [parameters.detach().numpy()], {"kept": found}

    key = [lab.settings, lab.key[1], options.steps, options.batch_size, family.name]
    (array,), _ = lab.store.images(f"{lab.config.method}-{family.name}", key, seek)
    parameters = torch.from_numpy(array)

    def put_on(images: list[Pixels]) -> list[Pixels]:
        return to_pixels(family.put_on(tensor(images), parameters))

    if not options.purified:
        return Trigger(family.name, put_on)
    return Trigger(f"{family.name}-purified", put_on, lambda images: lab.purify(images, ATTACKER))


def noise_of(seed: int) -> Noise:
    """Noise that is the same each time for images with and without a trigger."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x_t: torch.randn(x_t.shape, generator=generator)


def optimised(lab: Lab) -> Iterator[Facts]:
    """Patches, and changes of the whole image."""
    for side in numbers(lab.options.patches):
        yield attack(lab, fit(lab, patch(side)))
    for bound in numbers(lab.options.bounds):
        yield attack(lab, fit(lab, change(bound)))


def smooth(lab: Lab) -> Iterator[Facts]:
    """Changes of low frequencies."""
    for band in numbers(lab.options.bands):
        yield attack(lab, fit(lab, smooth_change(lab.options.smooth_bound, band)))


def numbers(text: str) -> list[int]:
    """From 3,5."""
    return [int(part) for part in text.split(",")]


# More than one try


def resubmit(lab: Lab) -> Iterator[Facts]:
    """Each image several times; the noise differs as that of another image would."""
    options = lab.options
    for name in options.attacks.split(","):
        unpack("cifar10-train.zip", options.work / "train", options.training_images)
        unpack("cifar10-test.zip", options.work / "test", options.images)
        seen = read_set(name, *victim(options.work, options.base, name), options.images)
        tries = np.array([labels_of_try(lab, seen, seed) for seed in range(options.submissions)])
        successes = [attack_success(seen.poisoned_labels, labels, seen.target) for labels in tries]
        others = seen.poisoned_labels != seen.target
        yield {
            "trigger": name,
            "ASR before": share_json(
                attack_success(seen.poisoned_labels, answers(seen.victim, seen.poisoned), seen.target)
            ),
            "ASR after, mean": {"value": float(np.mean([found.value for found in successes]))},
            f"best of {len(tries)}": share_json(share((tries == seen.target).any(axis=0)[others])),
        }


def labels_of_try(lab: Lab, seen: TestSet, seed: int) -> list[int]:
    """What the victim says of the images with the trigger, purified with a seed."""

    def look() -> Facts:
        print(f"{seen.attack}: submission {seed}", file=sys.stderr, flush=True)
        return {"labels": answers(seen.victim, lab.purify(seen.poisoned, seed)).tolist()}

    victim_sha256 = hashlib.sha256(seen.victim.read_bytes()).hexdigest()
    key = [lab.settings, victim_sha256, pixels_digest(seen.poisoned), seed]
    return lab.store.facts(f"{lab.config.method}-{seen.attack}-try", key, look)["labels"]


STAGES: dict[str, Callable[[Lab], Iterator[Facts]]] = {
    "poisoning": poisoning,
    "optimised": optimised,
    "smooth": smooth,
    "resubmit": resubmit,
}


if __name__ == "__main__":
    main()
