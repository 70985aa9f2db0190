"""Networks laid out for inference on a CPU: the same functions as their plain forms, in less time.

What a plain network does anew in each call is done once here: weights are reordered as oneDNN reads
them, the modulation by the noise level is folded into the normalisation before it, and sums and biases
are part of the convolution before them. Nothing else changes; the numbers agree to rounding.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipcli.models.denoiser import Denoiser
from zipcli.models.local_unet import BandedUNet, GatedBlock, LocalUNet, PixelNorm, noise_features
from zipcli.models.prior import Prior, UNetPrior
from zipcli.protocols import EpsModel

LANES = 16
"""float32 numbers in a vector register: a convolution to fewer channels costs as much as one to these."""


def for_inference(model: Prior | UNetPrior) -> Prior | UNetPrior:
    """The same model, faster; the given one must not be trained or used any more.

    On other devices than a CPU, and where PyTorch lacks what this needs, it is the model itself.
    """
    network = model.net if isinstance(model, UNetPrior) else model.denoiser.net
    dtype = model.net.stem.weight.dtype if isinstance(model, UNetPrior) else model.dtype
    if next(network.parameters()).device.type != "cpu" or not has_packed_layers(dtype):
        return model
    if isinstance(model, UNetPrior):
        _pack_layers(model.net)
        return model
    if not isinstance(network, LocalUNet | BandedUNet) or network.config.block != "gated":
        return model
    packed = Denoiser(PackedUNet(network, model.dtype), model.denoiser.sigma_data).eval()
    return Prior(packed, model.schedule, model.channels)


def is_batch_invariant(model: EpsModel) -> bool:
    """Whether what a model says of an image is the same to the last bit, whatever else is in the call.

    Of the packed networks it is so where the convolutions of oneDNN sum in an order that does not depend
    on the number of images; it is tried out, once for each model.
    """
    if not isinstance(model, Prior) or not isinstance(model.denoiser.net, PackedUNet):
        return False
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for side in (16, 33):
            x = torch.randn(7, model.channels, side, side, generator=generator)
            x = x.contiguous(memory_format=torch.channels_last)
            together = model(x, torch.full((7,), 200.0))
            for count in (1, 3):
                if not torch.equal(model(x[:count], torch.full((count,), 200.0)), together[:count]):
                    return False
    return True


@cache
def has_packed_layers(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and processor have the operators in `dtype`, and they mean what we think.

    They are what its own compiler uses, and no documented interface: hence the trial.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    for parameter in conv.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 4, 6, 6, generator=generator).contiguous(memory_format=torch.channels_last)
    linear = nn.Linear(6, 4).requires_grad_(False)
    convolved = F.conv2d(x, conv.weight, conv.bias, padding=1)
    expected = (convolved, convolved + x, linear(x))
    x = x.to(dtype)
    try:
        packed, found_linear = PackedConv(conv, dtype), PackedLinear(linear.to(dtype))(x)
        found = (packed(x), packed.add_to(x.clone(), x), found_linear)
    except (AttributeError, RuntimeError, TypeError):
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    return all(torch.allclose(a.float(), b, atol=tolerance) for a, b in zip(found, expected, strict=True))


class PackedConv(nn.Module):
    """A convolution whose weights lie as oneDNN reads them for the shape of the last input."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        """Take the weights of `conv`, in `dtype`."""
        super().__init__()
        assert conv.bias is not None
        self.weight = _frozen(conv.weight.to(dtype, memory_format=torch.channels_last))
        self.bias = _frozen(conv.bias.to(dtype))
        self._sides = (list(cast("tuple[int, int]", conv.padding)), list(conv.stride), [1, 1], 1)
        self._shape: torch.Size | None = None
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W); the result is channels-last."""
        x = x.contiguous(memory_format=torch.channels_last)
        self._pack(x.shape)
        operator = torch.ops.mkldnn._convolution_pointwise
        out: Tensor = operator(x, self._packed, self.bias, *self._sides, "none", [], "")
        return out

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Add the convolution of x to `total`, in place, and return it."""
        self._pack(x.shape)
        operator = torch.ops.mkldnn._convolution_pointwise_.binary
        then: tuple[Any, ...] = ("add", 1.0, None, [], None)
        out: Tensor = operator(total, x, self._packed, self.bias, *self._sides, *then)
        return out

    def _pack(self, shape: torch.Size) -> None:
        if shape != self._shape:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self._packed = reorder(self.weight, *self._sides, list(shape))
            self._shape = shape


class PackedLinear(nn.Module):
    """A linear map whose weights lie as oneDNN reads them for as many rows as the last input had."""

    def __init__(self, linear: nn.Linear) -> None:
        """Take the weights of `linear`."""
        super().__init__()
        self.weight = _frozen(linear.weight)
        self.bias = linear.bias
        self._rows = 0
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C')."""
        rows = x.shape[:-1].numel()
        if rows != self._rows:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
            self._rows = rows
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out


class PackedBlock:
    """A `GatedBlock`; the scale and shift that its norm gets are those of one noise level."""

    def __init__(self, block: GatedBlock, dtype: torch.dtype) -> None:
        """Take the weights of `block`."""
        self.plain = block
        self.conv1 = PackedConv(block.conv1, dtype)
        self.conv2 = PackedConv(block.conv2, dtype)
        self.weight = block.norm.weight
        self.bias = block.norm.bias

    def modulate(self, embedding: Tensor) -> None:
        """Fold the modulation of a noise level, (1, E), into the normalisation."""
        scale, shift = self.plain.modulation(embedding)[0].chunk(2)
        self.weight = cast(Any, self.plain.norm.weight * (1 + scale))
        self.bias = cast(Any, self.plain.norm.bias * (1 + scale) + shift)

    def __call__(self, h: Tensor) -> Tensor:
        """Map (N, width, H, W) to itself, in place."""
        a, b = self.conv1(_normalised(h, self.plain.norm, self.weight, self.bias)).chunk(2, dim=1)
        return self.conv2.add_to(h, a * b)


class PackedLocalUNet:
    """A `LocalUNet` for one noise level at a time."""

    def __init__(self, net: LocalUNet, dtype: torch.dtype) -> None:
        """Take the weights of `net`, and compute in `dtype`."""
        self.plain = net
        self.dtype = dtype
        self.level: float | None = None
        self.stem = PackedConv(net.stem, dtype)
        self.down_blocks = [self._level(blocks, dtype) for blocks in net.down_blocks]
        self.down = [PackedConv(cast(nn.Conv2d, conv), dtype) for conv in net.down]
        self.middle = self._level(net.middle, dtype)
        self.up = [PackedConv(_shuffled(cast(nn.Conv2d, conv)), dtype) for conv in net.up]
        self.up_blocks = [self._level(blocks, dtype) for blocks in net.up_blocks]
        self.out = PackedConv(_widened(net.out), dtype)

    @staticmethod
    def _level(blocks: nn.Module, dtype: torch.dtype) -> list[PackedBlock]:
        return [PackedBlock(cast(GatedBlock, block), dtype) for block in cast(nn.ModuleList, blocks)]

    def __call__(self, x: Tensor, level: float) -> Tensor:
        """Apply the network to (N, C, H, W) at noise level ln(sigma) / 4; see `LocalUNet.forward`."""
        if level != self.level:
            features = noise_features(torch.tensor([level]), self.plain.config.embedding)
            embedding = self.plain.embed(features)
            for block in self._blocks():
                block.modulate(embedding)
            self.level = level
        height, width = x.shape[-2:]
        m = self.plain.config.multiple
        pad = (0, -width % m, 0, -height % m)
        h = self.stem((F.pad(x, pad, mode="replicate") if any(pad) else x).to(self.dtype))
        skips = []
        for blocks, down in zip(self.down_blocks, self.down, strict=True):
            h = _through(blocks, h)
            skips.append(h)
            h = down(h)
        h = _through(self.middle, h)
        for i in reversed(range(len(skips))):
            h = _through(self.up_blocks[i], _add_enlarged(skips[i], self.up[i](h)))
        norm = self.plain.norm
        h = F.silu(_normalised(h, norm, norm.weight, norm.bias))
        out: Tensor = self.out(h)
        return out[:, : self.plain.config.channels, :height, :width]

    def _blocks(self) -> Iterator[PackedBlock]:
        for blocks in (*self.down_blocks, self.middle, *self.up_blocks):
            yield from blocks


class PackedUNet(nn.Module):
    """Stands in for a `LocalUNet` or `BandedUNet` in a `Denoiser`.

    Where the images of a call are not all at one noise level, which no sampler does, the plain network
    is asked.
    """

    def __init__(self, net: LocalUNet | BandedUNet, dtype: torch.dtype) -> None:
        """Take the weights of `net`."""
        super().__init__()
        self.plain = net
        experts = net.experts if isinstance(net, BandedUNet) else [net]
        self._experts = [PackedLocalUNet(cast(LocalUNet, expert), dtype) for expert in experts]

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """Apply the network; see `LocalUNet.forward`."""
        levels = set(noise_level.tolist())
        if len(levels) > 1:
            return cast(Tensor, self.plain(x, noise_level))
        expert = self.plain.band(noise_level[:1]) if isinstance(self.plain, BandedUNet) else 0
        return self._experts[expert](x, levels.pop())


def _through(blocks: list[PackedBlock], h: Tensor) -> Tensor:
    for block in blocks:
        h = block(h)
    return h


def _normalised(h: Tensor, norm: PixelNorm, weight: Tensor, bias: Tensor) -> Tensor:
    pixels = F.layer_norm(h.permute(0, 2, 3, 1), norm.normalized_shape, weight, bias, norm.eps)
    return pixels.permute(0, 3, 1, 2)


def _add_enlarged(skip: Tensor, h: Tensor) -> Tensor:
    """Add to the skip connection, (N, width, 2H, 2W), in place, what `_shuffled` made of a pixel shuffle."""
    n, channels, height, width = h.shape
    corners = h.permute(0, 2, 3, 1).view(n, height, width, 2, 2, channels // 4)
    pixels = skip.permute(0, 2, 3, 1).view(n, height, 2, width, 2, channels // 4)
    pixels += corners.permute(0, 1, 3, 2, 4, 5)
    return skip


def _shuffled(conv: nn.Conv2d) -> nn.Conv2d:
    """Order the outputs so that those of one of the four enlarged pixels lie side by side."""
    assert conv.bias is not None
    out = _like(conv, conv.out_channels)
    out.weight = _frozen(conv.weight.view(-1, 4, *conv.weight.shape[1:]).transpose(0, 1).flatten(0, 1))
    out.bias = _frozen(conv.bias.view(-1, 4).t().flatten())
    return out


def _widened(conv: nn.Conv2d) -> nn.Conv2d:
    """Append outputs that are 0 until a vector register is full."""
    assert conv.bias is not None
    more = max(0, LANES - conv.out_channels)
    out = _like(conv, conv.out_channels + more)
    out.weight = _frozen(F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, more)))
    out.bias = _frozen(F.pad(conv.bias, (0, more)))
    return out


def _like(conv: nn.Conv2d, out_channels: int) -> nn.Conv2d:
    kernel, padding = cast("tuple[int, int]", conv.kernel_size), cast("tuple[int, int]", conv.padding)
    return nn.Conv2d(conv.in_channels, out_channels, kernel, cast("tuple[int, int]", conv.stride), padding)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _pack_layers(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, PackedConv(child, child.weight.dtype))
        elif isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        else:
            _pack_layers(child)
