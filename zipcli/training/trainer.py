"""The training loop: resumable at any step, its data and noise decided by the step alone."""

import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zipcli.config import LoopConfig, check
from zipcli.errors import ModelError, OutputError, shown
from zipcli.training.data import step_generator
from zipcli.training.losses import draw_sigma
from zipcli.training.optimizer import Optimizer

Loss = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""(x_0, sigma, noise, generator) to a scalar: a loss of the network that is trained."""

SAVE_SECONDS = 60
"""Time between two checkpoints; more where writing one takes long."""
SAVE_SHARE = 0.05
REPORT_SECONDS = 1

SHORT_WARMUP = 0.1
"""Share of a short run after which the learning rate is at its height, whatever the warm-up."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How far a run is.

    Attributes:
        step: Steps done.
        share: Of the run, 0 to 1.
        loss: Mean over the steps since the last report.
        images_per_s: Speed since the last report.
        seconds_left: At the mean speed of the run.
        lr: Learning rate, as a share of the highest.
    """

    step: int
    share: float
    loss: float
    images_per_s: float
    seconds_left: float
    lr: float


class Trainer:
    """A network in training: its weights, their moving average and the optimizer's state.

    Attributes:
        network: What is trained, in place.
        average: The moving average of its weights, a module like `network`.
        step: Steps done.
        seconds: Time they took, over all runs.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        batch_at: Callable[[int], Tensor],
        config: LoopConfig,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Begin at step 0.

        Args:
            network: On its device, in the memory order it is to be trained in.
            loss: Of that network.
            batch_at: Clean images (N, C, H, W) in [-1, 1] of a step, on the device.
            config: Settings.
            dtype: Of the multiplications; weights and sums stay float32.
        """
        self.network = network.train().requires_grad_()
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimizer = Optimizer(network, config.lr, muon=config.muon)
        self.loss = loss
        self.batch_at = batch_at
        self.config = config
        self.dtype = dtype
        self.device = next(network.parameters()).device
        self.step = 0
        self.seconds = 0.0

    @property
    def share(self) -> float:
        """How much of the run is done, 0 to 1."""
        if self.config.steps is not None:
            return min(1.0, self.step / self.config.steps)
        assert self.config.minutes is not None
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def run(
        self, checkpoint: "Checkpoint", report: Callable[[Report], None], check_stop: Callable[[], None]
    ) -> None:
        """Train to the end, saving as it goes; what `check_stop` raises ends it after one more save.

        Raises:
            ModelError: The weights are not finite any more; the last checkpoint is from before.
            OutputError: The checkpoint cannot be written; the one before it is whole.
        """
        if self.share >= 1:
            return
        began = last_report = last_save = time.monotonic()
        seconds = self.seconds
        losses: list[Tensor] = []
        images = 0
        while self.share < 1:
            count, loss = self.advance()
            images += count
            losses.append(loss)
            now = time.monotonic()
            self.seconds = seconds + now - began
            try:
                check_stop()
                if now - last_report < REPORT_SECONDS and self.share < 1:
                    continue
                mean = torch.stack(losses).mean().item()  # waits for the device
                report(self._report(mean, images / (time.monotonic() - last_report)))
            except BaseException:  # a signal, or nobody reads our reports any more
                self._save(checkpoint)
                raise
            losses, images, last_report = [], 0, time.monotonic()
            if last_report - last_save >= max(SAVE_SECONDS, checkpoint.seconds / SAVE_SHARE):
                self._save(checkpoint)
                last_save = time.monotonic()
        self._save(checkpoint)

    def _save(self, checkpoint: "Checkpoint") -> None:
        """Save the weights unless they are lost: from NaN there would be no way back."""
        if not all(bool(p.isfinite().all()) for p in self.network.parameters()):
            raise ModelError(
                f"the weights are not finite any more at step {self.step}; train again with a lower --lr and "
                "--restart"
            )
        checkpoint.save(self)

    def advance(self) -> tuple[int, Tensor]:
        """Do one step and return its number of images and its loss, which stays on the device."""
        x_0 = self.batch_at(self.step)
        g = step_generator(self.config.seed, self.step, self.device, stream=1)
        sigma = draw_sigma(self.config, len(x_0), g)
        noise = torch.randn(x_0.shape, generator=g, device=self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            more = step_generator(self.config.seed, self.step, self.device, stream=3)
            loss = self.loss(x_0, sigma, noise, more)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without types
        self.optimizer.step(learning_rate(self.config, self.step, self.share))
        self.step += 1
        self._update_average()
        return len(x_0), loss.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Average over a fixed share of the run so far, so that the start is forgotten.

        Source: Karras et al. 2024 (EDM2), section 3.1: beta = (1 - 1 / t)^(gamma + 1).
        """
        beta = (1 - 1 / self.step) ** (self.config.average + 1)
        averages: list[Tensor] = [*self.average.parameters()]
        values: list[Tensor] = [*self.network.parameters()]
        torch._foreach_lerp_(averages, values, 1 - beta)

    def _report(self, loss: float, images_per_s: float) -> Report:
        return Report(
            step=self.step,
            share=self.share,
            loss=loss,
            images_per_s=images_per_s,
            seconds_left=self.seconds * (1 - self.share) / self.share,
            lr=learning_rate(self.config, self.step, self.share),
        )


def learning_rate(config: LoopConfig, step: int, share: float) -> float:
    """Rise, stay, fall to zero, as a share of the highest rate.

    The flat middle lets a run that was stopped there go on with more steps.
    """
    rise = min(1.0, max((step + 1) / max(1, config.warmup), share / SHORT_WARMUP))
    fall = min(1.0, (1 - share) / config.decay) if config.decay else 1.0
    return min(rise, fall)


class Checkpoint:
    """The file that a stopped run goes on from.

    Attributes:
        path: The file.
        settings: What the run must share with the one that wrote the file, ready for JSON.
        seconds: How long the last save took.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Look after `path`, which need not exist."""
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self.seconds = 0.0

    def save(self, trainer: Trainer) -> None:
        """Write everything that a resumed run needs; a kill leaves the old file or the new one.

        Raises:
            OutputError: The disk is full, or the place cannot be written; the old file is whole.
        """
        began = time.monotonic()
        tensors = {f"network.{name}": value for name, value in trainer.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in trainer.average.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in trainer.optimizer.state().items()}
        facts = {"step": trainer.step, "seconds": trainer.seconds, "settings": self.settings}
        temporary = unfinished(self.path)
        try:
            save_file(
                {name: value.cpu().contiguous() for name, value in tensors.items()},
                temporary,
                metadata={"zipcli-training": json.dumps(facts)},
            )
            with temporary.open("rb") as f:
                os.fsync(f.fileno())
            temporary.replace(self.path)
        except (OSError, SafetensorError) as e:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            advice = "free some space" if "space" in str(e) else "check the disk and its permissions"
            raise OutputError(
                f"{shown(str(self.path))}: cannot be written: {e}; {advice} and run the same command "
                "again, without --restart"
            ) from e
        self.seconds = time.monotonic() - began

    def remove(self) -> None:
        """Forget the run.

        Raises:
            OutputError: The file cannot be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as e:
            raise OutputError(f"{shown(str(self.path))}: cannot be removed: {e.strerror}") from e

    def begun(self) -> bool:
        """Whether there is a run to go on with.

        Raises:
            ModelError: The file is damaged.
            ConfigError: It is of a run with other settings.
        """
        if not self.path.exists():
            return False
        with self._reading(), safe_open(self.path, framework="pt") as f:
            there = dict(self._facts(f)["settings"])
        changed = [
            f"{key} differ"
            if key == "images"
            else f"{key}: {there.get(key)} there, {self.settings.get(key)} now"
            for key in sorted(there.keys() | self.settings.keys())
            if there.get(key) != self.settings.get(key)
        ]
        check(
            not changed,
            f"{shown(str(self.path))}: a run with other settings was stopped here ({'; '.join(changed)}); "
            "give those again, or --restart to begin anew",
        )
        return True

    def load(self, trainer: Trainer) -> bool:
        """Go on where the file left off; False where there is none.

        Raises:
            ModelError: It is damaged.
            ConfigError: It is of a run with other settings.
        """
        if not self.begun():
            return False
        with self._reading(), safe_open(self.path, framework="pt") as f:
            facts = self._facts(f)
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118  # no mapping
            trainer.network.load_state_dict(part(tensors, "network."))
            trainer.average.load_state_dict(part(tensors, "average."))
            trainer.optimizer.load(part(tensors, "optimizer."))
            trainer.step, trainer.seconds = int(facts["step"]), float(facts["seconds"])
        return True

    @staticmethod
    def _facts(file: Any) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((file.metadata() or {})["zipcli-training"])
        return facts

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ModelError(
                f"{shown(str(self.path))}: cannot be read ({type(e).__name__}: {shown(str(e)[:200])}); run "
                "again with --restart to begin anew"
            ) from e


def unfinished(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_name(path.name + ".part")


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
