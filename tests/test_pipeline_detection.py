"""What a detector is given: clean images with their classes, a classifier, bunches of images."""

import warnings
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.shell import picture
from torch import Tensor, nn

from zipcli.config import ClassifierConfig, DetectConfig, FolderConfig, detect_config
from zipcli.errors import ConfigError, ModelError, NonFiniteError, StoppedError
from zipcli.pipeline.detection import (
    BUNCH,
    CleanFolder,
    Verdict,
    bunches,
    detect_folder,
    map_picture,
    open_detector,
    score_all,
)
from zipcli.pipeline.plan import Plan
from zipcli.protocols import Prediction, Suspicion


class Named:
    """A classifier of which only the names matter."""

    def __init__(self, *classes: str) -> None:
        self.classes = classes or None

    def __call__(self, images: Sequence[np.ndarray], /) -> Prediction:
        return Prediction(labels=np.zeros(len(images), np.int64))


class Brightness(nn.Module):
    """Probabilities of dark and bright."""

    def forward(self, x: Tensor) -> Tensor:
        bright = torch.sigmoid(20 * (x.mean(dim=(1, 2, 3)) - 0.5))
        return torch.stack([1 - bright, bright], dim=1)


class Mean:
    """Scores by brightness; NaN for black images."""

    threshold = 100.0

    def __call__(self, images: Sequence[np.ndarray], /) -> list[Suspicion]:
        assert all(image.ndim == 3 and image.dtype == np.uint8 for image in images)
        black = tuple(k for k, image in enumerate(images) if image.max() == 0)
        if black:
            raise NonFiniteError("in the test", black)
        return [Suspicion(score=float(image.mean())) for image in images]


def classes_of(
    folder: Path, classifier: Named | None, notes: list[str] | None = None
) -> set[tuple[str, object]]:
    told = notes if notes is not None else []
    clean = CleanFolder(folder, classifier, told.append, lambda: None)
    return {("", label) for _, label in clean}


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    for n in range(24):
        picture(tmp_path / "clean" / ("dark" if n % 2 else "bright") / f"{n}.png", seed=n)
    return tmp_path / "clean"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "brightness.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Brightness()), file)
    return file


def test_class_folders_are_matched_by_the_names_of_the_classifier(clean: Path) -> None:
    assert classes_of(clean, Named("red", "dark", "bright")) == {("", 1), ("", 2)}


def test_without_names_the_order_of_the_folders_counts_and_the_user_is_told(clean: Path) -> None:
    notes: list[str] = []
    assert classes_of(clean, Named(), notes) == {("", 0), ("", 1)}
    assert "in the order of the folders" in notes[0]


def test_a_folder_that_is_no_class_of_the_classifier_is_an_error(clean: Path) -> None:
    with pytest.raises(ConfigError, match=r"the classifier has no class bright; name its classes.*--classes"):
        classes_of(clean, Named("red", "dark"))


def test_images_outside_class_folders_have_no_class(tmp_path: Path) -> None:
    picture(tmp_path / "clean" / "1.png")
    assert classes_of(tmp_path / "clean", Named("dark", "bright")) == {("", None)}


def test_a_clean_image_that_cannot_be_read_is_left_out_and_named(clean: Path) -> None:
    (clean / "dark" / "torn.png").write_bytes(b"\x89PNG")
    notes: list[str] = []
    found = list(CleanFolder(clean, None, notes.append, lambda: None))
    assert len(found) == 24
    assert len(notes) == 1
    assert "torn.png" in notes[0]


def test_the_digest_follows_the_content_of_the_clean_images(clean: Path, tmp_path: Path) -> None:
    def digest() -> str:
        return CleanFolder(clean, None, lambda text: None, lambda: None).sha256

    first = digest()
    assert digest() == first
    picture(clean / "dark" / "1.png", seed=99)
    assert digest() != first


def test_clean_images_come_in_the_same_mixed_order_each_time(clean: Path) -> None:
    folder = CleanFolder(clean, Named("dark", "bright"), lambda text: None, lambda: None)
    order = [label for _, label in folder]
    assert [label for _, label in folder] == order
    assert order != sorted(order, key=str)
    assert set(order[:8]) == {0, 1}


@pytest.mark.parametrize(("make", "message"), [(False, "no such folder"), (True, "no images found")])
def test_a_clean_folder_without_images_is_an_error(tmp_path: Path, make: bool, message: str) -> None:
    if make:
        (tmp_path / "clean").mkdir()
    with pytest.raises(ConfigError, match=message), open_detector(DetectConfig(clean=tmp_path / "clean")):
        pass


def test_a_detector_is_built_only_when_it_is_asked_for(clean: Path, model: Path) -> None:
    config = detect_config("strip", classifier=ClassifierConfig(classifier=str(model)), clean=clean)
    questions: list[int] = []
    with open_detector(config, check_stop=lambda: questions.append(1)) as screening:
        before = len(questions)
        assert screening.fingerprint_parts["detector_superimposed"] == 100
        assert len(questions) == before
        threshold = screening.detector.threshold
        assert len(questions) > before  # the clean images were read again
        assert screening.detector.threshold == threshold


def test_what_decides_the_judgement_is_in_the_fingerprint(clean: Path, model: Path) -> None:
    def parts(**given: object) -> dict[str, object]:
        with open_detector(detect_config("scaleup", **given)) as screening:
            return screening.fingerprint_parts

    classifier = ClassifierConfig(classifier=str(model))
    plain = parts(classifier=classifier)
    assert plain == {"detector_classifier": {"sha256": sha256(model.read_bytes()).hexdigest()}}
    service = ClassifierConfig(classifier="http://127.0.0.1:9/")
    assert parts(classifier=service) == {"detector_classifier": {"classifier": "http://127.0.0.1:9/"}}
    assert parts(classifier=ClassifierConfig(classifier=str(model), batch_size=7)) == plain
    assert parts(classifier=ClassifierConfig(classifier=str(model), input_size=9)) != plain
    assert parts(classifier=classifier, threshold=0.7)["detector_threshold"] == 0.7
    assert len(str(parts(classifier=classifier, clean=clean)["detector_clean"])) == 64
    with open_detector(detect_config("frequency")) as screening:
        assert len(str(screening.fingerprint_parts["detector_weights"])) == 64


def test_a_stop_is_heard_while_the_threshold_is_found(clean: Path, model: Path) -> None:
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked > 30:
            raise StoppedError(ModelError.exit_code)

    config = detect_config("strip", classifier=ClassifierConfig(classifier=str(model)), clean=clean)
    with pytest.raises(StoppedError), open_detector(config, check_stop=stop) as screening:
        _ = screening.detector


def test_bunches_are_bounded_by_count_and_pixels_and_lose_nothing() -> None:
    small, large = np.zeros((2, 2, 3), np.uint8), np.zeros((1200, 1000, 3), np.uint8)
    items = [small] * 70 + [None] + [large] * 2 + [small]
    found = list(bunches(items, lambda item: item))
    assert [len(bunch) for bunch in found] == [BUNCH, 8, 1, 1]
    assert [item for bunch in found for item in bunch] == items


def test_what_needs_no_judgement_does_not_wait() -> None:
    pulled = []

    def items():  # type: ignore[no-untyped-def]
        for n in range(5):
            pulled.append(n)
            yield None

    next(bunches(items(), lambda item: item))
    assert pulled == [0]


def test_an_image_without_a_score_does_not_take_others_along() -> None:
    images = [np.full((4, 4, 3), level, np.uint8) for level in (9, 0, 7, 0)] + [np.full((3, 3), 5, np.uint8)]
    found = score_all(Mean(), images)
    assert [None if one is None else one.score for one in found] == [9, None, 7, None, 5]


def test_every_file_has_a_verdict_in_the_order_of_the_plan(tmp_path: Path) -> None:
    names = {"a.png": 255, "b.png": 0, "d.png": 50}
    for name, level in names.items():
        path = picture(tmp_path / name)
        from PIL import Image

        Image.new("RGB", (6, 4), (level,) * 3).save(path)
    (tmp_path / "c.png").write_bytes(b"no image")
    found = list(detect_folder(Plan(base=tmp_path, config=FolderConfig()), Mean()))
    assert [(one.path, one.state) for one in found] == [
        ("a.png", "suspicious"),
        ("b.png", "failed"),
        ("c.png", "failed"),
        ("d.png", "clear"),
    ]
    assert [one.reason for one in found] == [None, "nonfinite", "unidentified", None]
    first = found[0].as_json()
    assert first["score"] == 255
    assert first["threshold"] == 100
    assert first["size"] == (6, 4)
    assert len(first["in_sha256"]) == 64
    assert "map" not in first


def test_a_map_is_black_where_all_is_usual_and_never_wraps() -> None:
    found = map_picture(np.array([[-9, 0, 4, 8, 90]], np.float32))
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 0, 128, 255, 255]]


def test_a_verdict_keeps_a_name_that_is_no_text() -> None:
    line = Verdict(path="caf\udce9.png", state="clear", score=1.0).as_json()
    assert line["path_b64"] == "Y2Fm6S5wbmc="
