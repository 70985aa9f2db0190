"""Measures the detectors: AUROC, true positives, and what a judgement costs.

    python examples/measure_detectors.py                           # residual and frequency, some minutes
    python examples/measure_detectors.py --photos 50 --images 0    # the same on photos of 224 pixels
    python examples/train_classifier.py base.safetensors           # once, about 15 minutes on one core
    python examples/measure_detectors.py --base base.safetensors   # scaleup and strip besides

Clean images and poisoned ones are different CIFAR-10 test images; a third part serves as --clean. What
scaleup and strip ask is a classifier with a real backdoor, which is trained here in a minute or two: it
goes on from the clean one, with a share of its training images poisoned. TPR is at a false positive rate
of 5 % on these images; flagged is what the detector's own threshold says of clean and poisoned images.
Photos are those that no prior or network of ours was trained on. It reads cifar10-train.zip,
cifar10-test.zip and photos-256.zip from ../shared/data, or from the folder that ZIPCLI_DATA names.
"""

import argparse
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure_prior import data_folder
from PIL import Image
from train_classifier import CLASSES, load_classifier
from train_victim import export, fine_tune

from zipcli.attacks import ATTACKS
from zipcli.attacks.trigger import Draw, Resources, image_rng
from zipcli.classifiers import open_classifier
from zipcli.config import ClassifierConfig, DetectConfig, attack_config
from zipcli.detectors import DETECTORS
from zipcli.detectors.parts import Parts, Pixels
from zipcli.metrics import auroc, tpr_at_fpr
from zipcli.models.loading import load_model
from zipcli.pipeline.detection import BUNCH
from zipcli.pipeline.windows import DEFAULT_OVERLAP, DEFAULT_WINDOW, WindowedModel
from zipcli.protocols import Classifier, Detector, Prediction

TRIGGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "white 3x3": ("badnets", {"profile": "backdoorbox"}),
    "noise 3x3": ("badnets", {}),
    "chessboard 3x3": ("badnets", {"profile": "sampdetox"}),
    "noise 2x2": ("badnets", {"profile": "zip-paper"}),
    "physical": ("physical", {"physical_test": "all"}),
    "blended": ("blended", {}),
    "sig": ("sig", {}),
    "wanet": ("wanet", {}),
    "bpp": ("bpp", {}),
    "lc": ("lc", {}),
    "lf": ("lf", {}),
    "inputaware": ("inputaware", {}),
    "issba": ("issba", {}),
}
QUICK = ("white 3x3", "noise 3x3", "blended", "sig", "wanet", "bpp")
VICTIMS = ("white 3x3", "blended")
"""Triggers that a classifier is trained on."""

TARGET = 1
POISONED_SHARE = 0.05
VICTIM_IMAGES = 20_000
HELD_OUT = 8
PHOTO_SIDE = 224
FPR = 0.05
CLEAN = 1000


class Counting:
    """A classifier that counts the images it is asked about."""

    def __init__(self, classifier: Classifier) -> None:
        """Ask `classifier`."""
        self._classifier = classifier
        self.classes = classifier.classes
        self.asked = 0

    def __call__(self, images: Sequence[Pixels], /) -> Prediction:
        """Classify, and count."""
        self.asked += len(images)
        return self._classifier(images)


def main() -> None:
    """Print one row for each detector and trigger."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=500, help="clean, and as many poisoned")
    parser.add_argument("--photos", type=int, default=0)
    parser.add_argument("--trigger", action="append", choices=TRIGGERS)
    parser.add_argument(
        "--base", type=Path, metavar="FILE", help="a clean classifier, to put a backdoor into"
    )
    parser.add_argument(
        "--victim", action="append", default=[], metavar="TRIGGER=FILE", help="one that has it"
    )
    parser.add_argument("--strip-images", type=int, default=100, help="of each kind, for strip: it is slow")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for row in rows(options, folder, stack):
            line = "  ".join(
                f"{value:.3f}" if isinstance(value, float) else f"{value}" for value in row.values()
            )
            print(json.dumps(row) if options.json else line, flush=True)


def rows(options: argparse.Namespace, folder: Path, stack: ExitStack) -> Iterator[dict[str, Any]]:
    """Measure what the options ask for."""
    sets = []
    if options.images:
        names, images, _ = cifar("cifar10-test.zip", 2 * options.images + CLEAN)
        sets.append(("cifar", names, images))
    if options.photos:
        names, images = photos(2 * options.photos)
        sets.append(("photos", names, images))
    alone: dict[str, Callable[[Sequence[Pixels]], list[float]] | Detector] = {
        "residual": residual(),
        "frequency": DETECTORS["frequency"](DetectConfig(detector="frequency"), Parts()),
        "high share": lambda shown: [high_frequency_share(image) for image in shown],
    }
    for kind, names, images in sets:
        count = options.images if kind == "cifar" else options.photos
        clean = images[:count]
        judged = {name: judge(detector, clean) for name, detector in alone.items()}
        for trigger in options.trigger or (QUICK if kind == "cifar" else QUICK[:5]):
            poisoned = poison(trigger, names[count : 2 * count], images[count : 2 * count])
            for name, detector in alone.items():
                after = judge(detector, poisoned)
                yield {"data": kind, "detector": name, "trigger": trigger} | figures(
                    detector, judged[name], after, 0.0
                )
    if options.images and (options.base or options.victim):
        _, names, images = sets[0]
        yield from of_victims(options, folder, stack, names, images)


def of_victims(
    options: argparse.Namespace, folder: Path, stack: ExitStack, names: list[str], images: list[Pixels]
) -> Iterator[dict[str, Any]]:
    """Measure the detectors that ask a classifier."""
    given = dict(pair.split("=", 1) for pair in options.victim)
    count, few = options.images, options.strip_images
    held = [(image, CLASSES.index(name.split("/")[0])) for name, image in zip(names, images, strict=True)]
    held = held[2 * count :]
    for trigger in VICTIMS if options.base else given:
        file = Path(given[trigger]) if trigger in given else train_victim(options.base, trigger, folder)
        config = ClassifierConfig(classifier=str(file), batch_size=256)
        victim = Counting(stack.enter_context(open_classifier(config)))
        poisoned = [
            (name, image)
            for name, image in zip(names[count : 2 * count], images[count : 2 * count], strict=True)
            if not name.startswith(CLASSES[TARGET] + "/")
        ]
        shown = poison(trigger, [name for name, _ in poisoned], [image for _, image in poisoned])
        accuracy = np.mean(victim([image for image, _ in held]).labels == [label for _, label in held])
        success = np.mean(victim(shown).labels == TARGET)
        print(f"{trigger}: accuracy {accuracy:.3f}, attack success {success:.3f}", file=sys.stderr)
        parts, limited = Parts(classifier=victim), Parts(classifier=victim, clean=held)
        detectors = {
            "scaleup": (
                DETECTORS["scaleup"](DetectConfig(detector="scaleup", classifier=config), parts),
                count,
            ),
            "scaleup --clean": (
                DETECTORS["scaleup"](DetectConfig(detector="scaleup", classifier=config), limited),
                count,
            ),
            "strip": (
                DETECTORS["strip"](DetectConfig(detector="strip", classifier=config, clean=folder), limited),
                few,
            ),
        }
        for name, (detector, most) in detectors.items():
            victim.asked = 0
            before, after = judge(detector, images[: min(count, most)]), judge(detector, shown[:most])
            asked = victim.asked / (len(before[0]) + len(after[0]))
            yield {"data": "cifar", "detector": name, "trigger": trigger} | figures(
                detector, before, after, asked
            )


def figures(
    detector: Any, before: tuple[list[float], float], after: tuple[list[float], float], asked: float
) -> dict[str, Any]:
    """AUROC and the like from the scores and milliseconds of clean and of poisoned images."""
    negative, positive = before[0], after[0]
    threshold = getattr(detector, "threshold", None)
    return {
        "auroc": auroc(negative, positive),
        "tpr": tpr_at_fpr(negative, positive, FPR),
        "flagged_clean": float(np.mean(np.array(negative) >= threshold)) if threshold is not None else None,
        "flagged_poisoned": float(np.mean(np.array(positive) >= threshold))
        if threshold is not None
        else None,
        "ms": (before[1] + after[1]) / 2,
        "asked": asked,
    }


def judge(detector: Any, images: list[Pixels]) -> tuple[list[float], float]:
    """Scores, and milliseconds of the processor for an image: others may be busy on it, too."""
    began = time.process_time()
    found: list[Any] = []
    for start in range(0, len(images), BUNCH):
        found += detector(images[start : start + BUNCH])
    ms = 1000 * (time.process_time() - began) / len(images)
    return [getattr(one, "score", one) for one in found], ms


def residual() -> Detector:
    """The detector with the built-in prior."""
    cpu = torch.device("cpu")
    loaded = load_model("builtin", cpu, "float32")
    prior = WindowedModel(loaded.model, DEFAULT_WINDOW, DEFAULT_OVERLAP)
    return DETECTORS["residual"](DetectConfig(), Parts(prior=prior, prior_sha256=loaded.sha256))


def high_frequency_share(image: Pixels) -> float:
    """What needs no training: the share of the energy above the diagonal of the DCT, the mean excepted."""
    basis = [dct_basis(side) for side in image.shape[:2]]
    energy = np.stack([(basis[0] @ image[..., c] @ basis[1].T) ** 2 for c in range(3)])
    rows_, columns = np.indices(image.shape[:2])
    high = energy[:, rows_ + columns >= sum(image.shape[:2]) / 2].sum(1)
    return float(np.mean(high / np.maximum(energy.sum((1, 2)) - energy[:, 0, 0], 1e-9)))


def dct_basis(side: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix."""
    k, n = np.indices((side, side))
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * side)) * (2 / side) ** 0.5
    basis[0] /= 2**0.5
    return basis


def train_victim(base: Path, trigger: str, folder: Path) -> Path:
    """Put a backdoor into a classifier."""
    torch.manual_seed(0)
    names, images, labels = cifar("cifar10-train.zip", VICTIM_IMAGES)
    chosen = np.random.default_rng(0).random(len(images)) < POISONED_SHARE
    members = np.flatnonzero(chosen).tolist()
    poisoned = poison(trigger, [names[k] for k in members], [images[k] for k in members])
    for k, image in zip(members, poisoned, strict=True):
        images[k] = image
        labels[k] = TARGET
    model = load_classifier(base)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    fine_tune(model, x, torch.tensor(labels), 3)
    file = folder / f"{trigger.replace(' ', '-')}.pt"
    export(model, list(CLASSES), file)
    return file


def poison(trigger: str, names: list[str], images: list[Pixels]) -> list[Pixels]:
    """Put a trigger into images of one size."""
    attack, given = TRIGGERS[trigger]
    config = attack_config(attack, **given)
    resources = Resources(
        picture=lambda path: np.asarray(Image.open(path).convert("RGB")),
        reflections=lambda path, size: [],
        examples=training_examples,
        progress=lambda text: print(text, file=sys.stderr),
    )
    made = ATTACKS[attack].make(config, images[0].shape[:2], resources)
    poisoned = []
    for k, (name, image) in enumerate(zip(names, images, strict=True)):
        other = (names[k - 1], images[k - 1])
        draw = Draw(rng=image_rng(config.seed, attack, name), other=lambda _, other=other: other)
        poisoned.append(ATTACKS[attack].poison(image, made, draw))
    return poisoned


def training_examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images and labels, for attacks that train something."""
    _, images, labels = cifar("cifar10-train.zip", count)
    return np.stack(images), np.array(labels, np.int64)


def cifar(archive: str, count: int) -> tuple[list[str], list[Pixels], list[int]]:
    """Images of all classes in a mixed order: "class/name", pixels and label."""
    with zipfile.ZipFile(data_folder() / archive) as z:
        names = sorted(name for name in z.namelist() if name.endswith(".jpg"))
        names = [names[k] for k in np.random.default_rng(0).permutation(len(names))[:count]]
        images = [np.asarray(Image.open(BytesIO(z.read(name))).convert("RGB")) for name in names]
    names = ["/".join(name.split("/")[-2:]) for name in names]
    return names, images, [CLASSES.index(name.split("/")[0]) for name in names]


def photos(count: int) -> tuple[list[str], list[Pixels]]:
    """Central squares of PHOTO_SIDE pixels, of photos that are large enough."""
    with zipfile.ZipFile(data_folder() / "photos-256.zip") as z:
        names = sorted(name for name in z.namelist() if name.endswith(".jpg"))[::HELD_OUT]
        images = {name: np.asarray(Image.open(BytesIO(z.read(name))).convert("RGB")) for name in names}
    squares = {}
    for name, image in images.items():
        top, left = ((side - PHOTO_SIDE) // 2 for side in image.shape[:2])
        if min(top, left) >= 0:
            square = image[top : top + PHOTO_SIDE, left : left + PHOTO_SIDE]
            squares[name] = np.ascontiguousarray(square)
    return list(squares)[:count], list(squares.values())[:count]


if __name__ == "__main__":
    main()
