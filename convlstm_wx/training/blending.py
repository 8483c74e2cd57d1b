"""How much a network and a linear model count in their blend: least squares on validation, whatever the loss.

Shapes: B batch, L lead times, D target channels, H lat, W lon.
"""

import numpy as np
import torch
from torch import Tensor

from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.distributed import Processes

# With few windows of validation both count about alike: so many speak for that.
PRIOR_WINDOWS = 10
PRIOR_WEIGHT = 0.5


class BlendFit:
    """Gathers products of the two forecasts and the truth, by lead time and target.

    Args:
        area_H1: area weight of each grid row.
        leads, targets: L, D.
    """

    def __init__(self, area_H1: Tensor, leads: int, targets: int):
        self.area_H1 = area_H1
        self.sums_5LD = np.zeros((5, leads, targets))
        self.windows = 0

    def add(self, network_BLDHW: Tensor, linear_BLDHW: Tensor, batch: TensorBatch) -> None:
        """Take in a batch of validation."""
        weights = batch.valid_BLDHW * self.area_H1
        if batch.emphasis_BLDHW is not None:
            weights = weights * batch.emphasis_BLDHW
        a, b, y = network_BLDHW, linear_BLDHW, batch.y_BLDHW
        products = [(weights * p * q).sum(dim=(0, 3, 4)) for p, q in ((a, a), (a, b), (b, b), (a, y), (b, y))]
        self.sums_5LD += torch.stack(products).cpu().numpy()
        self.windows += int(batch.valid_BLDHW.flatten(1).any(dim=1).sum())  # others fill the batch up

    def weights(self, processes: Processes) -> Tensor:
        """Of network and linear model [2, L, D], from what all processes added; never negative."""
        windows, *sums = processes.sum(self.windows, *self.sums_5LD.ravel().tolist())
        aa, ab, bb, ay, by = np.reshape(sums, self.sums_5LD.shape)
        prior = (aa + bb).clip(min=1e-30) / 2 * PRIOR_WINDOWS / max(windows, 1)
        aa, bb = aa + prior, bb + prior
        ay, by = ay + PRIOR_WEIGHT * prior, by + PRIOR_WEIGHT * prior
        determinant = aa * bb - ab * ab
        network, linear = (ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant
        # Where one would count negatively the other is all.
        both = (
            np.where(linear < 0, ay / aa, network).clip(min=0),
            np.where(network < 0, by / bb, linear).clip(min=0),
        )
        return torch.from_numpy(np.stack(both).astype(np.float32))
