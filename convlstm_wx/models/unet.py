"""The single-step U-Net: ConvLSTM layers read a window of the past, a decoder answers with the next time.

Shapes: as in :mod:`convlstm_wx.models.network`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convlstm_wx.models.blocks import RecurrentPyramid, climb, increment_head, make_ups
from convlstm_wx.models.network import Network, NetworkOptions
from convlstm_wx.models.upstream import read_upstream


class WindowState(NamedTuple):
    """The window of input times that the next lead time is read from."""

    earlier: list[Tensor]
    """All input times but the newest with their forcings, [B, C + F, H, W] each, oldest first."""
    newest_BCHW: Tensor
    """The newest one, before `fields_BDHW` are written into it."""
    forcing_BFHW: Tensor
    """Of the newest one."""
    fields_BDHW: Tensor
    """The targets at the newest time, known or forecast."""
    upstream: list[Tensor]
    """What each upstream region's encoder said, [B, K, h, w]."""


class UNet(Network):
    """The network that is most often meant by "ConvLSTM U-Net": T times in, one time out, rolled out step by step.

    Each lead time reads a whole window from states of zero; then its forecast becomes the window's newest time, with
    the known forcings of that time, and the oldest time is dropped. Inputs that are not forecast keep their last known
    value there, and masks theirs. Upstream regions are read once, up to the init time, and fused with every window.
    Like the encoder-forecaster it adds increments to the newest fields and starts as persistence. L lead times cost L
    times the reading: the price of having no state.
    """

    def __init__(self, options: NetworkOptions):
        super().__init__(options)
        self.encoder = RecurrentPyramid(options.input_channels + options.forcing_channels, *options.pyramid)
        self.upstream_encoders, self.fusion = options.upstream_parts()
        self.ups = make_ups(options.hidden_channels)
        self.dropout = nn.Dropout(options.dropout)
        self.head = increment_head(options.hidden_channels[0], len(self.target_indices))

    def encode(
        self, x_BTCHW: Tensor, forcing_BTFHW: Tensor, upstream: Sequence[Tensor], apart: int | None = None
    ) -> WindowState:
        """The first window, and what the upstream regions say; the reading itself is each lead time's.

        Only the upstream regions' encoders share what windows have in common: the others' windows part as they slide.
        """
        features = read_upstream(self.upstream_encoders, upstream, apart)
        earlier = torch.cat([x_BTCHW, forcing_BTFHW], dim=2)[:, :-1].unbind(1)
        newest_BCHW = x_BTCHW[:, -1]
        return WindowState(
            list(earlier), newest_BCHW, forcing_BTFHW[:, -1], newest_BCHW[:, self.target_indices], features
        )

    def advance(self, state: WindowState, forcing_BFHW: Tensor) -> WindowState:
        """One lead time further."""
        newest_BCHW = self._with_fields(state.newest_BCHW, state.fields_BDHW)
        window = [*state.earlier, torch.cat([newest_BCHW, state.forcing_BFHW], dim=1)]
        *finer, coarsest = [h_BKHW for h_BKHW, _ in self.encoder.read(torch.stack(window, dim=1))]
        if self.fusion is not None:
            coarsest = coarsest + self.fusion(coarsest, state.upstream)
        increment_BDHW = self.head(self.dropout(climb(self.ups, [*finer, coarsest])))
        fields_BDHW = self.incremented(state.fields_BDHW, increment_BDHW)
        return WindowState(window[1:], newest_BCHW, forcing_BFHW, fields_BDHW, state.upstream)

    def _with_fields(self, inputs_BCHW: Tensor, fields_BDHW: Tensor) -> Tensor:
        """Inputs with the fields in the place of the targets, 0 where those are not observed."""
        channels = list(inputs_BCHW.split(1, dim=1))
        seen_BDHW = self.where_observed(fields_BDHW, self.masks(inputs_BCHW))
        for target, field_B1HW in zip(self.target_indices, seen_BDHW.split(1, dim=1)):
            channels[target] = field_B1HW
        return torch.cat(channels, dim=1)
