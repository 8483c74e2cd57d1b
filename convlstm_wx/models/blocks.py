"""Blocks that the networks share: halving a grid, growing it back, and the stack of recurrent layers between.

Shapes: B batch, C input channels, H lat, W lon, K hidden channels. Every grid size works, odd ones too: halving
rounds up, and growing goes to the size that it is told.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from convlstm_wx.models.convlstm import ConvLSTM, Memory, State


def halve(input_channels: int, output_channels: int) -> nn.Conv2d:
    """A learned 3x3 halving: [B, C, H, W] -> [B, K, ceil(H/2), ceil(W/2)]."""
    return nn.Conv2d(input_channels, output_channels, 3, stride=2, padding=1)


def grow(x_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear growth to a (height, width), in float32: MPS autocast would run it in half precision."""
    with torch.autocast(x_BCHW.device.type, enabled=False):
        x = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
        return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def make_ups(hidden_channels: Sequence[int]) -> nn.ModuleList:
    """The convolutions of :func:`climb`, finest first."""
    return nn.ModuleList(nn.Conv2d(coarse + fine, fine, 3, padding=1) for fine, coarse in pairwise(hidden_channels))


def climb(ups: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    """The way back up a U-Net [Ronneberger et al. 2015], from features [B, K, H, W] of each resolution, finest first.

    Returns:
        Features of the finest resolution, joined on the way by those of each other one.
    """
    grown = features[-1]
    for fine_BKHW, up in zip(features[-2::-1], reversed(ups)):
        grown = functional.silu(up(torch.cat([grow(grown, fine_BKHW.shape[-2:]), fine_BKHW], dim=1)))
    return grown


def increment_head(input_channels: int, targets: int) -> nn.Conv2d:
    """A 1x1 convolution that starts at zero: a network that adds its output to the last state starts as persistence."""
    head = nn.Conv2d(input_channels, targets, 1)
    nn.init.zeros_(head.weight)
    assert head.bias is not None
    nn.init.zeros_(head.bias)
    return head


def with_whole_gradient(x: Tensor) -> Tensor:
    """The same; the gradient that comes back to it is contiguous.

    Else the convolution before would take the way of channels_last, slow on MPS (pytorch#193349). A compiler, which
    lays out memory itself, is never used there.
    """
    if x.requires_grad and not torch.compiler.is_compiling():
        x.register_hook(Tensor.contiguous)
    return x


def fold_times(x_BTCHW: Tensor) -> Tensor:
    """[T B, C, H, W], time-major, for the layers without recurrence; :func:`unfold_times` takes it back.

    Channels_last except on MPS. What comes out of a ConvLSTM on a CPU has that layout: no copy is made of it.
    """
    if x_BTCHW.device.type == "mps":
        return x_BTCHW.transpose(0, 1).flatten(0, 1)
    return x_BTCHW.permute(1, 0, 3, 4, 2).flatten(0, 1).movedim(-1, 1)


def unfold_times(x_NCHW: Tensor, times: int) -> Tensor:
    """[T B, C, H, W] -> [B, T, C, H, W], a view."""
    return x_NCHW.unflatten(0, (times, -1)).transpose(0, 1)


def read_sliding(cell: ConvLSTM, x_BTCHW: Tensor, times: int, apart: int | None) -> tuple[Tensor, State]:
    """A first layer over windows of so many times, from what :func:`each_time_once` made of them.

    The input's share of the gates is computed once a time; the windows are views of it. The states start from zero in
    each window, so that nothing behind them can be shared.
    """
    if apart is None:
        return cell(x_BTCHW)
    return cell.unroll(cell.input_gates(x_BTCHW)[0].unfold(0, times, apart).movedim(-1, 1))


def each_time_once(x_BTCHW: Tensor, apart: int | None) -> Tensor:
    """Windows of which each starts so many times after the one before, fewer than T, as one long window.

    None: as they are.
    """
    if apart is None:
        return x_BTCHW
    return torch.cat([x_BTCHW[0], x_BTCHW[1:, -apart:].flatten(0, 1)]).unsqueeze(0)


class RecurrentPyramid(nn.Module):
    """ConvLSTM layers at full, half, quarter ... resolution, each fed by the one above it.

    Args:
        input_channels: C of the full-resolution input.
        hidden_channels: K of each resolution, finest first.
        kernel_size: of the ConvLSTM layers.
        dropout: share of the features that are dropped between layers while training.
        memory: of the ConvLSTM layers.
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: Sequence[int],
        kernel_size: int,
        dropout: float,
        memory: Memory = "save",
    ):
        super().__init__()
        self.stem = nn.Conv2d(input_channels, hidden_channels[0], 3, padding=1)
        self.downs = nn.ModuleList(halve(fine, coarse) for fine, coarse in pairwise(hidden_channels))
        self.cells = nn.ModuleList(ConvLSTM(k, k, kernel_size, memory=memory) for k in hidden_channels)
        self.dropout = nn.Dropout(dropout)

    def read(self, x_BTCHW: Tensor, apart: int | None = None) -> list[State]:
        """A whole sequence from states of zero, layer by layer; returns the last (h, c) of each, finest first.

        All times pass through the convolutions between the layers in one call each. `apart` is that of
        :meth:`~convlstm_wx.models.network.Network.rollout`.
        """
        times = x_BTCHW.shape[1]
        seen_BTCHW = each_time_once(x_BTCHW, apart)
        features = self.dropout(functional.silu(self.stem(fold_times(seen_BTCHW))))
        features_BTKHW = unfold_times(features, seen_BTCHW.shape[1])
        hidden_BTKHW, state = read_sliding(cast(ConvLSTM, self.cells[0]), features_BTKHW, times, apart)
        states = [state]
        for down, cell in zip(self.downs, self.cells[1:]):
            features = self.dropout(functional.silu(down(fold_times(hidden_BTKHW))))
            hidden_BTKHW, state = cell(unfold_times(features, times))
            states.append(state)
        return states

    def step(self, x_BCHW: Tensor, states: list[State], context_BKHW: Tensor | None = None) -> list[State]:
        """One time step through all resolutions.

        Args:
            x_BCHW: the input of this step.
            states: one (h, c) per resolution, finest first.
            context_BKHW: added to the input of the coarsest layer (what the upstream regions have to say).

        Returns:
            The new states, finest first.
        """
        features = functional.silu(self.stem(x_BCHW))
        new_states: list[State] = []
        for level, cell in enumerate(self.cells):
            if level > 0:
                features = functional.silu(self.downs[level - 1](new_states[-1][0]))
            if context_BKHW is not None and level == len(self.cells) - 1:
                features = features + context_BKHW
            new_states.append(cast(ConvLSTM, cell).step(self.dropout(features), states[level]))
        return new_states
