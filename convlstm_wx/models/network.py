"""What all networks are: the past is read once, then one lead time follows from another.

Shapes: B batch, T input times, L lead times, C input channels, D target channels, F forcing channels,
M mask channels, H lat, W lon, K hidden channels. All fields are normalised.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convlstm_wx.models.blend import LinearBlend
from convlstm_wx.models.convlstm import Memory
from convlstm_wx.models.upstream import UpstreamEncoder, fuse_by


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The numbers that a network is built from, whichever it is; a checkpoint stores them as a plain dict.

    Attributes:
        input_channels: C, of which the last `mask_channels` are masks (1 observed, 0 missing).
        target_indices: which of the input channels are forecast, D of them.
        target_mask_indices: for each target its mask among the mask channels, -1 if it has no gaps.
        mask_channels: M.
        forcing_channels: F.
        upstream_channels: channels of each upstream region's input, forcing included; empty without any.
        increment_scale: standard deviation of one-step differences for each target, normalised units.
        hidden_channels: K of each resolution, finest first.
        kernel_size: of the ConvLSTM layers.
        dropout: share of features dropped between layers while training.
        upstream_fusion: how upstream features meet the target's, see :func:`~convlstm_wx.models.upstream.fuse_by`.
        recompute: compute the gates of the ConvLSTM layers twice rather than keep them for the backward pass.
        blend: of the :class:`~convlstm_wx.models.blend.LinearBlend` that the network is a part of, if it is.
    """

    input_channels: int
    target_indices: Sequence[int]
    target_mask_indices: Sequence[int]
    mask_channels: int
    forcing_channels: int
    upstream_channels: Sequence[int]
    increment_scale: Sequence[float]
    hidden_channels: Sequence[int]
    kernel_size: int
    dropout: float
    upstream_fusion: str = "attention"
    recompute: bool = False
    blend: Mapping[str, Any] | None = None

    @property
    def memory(self) -> Memory:
        """Of the ConvLSTM layers."""
        return "recompute" if self.recompute else "save"

    @property
    def pyramid(self) -> tuple[Sequence[int], int, float, Memory]:
        """What every :class:`~convlstm_wx.models.blocks.RecurrentPyramid` gets after its number of input channels."""
        return self.hidden_channels, self.kernel_size, self.dropout, self.memory

    def upstream_parts(self) -> tuple[nn.ModuleList, nn.Module | None]:
        """An encoder for each upstream region and what fuses their features; no fusion without any region."""
        encoders = nn.ModuleList(UpstreamEncoder(c, *self.pyramid) for c in self.upstream_channels)
        if not self.upstream_channels:
            return encoders, None
        return encoders, fuse_by(self.upstream_fusion, self.hidden_channels[-1], regions=len(encoders))


class Network(nn.Module):
    """The interface that training and forecasting know.

    A network reads the past in :meth:`encode` and goes one lead time further in :meth:`advance`. What one hands to the
    next is a named tuple of the network's own with at least `fields_BDHW`, the targets at the last known or forecast
    time; :meth:`advance` goes on from whatever fields it is given there.
    """

    increment_scale_D11: Tensor
    feeds_back = True
    """Whether a lead time starts from the fields of the one before."""

    def __init__(self, options: NetworkOptions):
        super().__init__()
        self.mask_channels = options.mask_channels
        self.target_indices = list(options.target_indices)
        self.target_mask_indices = list(options.target_mask_indices)
        scale = torch.tensor(options.increment_scale).reshape(-1, 1, 1)
        self.register_buffer("increment_scale_D11", scale, persistent=False)
        self.blend = self._blend_of(options)

    @staticmethod
    def _blend_of(options: NetworkOptions) -> LinearBlend | None:
        if not options.blend:
            return None
        return LinearBlend(targets=options.target_indices, target_masks=options.target_mask_indices, **options.blend)

    def forward(self, x_BTCHW: Tensor, forcing_BSFHW: Tensor, upstream: Sequence[Tensor] = ()) -> Tensor:
        """The forecast of every lead time: while training that of the network alone, else blended.

        Args:
            x_BTCHW: the inputs; missing points are 0 and marked in their mask channel.
            forcing_BSFHW: known forcings at the S = T + L input and lead times.
            upstream: one [B, T, Cu, Hu, Wu] per upstream region.

        Returns:
            y_BLDHW, float32.
        """
        return torch.stack(list(self.rollout(x_BTCHW, forcing_BSFHW, upstream)), dim=1)

    def rollout(
        self, x_BTCHW: Tensor, forcing_BSFHW: Tensor, upstream: Sequence[Tensor] = (), apart: int | None = None
    ) -> Iterator[Tensor]:
        """The same, one y_BDHW at a time: memory does not grow with the number of lead times.

        Args:
            apart: that each of the B windows starts so many times, fewer than T, after the one before. What the
                encoders make of a time alone is then computed once and not for each window with that time in it: the
                same forecasts to rounding. None: the windows are unlike.
        """
        alone = self.alone(x_BTCHW, forcing_BSFHW, upstream, apart)
        if self.blend is None or self.training:
            return alone
        return self.blend(alone, x_BTCHW, upstream, forcing_BSFHW.shape[1] - x_BTCHW.shape[1])

    def alone(
        self, x_BTCHW: Tensor, forcing_BSFHW: Tensor, upstream: Sequence[Tensor], apart: int | None = None
    ) -> Iterator[Tensor]:
        """What the network says of each lead time without the model that it is blended with."""
        times = x_BTCHW.shape[1]
        state = self.encode(x_BTCHW, forcing_BSFHW[:, :times], upstream, apart)
        for forcing_BFHW in forcing_BSFHW[:, times:].unbind(1):
            state = self.advance(state, forcing_BFHW)
            yield state.fields_BDHW

    def encode(
        self, x_BTCHW: Tensor, forcing_BTFHW: Tensor, upstream: Sequence[Tensor], apart: int | None = None
    ) -> Any:
        """Read the past; returns the state before the first lead time. `apart`: see :meth:`rollout`."""
        raise NotImplementedError

    def advance(self, state: Any, forcing_BFHW: Tensor) -> Any:
        """One lead time further; `forcing_BFHW` is of the time that is forecast."""
        raise NotImplementedError

    def masks(self, x_BCHW: Tensor) -> Tensor:
        """The mask channels [B, M, H, W] of an input."""
        return x_BCHW[:, x_BCHW.shape[1] - self.mask_channels :]

    def where_observed(self, fields_BDHW: Tensor, mask_BMHW: Tensor) -> Tensor:
        """Targets with 0 where the last input had none: nothing was learned there, so nothing is fed back."""
        if self.mask_channels == 0:
            return fields_BDHW
        ones_B1HW = torch.ones_like(mask_BMHW[:, :1])
        masks = [ones_B1HW if m < 0 else mask_BMHW[:, m : m + 1] for m in self.target_mask_indices]
        return fields_BDHW * torch.cat(masks, dim=1)

    def incremented(self, fields_BDHW: Tensor, increment_BDHW: Tensor) -> Tensor:
        """Fields plus increments in typical one-step changes."""
        # Added in float32: a half-precision sum would round small increments away.
        return fields_BDHW + self.increment_scale_D11 * increment_BDHW.to(fields_BDHW.dtype)
