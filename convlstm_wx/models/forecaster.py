"""The encoder-forecaster: ConvLSTM layers read the past, others, started from their states, unroll the lead times.

Shapes: B batch, T input times, L lead times, C input channels, D target channels, F forcing channels,
M mask channels, H lat, W lon, K hidden channels. All fields are normalised.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from convlstm_wx.models.blocks import RecurrentPyramid, grow
from convlstm_wx.models.convlstm import State
from convlstm_wx.models.upstream import UpstreamEncoder, UpstreamFusion


class ForecastState(NamedTuple):
    """All that one lead time hands to the next."""

    states: list[State]
    fields_BDHW: Tensor
    """The targets at the last known or forecast time."""
    mask_BMHW: Tensor
    """Where the inputs with gaps were observed at the last input time; M may be 0."""
    context_BKHW: Tensor | None
    """What the upstream regions said; None without any."""


class EncoderForecaster(nn.Module):
    """A recurrent U-Net that adds an increment to the last state, one lead time after the other.

    Persistence is the starting point: the last layer starts at zero, and an increment of one is a typical change over
    one step. The forecaster sees its own last fields and the forcing of the time that it forecasts; its skip
    connections are the states of the finer resolutions.

    Args:
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
    """

    increment_scale_D11: Tensor

    def __init__(
        self,
        *,
        input_channels: int,
        target_indices: Sequence[int],
        target_mask_indices: Sequence[int],
        mask_channels: int,
        forcing_channels: int,
        upstream_channels: Sequence[int],
        increment_scale: Sequence[float],
        hidden_channels: Sequence[int],
        kernel_size: int,
        dropout: float,
    ):
        super().__init__()
        self.mask_channels = mask_channels
        self.target_indices = list(target_indices)
        self.target_mask_indices = list(target_mask_indices)
        self.hidden_channels = list(hidden_channels)
        targets = len(self.target_indices)
        self.register_buffer("increment_scale_D11", torch.tensor(increment_scale).reshape(-1, 1, 1), persistent=False)
        pyramid = (hidden_channels, kernel_size, dropout)
        self.encoder = RecurrentPyramid(input_channels + forcing_channels, *pyramid)
        self.forecaster = RecurrentPyramid(targets + mask_channels + forcing_channels, *pyramid)
        self.upstream_encoders = nn.ModuleList(UpstreamEncoder(c, *pyramid) for c in upstream_channels)
        self.fusion = UpstreamFusion(hidden_channels[-1]) if upstream_channels else None
        self.ups = nn.ModuleList(
            nn.Conv2d(coarse + fine, fine, 3, padding=1) for fine, coarse in pairwise(hidden_channels)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(hidden_channels[0], targets, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, x_BTCHW: Tensor, forcing_BSFHW: Tensor, upstream: Sequence[Tensor] = ()) -> Tensor:
        """The forecast of every lead time.

        Args:
            x_BTCHW: the inputs; missing points are 0 and marked in their mask channel.
            forcing_BSFHW: known forcings at the S = T + L input and lead times.
            upstream: one [B, T, Cu, Hu, Wu] per upstream region.

        Returns:
            y_BLDHW, float32.
        """
        return torch.stack(list(self.rollout(x_BTCHW, forcing_BSFHW, upstream)), dim=1)

    def rollout(self, x_BTCHW: Tensor, forcing_BSFHW: Tensor, upstream: Sequence[Tensor] = ()) -> Iterator[Tensor]:
        """The same, one y_BDHW at a time: memory does not grow with the number of lead times."""
        times = x_BTCHW.shape[1]
        state = self.encode(x_BTCHW, forcing_BSFHW[:, :times], upstream)
        for forcing_BFHW in forcing_BSFHW[:, times:].unbind(1):
            state = self.advance(state, forcing_BFHW)
            yield state.fields_BDHW

    def encode(self, x_BTCHW: Tensor, forcing_BTFHW: Tensor, upstream: Sequence[Tensor]) -> ForecastState:
        """Read the past."""
        if len(upstream) != len(self.upstream_encoders):
            raise ValueError(f"{len(upstream)} upstream inputs for {len(self.upstream_encoders)} upstream encoders")
        states = self.encoder.read(torch.cat([x_BTCHW, forcing_BTFHW], dim=2))
        last_BCHW = x_BTCHW[:, -1]
        mask_BMHW = last_BCHW[:, last_BCHW.shape[1] - self.mask_channels :]
        context = None
        if self.fusion is not None:
            features = [encoder(u_BTCHW) for encoder, u_BTCHW in zip(self.upstream_encoders, upstream)]
            context = self.fusion(states[-1][0], features)
        return ForecastState(states, last_BCHW[:, self.target_indices], mask_BMHW, context)

    def advance(self, state: ForecastState, forcing_BFHW: Tensor) -> ForecastState:
        """One lead time further."""
        inputs = [self._where_observed(state), state.mask_BMHW, forcing_BFHW]
        states = self.forecaster.step(torch.cat(inputs, dim=1), state.states, state.context_BKHW)
        increment_BDHW = self.head(self.dropout(self._decode(states)))
        # Added in float32: a half-precision sum would round small increments away.
        fields_BDHW = state.fields_BDHW + self.increment_scale_D11 * increment_BDHW.to(state.fields_BDHW.dtype)
        return state._replace(states=states, fields_BDHW=fields_BDHW)

    def _where_observed(self, state: ForecastState) -> Tensor:
        """The last fields with 0 where their input had none: nothing was learned there, so nothing is fed back."""
        if self.mask_channels == 0:
            return state.fields_BDHW
        ones_B1HW = torch.ones_like(state.mask_BMHW[:, :1])
        masks = [ones_B1HW if m < 0 else state.mask_BMHW[:, m : m + 1] for m in self.target_mask_indices]
        return state.fields_BDHW * torch.cat(masks, dim=1)

    def _decode(self, states: list[State]) -> Tensor:
        features = states[-1][0]
        for (fine_BKHW, _), up in zip(states[-2::-1], reversed(self.ups)):
            grown = grow(features, fine_BKHW.shape[-2:])
            features = functional.silu(up(torch.cat([grown, fine_BKHW], dim=1)))
        return features
