"""The sequence-to-sequence ConvLSTM of Shi et al. 2015 (arXiv:1506.04214), written from the paper, to compare with.

Shapes: as in :mod:`convlstm_wx.models.network`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from convlstm_wx.errors import ConfigError
from convlstm_wx.models.blocks import each_time_once, fold_times, read_sliding, unfold_times, with_whole_gradient
from convlstm_wx.models.convlstm import ConvLSTM, State
from convlstm_wx.models.network import Network, NetworkOptions


class StackState(NamedTuple):
    """What one lead time hands to the next."""

    states: list[State]
    """Of each layer, the one next to the input first."""
    fields_BDHW: Tensor
    """The last fields; the network does not look at them."""


class Shi2015(Network):
    """Two stacks of ConvLSTM layers with peepholes: one reads, the other starts from its states and forecasts.

    As in the paper (section 3.2), the forecasting stack sees none of its own forecasts, and a 1x1 convolution over the
    hidden states of all its layers gives the fields themselves, not increments. All layers have the grid's own
    resolution; `hidden_channels` are their widths, the first next to the input. What differs, for the paper had images
    of one kind and no calendar:

    - the paper's forecasting stack has no input at all; here its first layer gets the known forcings of the lead time,
      so that all networks know as much,
    - peepholes have one weight a channel, not one a point (see :class:`~convlstm_wx.models.convlstm.ConvLSTM`),
    - frames are not cut into patches, masks are inputs like others, and dropout lies between the layers.

    Raises:
        ConfigError: with upstream regions, for which the paper has no place.
    """

    feeds_back = False

    def __init__(self, options: NetworkOptions):
        super().__init__(options)
        if options.upstream_channels:
            raise ConfigError("the network shi2015 reads no upstream regions; choose another or leave them out")
        widths = list(options.hidden_channels)

        def stack(input_channels: int) -> nn.ModuleList:
            return nn.ModuleList(
                ConvLSTM(before, k, options.kernel_size, peepholes=True, memory=options.memory)
                for before, k in pairwise([input_channels, *widths])
            )

        self.encoder = stack(options.input_channels + options.forcing_channels)
        self.forecaster = stack(options.forcing_channels)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Conv2d(sum(widths), len(self.target_indices), 1)

    def encode(
        self, x_BTCHW: Tensor, forcing_BTFHW: Tensor, upstream: Sequence[Tensor], apart: int | None = None
    ) -> StackState:
        """Read the past."""
        assert not upstream
        # Time-major, so that each time is contiguous where memory="recompute" convolves them one by one.
        seen_BTCHW = each_time_once(torch.cat([x_BTCHW, forcing_BTFHW], dim=2), apart)
        features = unfold_times(fold_times(seen_BTCHW), seen_BTCHW.shape[1])
        states: list[State] = []
        for cell in self.encoder:
            sliding = None if states else apart
            hidden_BTKHW, state = read_sliding(cast(ConvLSTM, cell), features, x_BTCHW.shape[1], sliding)
            features = self.dropout(hidden_BTKHW)
            states.append(state)
        return StackState(states, x_BTCHW[:, -1, self.target_indices])

    def advance(self, state: StackState, forcing_BFHW: Tensor) -> StackState:
        """One lead time further."""
        states: list[State] = []
        features = forcing_BFHW.contiguous()  # one time out of many: not so, and MPS convolves only what is
        for cell, before in zip(self.forecaster, state.states):
            states.append(cast(ConvLSTM, cell).step(features, before))
            features = self.dropout(states[-1][0])
        hidden = torch.cat([h_BKHW for h_BKHW, _ in states], dim=1)
        fields_BDHW = with_whole_gradient(self.head(self.dropout(hidden)))
        return StackState(states, fields_BDHW.to(state.fields_BDHW.dtype))
