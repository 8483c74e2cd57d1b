"""The encoder-forecaster: ConvLSTM layers read the past, others, started from their states, unroll the lead times.

Shapes: as in :mod:`convlstm_wx.models.network`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convlstm_wx.models.blocks import RecurrentPyramid, climb, increment_head, make_ups
from convlstm_wx.models.convlstm import State
from convlstm_wx.models.network import Network, NetworkOptions
from convlstm_wx.models.upstream import read_upstream


class ForecastState(NamedTuple):
    """All that one lead time hands to the next."""

    states: list[State]
    fields_BDHW: Tensor
    """The targets at the last known or forecast time."""
    mask_BMHW: Tensor
    """Where the inputs with gaps were observed at the last input time; M may be 0."""
    context_BKHW: Tensor | None
    """What the upstream regions said; None without any."""


class EncoderForecaster(Network):
    """A recurrent U-Net that adds an increment to the last state, one lead time after the other.

    Persistence is the starting point: the last layer starts at zero, and an increment of one is a typical change over
    one step. The forecaster sees its own last fields and the forcing of the time that it forecasts; its skip
    connections are the states of the finer resolutions.
    """

    def __init__(self, options: NetworkOptions):
        super().__init__(options)
        targets = len(self.target_indices)
        self.encoder = RecurrentPyramid(options.input_channels + options.forcing_channels, *options.pyramid)
        fed = targets + options.mask_channels + options.forcing_channels
        self.forecaster = RecurrentPyramid(fed, *options.pyramid)
        self.upstream_encoders, self.fusion = options.upstream_parts()
        self.ups = make_ups(options.hidden_channels)
        self.dropout = nn.Dropout(options.dropout)
        self.head = increment_head(options.hidden_channels[0], targets)

    def encode(
        self, x_BTCHW: Tensor, forcing_BTFHW: Tensor, upstream: Sequence[Tensor], apart: int | None = None
    ) -> ForecastState:
        """Read the past."""
        states = self.encoder.read(torch.cat([x_BTCHW, forcing_BTFHW], dim=2), apart)
        features = read_upstream(self.upstream_encoders, upstream, apart)
        last_BCHW = x_BTCHW[:, -1]
        context = None if self.fusion is None else self.fusion(states[-1][0], features)
        return ForecastState(states, last_BCHW[:, self.target_indices], self.masks(last_BCHW), context)

    def advance(self, state: ForecastState, forcing_BFHW: Tensor) -> ForecastState:
        """One lead time further."""
        inputs = [self.where_observed(state.fields_BDHW, state.mask_BMHW), state.mask_BMHW, forcing_BFHW]
        states = self.forecaster.step(torch.cat(inputs, dim=1), state.states, state.context_BKHW)
        increment_BDHW = self.head(self.dropout(climb(self.ups, [h_BKHW for h_BKHW, _ in states])))
        return state._replace(states=states, fields_BDHW=self.incremented(state.fields_BDHW, increment_BDHW))
