"""Two optimizers as one: Muon for the convolutions inside a network, AdamW for the rest."""

from itertools import chain

import torch
from torch import Tensor, nn

SMALLEST_MATRIX = 16
"""Convolutions from or to fewer channels, such as those that meet the image, are left to AdamW."""


class Optimizer:
    """Moves each convolution by an orthogonal matrix, and everything else as AdamW does.

    Source: Jordan et al. 2024 (Muon); the scale that lets both share one learning rate is that of
    Liu et al. 2025, "Muon is scalable for LLM training".
    """

    def __init__(self, network: nn.Module, lr: float, *, muon: bool = True) -> None:
        """Take over the parameters of `network`, which must stay where they are in memory.

        Args:
            network: What to train.
            lr: Highest learning rate of the convolutions; the rest has half of it with Muon.
            muon: Whether to use Muon at all; AdamW suits a network that it trained.
        """
        self.network = network
        parameters = list(network.parameters())
        convolutions = [p for p in parameters if p.ndim == 4 and min(p.shape[:2]) >= SMALLEST_MATRIX]
        self._convolutions = convolutions if muon else []
        self._matrices = [nn.Parameter(as_matrix(p.data)) for p in self._convolutions]
        taken = {id(p) for p in self._convolutions}
        rest = [p for p in parameters if id(p) not in taken]
        self._parts: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.0)
        }
        self._rates = {"adamw": lr}
        if self._matrices:
            self._parts["muon"] = torch.optim.Muon(
                self._matrices, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            )
            self._rates = {"adamw": lr / 2, "muon": lr}

    def step(self, share: float) -> None:
        """Move the parameters along their gradients, and forget those.

        Args:
            share: Of the highest learning rate, 0 to 1.
        """
        for p in self.network.parameters():
            if p.grad is None:  # the weights of a band of noise levels that this batch has none of
                p.grad = torch.zeros_like(p)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for matrix, p in zip(self._matrices, self._convolutions, strict=True):
            assert p.grad is not None
            matrix.grad = as_matrix(p.grad.contiguous(memory_format=_order(p)))
        for name, part in self._parts.items():
            for group in part.param_groups:
                group["lr"] = self._rates[name] * share
            part.step()
        for p in chain(self.network.parameters(), self._matrices):
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        return {
            f"{name}.{index}.{key}": value
            for name, part in self._parts.items()
            for index, values in part.state_dict()["state"].items()
            for key, value in values.items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        moments: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in self._parts}
        for key, value in state.items():
            name, index, moment = key.split(".")
            moments[name].setdefault(int(index), {})[moment] = value
        for name, part in self._parts.items():
            expected = sum(len(group["params"]) for group in part.param_groups)
            if state and len(moments[name]) != expected:
                raise ValueError(f"{name} has the state of {len(moments[name])} of {expected} parameters")
            part.load_state_dict({**part.state_dict(), "state": moments[name]})
            for p, values in part.state.items():
                for key, value in values.items():
                    if value.shape == p.shape:  # in the memory order of the parameter, as it was
                        values[key] = torch.empty_like(p).copy_(value)


def as_matrix(weight: Tensor) -> Tensor:
    """View the weight of a convolution, (out, in, kh, kw), as (out, rest) without a copy."""
    rows = weight.permute(0, 2, 3, 1) if _order(weight) == torch.channels_last else weight
    matrix = rows.reshape(len(weight), -1)
    assert matrix.data_ptr() == weight.data_ptr(), "a copy would be trained in place of the weight"
    return matrix


def _order(weight: Tensor) -> torch.memory_format:
    is_last = weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
