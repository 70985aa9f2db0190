"""An eps model for images of any size, around one that takes windows of a fixed or limited size.

The chain of an image lives at its full size: one state, one noise, one set of targets A x. Only
the network sees windows (or a canvas of many small images), and its noise predictions are blended
anew in every step. So windows cannot drift apart and no seam can form, blocks of a blur need not
line up with windows, and a small image needs no block size that divides its cell.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from zipcli.images.tile import (
    blend_windows,
    cells_per_canvas,
    grid_origins,
    pack_canvases,
    pad_mirrored,
    split_windows,
    unpack_canvases,
)
from zipcli.protocols import EpsModel

CPU_CALL_PIXELS = 4 * 32 * 32
"""Pixels in one call of the network, for small windows. A CPU is busy with four images of 32 pixels;
more would waste work on the last call of a batch, which is filled up."""

CPU_LOOSE_CALL_PIXELS = 16 * 32 * 32
"""The same where calls need not be filled up: with 16 images a call is 9 % faster, in bfloat16 15 %."""

DEVICE_CALL_PIXELS = 256 * 32 * 32
"""The same elsewhere, where a call costs a launch."""

DEFAULT_WINDOW = 512
"""Side of a window for a model that takes any size: below it an image is one window."""

DEFAULT_OVERLAP = 64
"""Pixels that neighbouring windows share: more than the built-in prior sees around a pixel."""


class WindowedModel:
    """An `EpsModel` that takes (N, C, H, W) of any H and W.

    Attributes:
        native_side: Of the network inside: smaller images are packed, larger ones are cut, for it.
        before_call: Called before each call of the network; it may raise to stop a batch.
    """

    minimum_side = 1

    def __init__(self, model: EpsModel, side: int, overlap: int, *, batch_invariant: bool = False) -> None:
        """Wrap `model`.

        Args:
            model: Takes squares of its native side, or any side from its minimum.
            side: Side of a window in pixels; the model's own where it has one.
            overlap: Pixels that neighbouring windows share.
            batch_invariant: Whether what it says of an input is the same to the last bit, whatever
                else is in the call.
        """
        self.model = model
        self.batch_invariant = batch_invariant
        self.schedule = model.schedule
        self.channels = model.channels
        self.native_side = model.native_side
        self.side = side
        self.overlap = overlap
        self.before_call: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Predict the noise in x_t, (N, C, H, W), at t, (N,): returns (N, C, H, W)."""
        n, _, height, width = x_t.shape
        size = (height, width)
        if self.images_per_canvas(size) > 1:
            canvases = pack_canvases(x_t, self.side)
            return unpack_canvases(self._call(canvases, t[0].expand(len(canvases))), n, size)
        window = self.window(size)
        padded = pad_mirrored(x_t, window)
        padded_size = (padded.shape[-2], padded.shape[-1])
        origins = grid_origins(padded_size, window, self.overlap)
        if len(origins) == 1:
            return self._call(padded, t)[..., :height, :width]
        windows = split_windows(padded, origins, window)
        eps = self._call(windows, t.repeat_interleave(len(origins)))
        return blend_windows(eps, origins, padded_size)[..., :height, :width]

    def images_per_canvas(self, size: tuple[int, int]) -> int:
        """How many images of `size` share one input of the network; 1 without packing."""
        return max(1, cells_per_canvas(size, self.side)) if self.model.native_side else 1

    def window(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size of the windows of an image."""
        if self.model.native_side:
            return (self.side, self.side)
        low = self.model.minimum_side
        return (min(max(size[0], low), self.side), min(max(size[1], low), self.side))

    def _call(self, x: Tensor, t: Tensor) -> Tensor:
        """Call the network, unless it is known to be invariant with inputs of one shape per window size.

        Fast convolutions may choose their order of summation by the shape of the whole batch, so an
        image alone and among others would differ in the last bits. Short chunks are filled up.
        """
        size = self.images_per_call((x.shape[-2], x.shape[-1]), x.device)
        outputs = []
        for start in range(0, len(x), size):
            chunk, times = x[start : start + size], t[start : start + size]
            missing = 0 if self.batch_invariant else size - len(chunk)
            self.before_call()
            if missing:
                chunk = torch.cat([chunk, chunk[:1].expand(missing, -1, -1, -1)])
                times = torch.cat([times, times[:1].expand(missing)])
            chunk = chunk.contiguous(memory_format=torch.channels_last)
            with self._lock:  # a packed network keeps what it has prepared for a noise level and a shape
                outputs.append(self.model(chunk, times)[: len(chunk) - missing, : self.channels])
        return torch.cat(outputs)

    def images_per_call(self, window: tuple[int, int], device: torch.device) -> int:
        """Windows in one call of the network: a function of their size and the device alone."""
        pixels = DEVICE_CALL_PIXELS
        if device.type == "cpu":
            pixels = CPU_LOOSE_CALL_PIXELS if self.batch_invariant else CPU_CALL_PIXELS
        return max(1, pixels // max(window[0] * window[1], 32 * 32))
