"""The errors of some forecasts of validation, kept while they pass by.

Shapes: B batch, L lead times, D target channels, H lat, W lon.
"""

import numpy as np
import torch
from torch import Tensor

from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.dressing import FEWEST, Residuals

MOST = 400  # windows
BYTES = 48 * 2**20  # of all of them; they are part of the checkpoint


class KeptResiduals:
    """Keeps what a random part of the windows leaves over, as many as there is room for.

    Args:
        spec: grid and lead times.
        init_times: of all windows that are to pass, in their order.
    """

    def __init__(self, spec: DataSpec, init_times: np.ndarray):
        grid = spec.target.grid
        bytes_of_one = 2 * spec.lead_steps * len(spec.targets) * len(grid.lat) * len(grid.lon)
        count = min(len(init_times), MOST, BYTES // bytes_of_one)
        # At random: every fourth window of 6-hourly data would always start at the same hour.
        drawn = np.random.default_rng(0).permutation(len(init_times))[: count if count >= FEWEST else 0]
        self.init_times, self.chosen = init_times, np.isin(np.arange(len(init_times)), drawn)
        self.fields: list[np.ndarray] = []
        self.seen = 0

    def add(self, forecast_BLDHW: Tensor, batch: TensorBatch) -> None:
        """Take in the forecasts of the next windows, normalised."""
        chosen = np.flatnonzero(self.chosen[self.seen : self.seen + len(forecast_BLDHW)])
        self.seen += len(forecast_BLDHW)
        if chosen.size:
            at = torch.from_numpy(chosen).to(forecast_BLDHW.device)
            error = batch.y_BLDHW[at] - forecast_BLDHW[at].float()
            self.fields.append(torch.where(batch.valid_BLDHW[at] > 0, error, 0).half().cpu().numpy())

    def residuals(self) -> Residuals | None:
        """What was kept; None if there are too few windows, or they are too large, to be worth it."""
        if not self.chosen.any():
            return None
        return Residuals(self.init_times[self.chosen], np.concatenate(self.fields))
