"""A masked autoencoder: what a picture may look like where tokens of it were removed.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, and the layout of
transformers' ViTMAEForPreTraining.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipcli.models.mae_config import MAEConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DEVICE_CALL_ROWS = 16
"""Images in one call of the network, on a GPU. On a CPU it is one: that is as fast, and an image does not
depend on its neighbours in the last bits."""


class Block(nn.Module):
    """A transformer block: attention, then two linear layers, each beside an identity."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        """Build it without values."""
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Transform tokens, (N, T, width), none of which sees those where `visible`, (N, T), is False."""
        n, t, width = tokens.shape
        q, k, v = self.qkv(self.norm1(tokens)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = None if visible is None else visible[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        tokens = tokens + self.proj(mixed.transpose(1, 2).reshape(n, t, width))
        out: Tensor = tokens + self.down(F.gelu(self.up(self.norm2(tokens))))
        return out


class MAE(nn.Module):
    """The network.

    The published one drops the removed tokens before its encoder. Here those of several images stay, and
    no token sees them, which is the same but for rounding: so any numbers of removed tokens go together.
    """

    def __init__(self, config: MAEConfig) -> None:
        """Build it without values."""
        super().__init__()
        self.config = c = config
        tokens = c.grid**2 + 1
        self.patch = nn.Conv2d(3, c.width, c.patch, c.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, c.width))
        self.positions = nn.Parameter(torch.zeros(1, tokens, c.width))
        self.encoder = nn.ModuleList(Block(c.width, c.heads, c.hidden, c.norm_eps) for _ in range(c.blocks))
        self.norm = nn.LayerNorm(c.width, c.norm_eps)
        self.bridge = nn.Linear(c.width, c.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.decoder_positions = nn.Parameter(torch.zeros(1, tokens, c.decoder_width))
        self.decoder = nn.ModuleList(
            Block(c.decoder_width, c.decoder_heads, c.decoder_hidden, c.norm_eps)
            for _ in range(c.decoder_blocks)
        )
        # As transformers has it, the decoder's last normalisation shares the encoder's epsilon.
        self.decoder_norm = nn.LayerNorm(c.decoder_width, c.norm_eps)
        self.pixels = nn.Linear(c.decoder_width, 3 * c.patch**2)

    def forward(self, images: Tensor, removed: Tensor) -> Tensor:
        """Predict every token from those that are left.

        Args:
            images: (N, 3, side, side), less ImageNet's mean, over its deviation.
            removed: Whether each token is removed, bool, (N, grid, grid).

        Returns:
            Images like those that came in. Where nothing was removed they are the network's guess, too.
        """
        c = self.config
        gone = F.pad(removed.flatten(1), (1, 0))  # the class token never is
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), tokens], dim=1) + self.positions
        # One image alone has no places for what is not seen: that halves the work where much is removed.
        kept = ~gone[0] if len(images) == 1 else torch.ones_like(gone[0])
        tokens, visible = tokens[:, kept], ~gone[:, kept]
        for block in self.encoder:
            tokens = block(tokens, visible)
        seen = torch.where(visible[..., None], self.bridge(self.norm(tokens)), self.mask_token)
        tokens = self.mask_token.repeat(len(images), len(kept), 1)
        tokens[:, kept] = seen
        tokens = tokens + self.decoder_positions
        for block in self.decoder:
            tokens = block(tokens)
        pixels = self.pixels(self.decoder_norm(tokens))[:, 1:]
        patches = pixels.view(-1, c.grid, c.grid, c.patch, c.patch, 3)
        out: Tensor = patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, c.side, c.side)
        return out


class Restorer:
    """A `MaskedAutoencoder` around an `MAE`.

    Attributes:
        before_call: Called before each call of the network; it may raise to stop a batch.
    """

    def __init__(self, net: MAE) -> None:
        """Serve `net`, which must be in eval mode and on its device."""
        self.net = net
        self.side = net.config.side
        self.grid = net.config.grid
        self.before_call: Callable[[], None] = lambda: None
        weight = net.patch.weight
        self._mean = weight.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
        self._std = weight.new_tensor(IMAGENET_STD).view(3, 1, 1)

    def __call__(self, x: Tensor, removed: Tensor, /) -> Tensor:
        """Predict x, (N, 3, side, side) in [-1, 1], from the tokens that are not `removed`."""
        normal = ((x + 1) / 2 - self._mean) / self._std
        rows = 1 if x.device.type == "cpu" else DEVICE_CALL_ROWS
        outputs = []
        for some, gone in zip(torch.split(normal, rows), torch.split(removed, rows), strict=True):
            self.before_call()
            # Calls of one shape: fast products may choose their order of summation by it.
            index = torch.arange(rows, device=x.device).clamp(max=len(some) - 1)
            outputs.append(self.net(some[index], gone[index])[: len(some)])
        return (torch.cat(outputs) * self._std + self._mean) * 2 - 1
