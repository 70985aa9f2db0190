"""Turns what a classifier answered into a prediction, or says what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zipcli.errors import ClassifierError, shown
from zipcli.protocols import Prediction

LARGEST_LABEL = 2**31 - 1

LOOSE = 0.02
"""How far the printed probabilities of an image may be from adding up to 1: people round them."""

TIGHT = 1e-3
"""The same for the scores of a network; what is further off are logits."""

NAMES_SHOWN = 12


@dataclass(frozen=True)
class AnswerReader:
    """Reads answers of one classifier.

    Attributes:
        name: What errors call it, harmless already.
        classes: Names of its classes, where they are known.
    """

    name: str
    classes: tuple[str, ...] | None

    def words(self, labels: Any, probabilities: Any, count: int) -> Prediction:
        """Read what a service or program said of `count` images.

        Args:
            labels: A list of class indices or names.
            probabilities: A list of lists of numbers, or None.
            count: How many images there were.

        Raises:
            ClassifierError: It is anything else.
        """
        if not isinstance(labels, list):
            raise self.error(f"its labels are {brief(labels)}, not a list")
        if len(labels) != count:
            raise self.error(f"it gave {len(labels)} labels for {count} images")
        indices = np.array([self.index(label) for label in labels], np.int64)
        if probabilities is None:
            return Prediction(labels=indices)
        table = self._probabilities(probabilities, count)
        if count and indices.max() >= table.shape[1]:
            raise self.error(
                f"it gave the label {indices.max()} and only {table.shape[1]} probabilities per image; "
                "labels count from 0"
            )
        return Prediction(labels=indices, probabilities=table)

    def index(self, label: Any) -> int:
        """The class index that a label means: a whole number, or the name of a class."""
        known = self.classes
        if type(label) is str and known is not None and label in known:
            return known.index(label)
        if type(label) is str and known is not None:
            few = ", ".join(map(shown, known[:NAMES_SHOWN])) + (", ..." if len(known) > NAMES_SHOWN else "")
            raise self.error(f"unknown label {brief(label)}; the {len(known)} classes are {few}")
        if type(label) is str:
            raise self.error(
                f"it gave the label {brief(label)}, and nobody told the class names; give --classes"
            )
        if type(label) is not int:
            raise self.error(f"the label {brief(label)} is neither a whole number nor a class name")
        highest = LARGEST_LABEL if known is None else len(known) - 1
        if not 0 <= label <= highest:
            raise self.error(f"the label {brief(label)} is not between 0 and {highest}; labels count from 0")
        return label

    def index_of_text(self, text: str) -> int:
        """The same for a printed label: a name where it is one, else a whole number."""
        if (self.classes is None or text not in self.classes) and text.isascii() and text.isdigit():
            return self.index(int(text) if len(text) < 20 else LARGEST_LABEL + 1)
        return self.index(text)

    def _probabilities(self, given: Any, count: int) -> NDArray[np.float32]:
        """Check probabilities that were sent, and make each row add up to 1 exactly."""
        wrong = self.error(
            f"its probabilities are no list of {count} equally long lists of numbers, but {brief(given)}"
        )
        if not (isinstance(given, list) and all(isinstance(row, list) for row in given)):
            raise wrong
        try:
            table = np.array(given)
        except ValueError as e:
            raise wrong from e
        if table.ndim != 2 or len(table) != count or table.dtype.kind not in "iuf":
            raise wrong
        self._check_columns(table.shape[1])
        sums = table.sum(axis=1)
        if not np.isfinite(table).all() or table.min() < 0 or np.abs(sums - 1).max() > LOOSE:
            raise self.error("its probabilities are not numbers from 0 to 1 that add up to 1 for each image")
        normal: NDArray[np.float32] = (table / sums[:, None]).astype(np.float32)
        return normal

    def output(self, output: NDArray[Any], count: int) -> Prediction:
        """Read what a network gave for `count` images.

        (N,) whole numbers are labels. (N, K) numbers are scores: the label is the first of the
        highest ones. They are taken as probabilities where each lies in [0, 1] and every row adds up
        to 1 within 0.001, and as logits otherwise, which a softmax turns into probabilities.

        Raises:
            ClassifierError: It is anything else.
        """
        shape = tuple(output.shape)
        if output.dtype.kind in "iu" and output.ndim == 1 and len(output) == count:
            return Prediction(labels=np.array([self.index(int(label)) for label in output], np.int64))
        if output.dtype.kind != "f" or output.ndim != 2 or len(output) != count:
            raise self.error(
                f"for {count} images it gave {output.dtype} of shape {shape}, "
                f"not {count} rows of scores or {count} labels"
            )
        self._check_columns(shape[1])
        scores = output.astype(np.float64)
        if not np.isfinite(scores).all():
            raise self.error("it gave NaN or infinity; are mean, std and input size right?")
        sums = scores.sum(axis=1, keepdims=True)
        if scores.min() < 0 or np.abs(sums - 1).max() > TIGHT:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            sums = scores.sum(axis=1, keepdims=True)
        # The label is that of the raw output: a softmax can round two scores to one value.
        return Prediction(labels=output.argmax(axis=1), probabilities=(scores / sums).astype(np.float32))

    def _check_columns(self, columns: int) -> None:
        if columns < 2:
            raise self.error(f"it gave {columns} number per image; at least two classes are needed")
        if self.classes is not None and columns != len(self.classes):
            raise self.error(f"it knows {columns} classes, and {len(self.classes)} class names were given")

    def error(self, text: str) -> ClassifierError:
        """An error that names the classifier."""
        return ClassifierError(f"{self.name}: {text}")

    def join(self, parts: Sequence[tuple[Sequence[int], Prediction]], count: int) -> Prediction:
        """Put predictions of some of the images each, given by index, into one of all `count`."""
        labels = np.zeros(count, np.int64)
        tables = [part.probabilities for _, part in parts if part.probabilities is not None]
        if tables and (len(tables) < len(parts) or len({table.shape[1] for table in tables}) > 1):
            raise self.error("it gives probabilities for some images only, or of another number of classes")
        probabilities = np.zeros((count, tables[0].shape[1]), np.float32) if tables else None
        for indices, part in parts:
            labels[list(indices)] = part.labels
            if probabilities is not None:
                probabilities[list(indices)] = part.probabilities
        return Prediction(labels=labels, probabilities=probabilities)


def brief(value: Any) -> str:
    """A value that somebody sent, harmless and short enough for a message."""
    text = repr(value[:3] if isinstance(value, list) else value)
    return shown(text[:80] + ("..." if len(text) > 80 else ""))
