"""The forecast that a network corrects: the last state, or what a linear inverse model makes of the last states.

Shapes: as in :mod:`convlstm_wx.models.network`, and R regions (the target and those upstream), K EOFs, P past times,
N folds of the training times and one for all of them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from convlstm_wx.linear.inverse_model import InverseModel


class LinearBase(nn.Module):
    """A linear inverse model (:mod:`convlstm_wx.linear.inverse_model`) of normalised fields; it learns nothing more.

    A network that trains on times from which its base was fitted would trust it too much: a window of training is
    therefore forecast by the model that was fitted without the window's own stretch of time.

    Args:
        regions: channels, height and width of the target's and of each upstream region's fields.
        targets: which channels of the target are forecast.
        eofs: K.
        past: P.
        leads: for how many lead times the model was fitted.
        folds: N.
    """

    operators_NLDK: Tensor
    patterns_KDHW: Tensor
    damping_LDHW: Tensor

    def __init__(
        self, regions: Sequence[Sequence[int]], targets: Sequence[int], *, eofs: int, past: int, leads: int, folds: int
    ):
        super().__init__()
        self.targets, self.past, self.leads = list(targets), past, leads
        for number, (channels, height, width) in enumerate(regions):
            self.register_buffer(f"projectors_{number}_KCHW", torch.zeros(eofs, channels, height, width))
        self.regions = len(regions)
        size = (len(targets), *regions[0][1:])
        self.register_buffer("patterns_KDHW", torch.zeros(eofs, *size))
        self.register_buffer("damping_LDHW", torch.zeros(leads, *size))
        self.register_buffer("operators_NLDK", torch.zeros(folds + 1, leads, past * eofs, eofs))

    def forward(
        self, x_BTCHW: Tensor, upstream: Sequence[Tensor], lead_steps: int, fold_B: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The forecast [B, D, H, W] of each lead time, float32.

        Beyond the lead times that were fitted it goes on from its own forecast, the longest fitted step at a time.

        Args:
            x_BTCHW: the inputs, T of P or more times; masks after the channels are not looked at.
            upstream: of each region [B, T, Cu, Hu, Wu], the same.
            fold_B: the fold that each window lies in, counted from 1; 0, or None, for windows outside of training.
        """
        with torch.autocast(x_BTCHW.device.type, enabled=False):
            states = list(self._coefficients([x_BTCHW, *upstream]).unbind(1))  # oldest first
            rests = [x_BTCHW[:, -1, self.targets].float() - self._fields(states[-1])]
            operators_BLDK = self.operators_NLDK[:1] if fold_B is None else self.operators_NLDK[fold_B]
            for lead in range(1, lead_steps + 1):
                step = min(lead, self.leads)
                known = states[lead - step : lead - step + self.past]
                predictors_B1D = torch.cat(known[::-1], dim=1).unsqueeze(1)
                states.append((predictors_B1D @ operators_BLDK[:, step - 1]).squeeze(1))
                rests.append(self.damping_LDHW[step - 1] * rests[lead - step])
                yield self._fields(states[-1]) + rests[-1]

    def _coefficients(self, fields: Sequence[Tensor]) -> Tensor:
        """Of the last P times of all regions [B, P, K]."""
        total: Tensor | None = None
        for number, fields_BTCHW in enumerate(fields):
            projectors_KCHW = getattr(self, f"projectors_{number}_KCHW")
            last_BPCHW = fields_BTCHW[:, -self.past :, : projectors_KCHW.shape[1]].float()
            part_BPK = last_BPCHW.flatten(2) @ projectors_KCHW.flatten(1).T
            total = part_BPK if total is None else total + part_BPK
        assert total is not None
        return total

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
            every_NDK = np.concatenate([model.operators_DK[lead][None], model.left_out_FDK[lead]])
            self.operators_NLDK[:, place] = torch.from_numpy(every_NDK)
