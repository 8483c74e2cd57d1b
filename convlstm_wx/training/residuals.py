"""The errors of some forecasts of validation, kept while they pass by.

Shapes: B batch, L lead times, D target channels, H lat, W lon.
"""

import numpy as np
import torch
from torch import Tensor

from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.dressing import BYTES, FEWEST, Residuals

MOST = 400  # windows


def how_many(spec: DataSpec, windows: int) -> int:
    """Of so many windows of validation, those whose errors are kept: 0 if too few would be, or they are too large."""
    grid = spec.target.grid
    bytes_of_one = 2 * spec.lead_steps * len(spec.targets) * len(grid.lat) * len(grid.lon)
    count = min(windows, MOST, BYTES // bytes_of_one)
    return count if count >= FEWEST else 0


class KeptResiduals:
    """Keeps what a random part of the windows leaves over, as many as there is room for.

    Args:
        spec: grid and lead times.
        init_times: of all windows that are to pass, in their order; none where nothing is to be kept.
    """

    def __init__(self, spec: DataSpec, init_times: np.ndarray):
        # At random: every fourth window of 6-hourly data would always start at the same hour.
        drawn = np.random.default_rng(0).permutation(len(init_times))[: how_many(spec, len(init_times))]
        self.init_times, self.chosen = init_times, np.isin(np.arange(len(init_times)), drawn)
        self.fields: list[np.ndarray] = []
        self.valid_LDHW: float | np.ndarray = 0.0
        self.seen = 0

    def add(self, forecast_BLDHW: Tensor, batch: TensorBatch) -> None:
        """Take in the forecasts of the next windows, normalised."""
        chosen = np.flatnonzero(self.chosen[self.seen : self.seen + len(forecast_BLDHW)])
        self.seen += len(forecast_BLDHW)
        if chosen.size:
            at = torch.from_numpy(chosen).to(forecast_BLDHW.device)
            error, valid = batch.y_BLDHW[at] - forecast_BLDHW[at].float(), batch.valid_BLDHW[at] > 0
            self.fields.append(torch.where(valid, error, 0).half().cpu().numpy())
            self.valid_LDHW = self.valid_LDHW + valid.sum(dim=0).cpu().numpy()

    def residuals(self) -> Residuals | None:
        """What was kept; None if there are too few windows, or they are too large, to be worth it."""
        if not self.chosen.any():
            return None
        fields = np.concatenate(self.fields)
        # A point whose truth is often missing varies by as much as where it is not.
        fields *= np.sqrt(len(fields) / np.maximum(self.valid_LDHW, 1)).astype(np.float16)
        return Residuals(self.init_times[self.chosen], fields)
