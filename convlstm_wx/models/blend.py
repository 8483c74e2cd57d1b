"""A network's forecast blended with that of a linear inverse model, each as far as it was found to be right.

Shapes: as in :mod:`convlstm_wx.models.network`, and K EOFs, P past times. All fields are normalised.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from convlstm_wx.linear.inverse_model import InverseModel


class LinearBlend(nn.Module):
    """A linear inverse model (:mod:`convlstm_wx.linear.inverse_model`), and what it and the network count.

    The blended anomaly is a weighted sum of the two, with weights of their own for each lead time and target; training
    fits them to validation (see :mod:`convlstm_wx.training.blending`). At first only the network counts. Forecasts go
    back to what is usual where both are little worth, as the weights need not add up to one.

    Args:
        regions: channels, height and width of the target's and of each upstream region's fields.
        targets: which channels of the target are forecast.
        target_masks: for each its place among the masks, -1 without gaps.
        eofs: K.
        past: P.
        leads: L, for how many lead times the model was fitted.
    """

    operators_LDK: Tensor
    patterns_KDHW: Tensor
    damping_LDHW: Tensor
    weights_2LD: Tensor

    def __init__(
        self,
        regions: Sequence[Sequence[int]],
        targets: Sequence[int],
        target_masks: Sequence[int],
        *,
        eofs: int,
        past: int,
        leads: int,
    ):
        super().__init__()
        self.targets, self.target_masks, self.channels = list(targets), list(target_masks), regions[0][0]
        self.past, self.leads = past, leads
        for number, (channels, height, width) in enumerate(regions):
            self.register_buffer(f"projectors_{number}_KCHW", torch.zeros(eofs, channels, height, width))
        size = (len(targets), *regions[0][1:])
        self.register_buffer("patterns_KDHW", torch.zeros(eofs, *size))
        self.register_buffer("damping_LDHW", torch.zeros(leads, *size))
        self.register_buffer("operators_LDK", torch.zeros(leads, past * eofs, eofs))
        only_network = torch.tensor([1.0, 0.0])[:, None, None].repeat(1, leads, len(targets))
        self.register_buffer("weights_2LD", only_network)

    def forward(
        self, network: Iterator[Tensor], x_BTCHW: Tensor, upstream: Sequence[Tensor], lead_steps: int
    ) -> Iterator[Tensor]:
        """The network's fields [B, D, H, W] of each lead time, blended; beyond L with the weights of the last."""
        for lead, (fields_BDHW, linear_BDHW) in enumerate(zip(network, self.linear(x_BTCHW, upstream, lead_steps))):
            weights_2D11 = self.weights_2LD[:, min(lead, self.leads - 1), :, None, None]
            yield weights_2D11[0] * fields_BDHW + weights_2D11[1] * linear_BDHW

    def linear(self, x_BTCHW: Tensor, upstream: Sequence[Tensor], lead_steps: int) -> Iterator[Tensor]:
        """The linear model's forecast [B, D, H, W] of each lead time, float32.

        Beyond the lead times that were fitted it goes on from its own forecast, the longest fitted step at a time.

        Args:
            x_BTCHW: the inputs, T of P or more times, masks after the channels; missing values are 0, as usual.
            upstream: of each region [B, T, Cu, Hu, Wu], the same.
        """
        states, rests = self._known([x_BTCHW, *upstream])
        for lead in range(1, lead_steps + 1):
            step = min(lead, self.leads)
            # Off and on again for each lead time: what waits between two yields must not change others' precision.
            with torch.autocast(x_BTCHW.device.type, enabled=False):
                known = states[lead - step : lead - step + self.past]
                states.append(torch.cat(known[::-1], dim=1) @ self.operators_LDK[step - 1])
                rests[lead] = self.damping_LDHW[step - 1] * rests[lead - step]
                fields_BDHW = self._fields(states[-1]) + rests[lead]
            if lead >= self.leads:
                del rests[lead - self.leads]  # no later lead time starts from it
            yield fields_BDHW

    def _known(self, fields: Sequence[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Coefficients [B, K] of the last P times, oldest first, and what they do not hold of the last (lead time 0).

        Where nothing was observed there is no rest.
        """
        with torch.autocast(fields[0].device.type, enabled=False):
            states = list(self._coefficients(fields).unbind(1))
            last_BCHW = fields[0][:, -1]
            rest_BDHW = last_BCHW[:, self.targets].to(self.patterns_KDHW.dtype) - self._fields(states[-1])
            for place, mask in enumerate(self.target_masks):
                if mask >= 0:
                    rest_BDHW[:, place] *= last_BCHW[:, self.channels + mask]
        return states, {0: rest_BDHW}

    def _coefficients(self, fields: Sequence[Tensor]) -> Tensor:
        """Of the last P times of all regions [B, P, K]."""
        parts = []
        for number, fields_BTCHW in enumerate(fields):
            projectors_KCHW = getattr(self, f"projectors_{number}_KCHW")
            last_BPCHW = fields_BTCHW[:, -self.past :, : projectors_KCHW.shape[1]].to(projectors_KCHW.dtype)
            parts.append(last_BPCHW.flatten(2) @ projectors_KCHW.flatten(1).T)
        return torch.stack(parts).sum(dim=0)

    def _fields(self, state_BK: Tensor) -> Tensor:
        return torch.tensordot(state_BK, self.patterns_KDHW, dims=1)

    @torch.no_grad()
    def fill(self, model: InverseModel, names: Sequence[Sequence[str]]) -> None:
        """Take over a fitted model; names: of the channels of each region, as the model knows them."""
        for number, channels in enumerate(names):
            projectors_KCHW = np.stack([model.projectors_KHW[name] for name in channels], axis=1)
            getattr(self, f"projectors_{number}_KCHW").copy_(torch.from_numpy(projectors_KCHW))
        targets, leads = [names[0][index] for index in self.targets], sorted(model.operators_DK)
        self.patterns_KDHW.copy_(torch.from_numpy(np.stack([model.patterns_KHW[name] for name in targets], axis=1)))
        for place, lead in enumerate(leads):
            damping_DHW = np.stack([model.damping_HW[name][lead] for name in targets])
            self.damping_LDHW[place] = torch.from_numpy(damping_DHW)
            self.operators_LDK[place] = torch.from_numpy(model.operators_DK[lead])
