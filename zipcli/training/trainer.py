"""The training loop: resumable at any step, its learning rate decided by the step alone."""

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from zipcli.training.data import step_generator


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run.

    Attributes:
        steps: Optimizer steps in all.
        lr: Highest learning rate of AdamW.
        warmup: Steps in which the rate rises from 0.
        decay: Share of the steps, at the end, in which the rate falls linearly to 0.
        ema: Decay of the moving average of the weights, after its own warm-up.
        log_sigma_mean: Centre of ln(sigma); purification lives between sigma 0.05 and 2.
        log_sigma_std: Spread of ln(sigma).
        uniform_share: Share of the noise levels drawn evenly in ln(sigma) from 0.01 to 100
            instead, so that the ends of the chain are known too.
        seed: Seed of data, noise and noise levels.
        save_every: Steps between two checkpoints.
        log_every: Steps between two lines of progress.
    """

    steps: int = 10_000
    lr: float = 1e-3
    warmup: int = 200
    decay: float = 0.3
    ema: float = 0.999
    log_sigma_mean: float = -0.8
    log_sigma_std: float = 1.2
    uniform_share: float = 0.15
    seed: int = 0
    save_every: int = 250
    log_every: int = 50


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rise, stay, fall to zero.

    The flat middle lets a later run go on from a checkpoint with more steps.
    """
    rise = min(1.0, (step + 1) / config.warmup)
    fall = min(1.0, (config.steps - step) / max(1.0, config.decay * config.steps))
    return config.lr * min(rise, fall)


def draw_sigma(config: TrainConfig, count: int, generator: torch.Generator) -> Tensor:
    """Noise levels of one batch, (count,): log-normal, some log-uniform (EDM, section 5)."""
    log_sigma = config.log_sigma_mean + config.log_sigma_std * torch.randn(count, generator=generator)
    low, high = math.log(0.01), math.log(100)
    uniform = low + (high - low) * torch.rand(count, generator=generator)
    chosen = torch.rand(count, generator=generator) < config.uniform_share
    return torch.where(chosen, uniform, log_sigma.clamp(low, high)).exp()


def denoising_loss(denoiser: nn.Module, x_0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of D with the weight 1 / c_out^2, so every noise level counts alike.

    Args:
        denoiser: D(x, sigma) with `coefficients(sigma)` giving c_skip and c_out.
        x_0: Clean images, (N, C, H, W), in [-1, 1].
        sigma: Noise levels, (N,).
        noise: N(0, I), same shape as x_0.

    Returns:
        A scalar; about 1 for an untrained network.

    Source: Karras et al. 2022, eq. 8 (there the same loss is written on F).
    """
    _, c_out = denoiser.coefficients(sigma)  # type: ignore[operator]  # a Module's methods are untyped
    error = (denoiser(x_0 + sigma[:, None, None, None] * noise, sigma) - x_0) / c_out
    loss: Tensor = error.square().mean()
    return loss


def train(
    denoiser: nn.Module,
    batch_at: Callable[[int], Tensor],
    config: TrainConfig,
    checkpoint: Path,
    report: Callable[[dict[str, Any]], None],
) -> nn.Module:
    """Train in place, saving as it goes; continue from `checkpoint` where it exists.

    Args:
        denoiser: What to train.
        batch_at: Clean images (N, C, H, W) in [-1, 1] of a step.
        config: Settings.
        checkpoint: File to resume from and to write, replaced atomically.
        report: Called with step, loss, images per second and learning rate every few steps.

    Returns:
        The moving average of the weights, as a module like `denoiser`.
    """
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    first = 0
    if checkpoint.exists():
        first = load_checkpoint(checkpoint, denoiser, average, optimizer)
    losses: list[float] = []
    images, since = 0, time.monotonic()
    for step in range(first, config.steps):
        x_0 = batch_at(step).to(memory_format=torch.channels_last)
        g = step_generator(config.seed, step, stream=1)
        sigma = draw_sigma(config, len(x_0), g)
        noise = torch.randn(x_0.shape, generator=g)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = denoising_loss(denoiser, x_0, sigma, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without types
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        update_average(average, denoiser, min(config.ema, (1 + step) / (10 + step)))
        losses.append(loss.item())
        images += len(x_0)
        if (step + 1) % config.log_every == 0:
            rate = images / (time.monotonic() - since)
            mean = sum(losses) / len(losses)
            report({"step": step + 1, "loss": mean, "images_per_s": rate, "lr": learning_rate(config, step)})
            losses, images, since = [], 0, time.monotonic()
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            save_checkpoint(checkpoint, denoiser, average, optimizer, step + 1)
    return average


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move each averaged weight towards the model's: average = decay average + (1 - decay) model."""
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


def save_checkpoint(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write everything a resumed run needs; a kill leaves the old file or the new one."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as f:
        f.write(save(tensors, metadata={"step": str(step)}))
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def load_checkpoint(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Restore what `save_checkpoint` wrote and return its step."""
    with safe_open(path, framework="pt") as f:
        step = int(f.metadata()["step"])
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  # no mapping

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    model.load_state_dict(part("model."))
    average.load_state_dict(part("average."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer.").items():
        index, moment = name.split(".")
        moments.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return step
