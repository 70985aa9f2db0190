"""The whole loop on CIFAR-10: poison, train a victim, attack it, purify, measure; one row for each attack.

    python examples/train_classifier.py base.safetensors        # once
    python examples/attack_loop.py work base.safetensors --attacks badnets,blended,wanet --images 500

Every victim but those of FRESH is fine-tuned from the same clean classifier on half of the training images,
of which a tenth is poisoned; the test images get the same trigger. Results stay in WORK and are not made
twice. It reads cifar10-train.zip, cifar10-test.zip and photos-256.zip from ../shared/data, or from the
folder that ZIPCLI_DATA names.
"""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
TRIGGERS: dict[str, list[str]] = {
    "badnets": [],
    "blended": [],
    "physical": [],
    "wanet": [],
    "sig": ["--rate", "0.05"],
    "bpp": [],
    "lc": ["--rate", "0.08"],
    "refool": [],
    "cba": [],
    "lf": [],
    "trojannn": [],
    "dfst": [],
    "inputaware": [],
    "issba": [],
}
"""Options of each training set; 0.05 and 0.08 of all images are half and most of the target class."""

TRAINING: dict[str, list[str]] = {
    "sig": ["--epochs", "5", "--no-mirror"],
    "bpp": ["--epochs", "4"],
    "lc": ["--epochs", "10", "--pad", "0"],
    "cba": ["--epochs", "4"],
    "inputaware": ["--epochs", "4", "--no-mirror"],
    "wanet": ["--epochs", "10", "--no-mirror"],
}
"""Where the two epochs of train_victim.py do not suffice."""

FRESH = {"wanet", "lc"}
"""Triggers that a clean classifier does not fall for any more: their victims begin with fresh weights."""

DEFENCES = {
    "blur": ["--method", "blur", "-t", "blur:2"],
    "zip": ["--sampler", "ddim"],  # the chain of the paper
    "nullspace": ["--method", "nullspace"],
    "blind": ["--method", "blind"],  # the default
}


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--attacks", default=",".join(TRIGGERS))
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--training-images", type=int, default=25_000)
    parser.add_argument("--victims", action="store_true", help="only train them")
    options = parser.parse_args()
    work: Path = options.work
    unpack("cifar10-train.zip", work / "train", options.training_images)
    unpack("cifar10-test.zip", work / "test", options.images)
    unpack("photos-256.zip", work / "reflections", 200)
    if options.victims:
        for attack in options.attacks.split(","):
            victim(work, options.base, attack)
        return
    print(f"{'attack':12}{'defence':11}{'CA':>8}{'ASR':>8}{'PA':>8}{'RA':>8}{'DER':>8}", flush=True)
    for attack in options.attacks.split(","):
        for defence, facts in rows(work, options.base, attack):
            cells = [percent(facts[key]) for key in ("ca", "asr", "pa", "ra")]
            der = "" if facts.get("der") is None else f"{facts['der']:.3f}"
            print(f"{attack:12}{defence:11}" + "".join(f"{c:>8}" for c in cells) + f"{der:>8}", flush=True)


def victim(work: Path, base: Path, attack: str) -> tuple[Path, Path]:
    """The classifier that fell for an attack, and the test images with its trigger."""
    training, poisoned, file = (work / f"{attack}-{part}" for part in ("training", "poisoned", "victim.pt"))
    options = ["--attack", attack]
    if attack == "refool":
        options += ["--reflections", str(work / "reflections")]
    trigger = ("--trigger", training / "trigger.safetensors")
    once(
        training / "attack.json",
        "attack",
        work / "train",
        training,
        *options,
        *TRIGGERS[attack],
        "--split",
        "train",
    )
    once(poisoned / "attack.json", "attack", work / "test", poisoned, *options, *trigger)
    if not file.exists():
        script = [sys.executable, HERE / "train_victim.py", training, file, *TRAINING.get(attack, [])]
        script += [] if attack in FRESH else ["--from", base]
        subprocess.run([str(word) for word in script], check=True)
    return file, poisoned


def rows(work: Path, base: Path, attack: str) -> list[tuple[str, dict]]:
    """What the victim of an attack says without a defence and with each."""
    file, poisoned = victim(work, base, attack)
    results = []
    for name, settings in DEFENCES.items():
        folders = []
        for part in ("clean", "poisoned"):
            # The clean images are the same under every attack, so one purification serves all.
            out = work / (f"clean-{name}" if part == "clean" else f"{attack}-{name}")
            run("purify", poisoned / part, out, "-q", *settings)
            folders += ["--purified", out]
        result = work / f"{attack}-{name}.json"
        once(result, "evaluate", poisoned, "--classifier", file, "-q", *folders, "-o", result)
        facts = json.loads(result.read_text())
        if not results:
            results.append(("none", facts["before"]))
        results.append((name, facts["after"] | {"der": facts["der"]}))
    return results


def once(target: Path, *words: object) -> None:
    """Run zipcli unless its result is there."""
    if not target.exists():
        run(*words)


def run(*words: object) -> None:
    """Run zipcli; its progress goes to stderr."""
    command = [sys.executable, "-m", "zipcli", *(str(word) for word in words)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def percent(share: dict | None) -> str:
    """A proportion as text."""
    return "-" if share is None else f"{100 * share['value']:.2f}"


def unpack(archive: str, folder: Path, limit: int) -> None:
    """Unpack images, spread evenly over an archive, one folder for each class."""
    if folder.exists():
        return
    data = Path(os.environ.get("ZIPCLI_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (data / archive).is_file():
        sys.exit(f"{data / archive}: not there; set ZIPCLI_DATA to the folder that holds it")
    part = folder.with_name(folder.name + ".part")
    with zipfile.ZipFile(data / archive) as z:
        names = sorted(name for name in z.namelist() if name.endswith(".jpg"))
        for name in names[:: max(1, len(names) // limit)]:
            path = part / Path(name).parent.name / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(z.read(name))
    part.rename(folder)


if __name__ == "__main__":
    main()
