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
        self.valid: list[np.ndarray] = []
        self.seen = 0

    def add(self, forecast_BLDHW: Tensor, batch: TensorBatch) -> None:
        """Take in the forecasts of the next windows, normalised."""
        chosen = np.flatnonzero(self.chosen[self.seen : self.seen + len(forecast_BLDHW)])
        self.seen += len(forecast_BLDHW)
        if chosen.size:
            at = torch.from_numpy(chosen).to(forecast_BLDHW.device)
            error, valid = batch.y_BLDHW[at] - forecast_BLDHW[at].float(), batch.valid_BLDHW[at] > 0
            self.fields.append(torch.where(valid, error, 0).half().cpu().numpy())
            self.valid.append(valid.cpu().numpy())

    def residuals(self) -> Residuals | None:
        """What was kept; None if there are too few windows, or they are too large, to be worth it."""
        if not self.chosen.any():
            return None
        fields, valid = np.concatenate(self.fields), np.concatenate(self.valid)
        _lend(fields, valid)
        return Residuals(self.init_times[self.chosen], fields)


def _lend(fields_NLDHW: np.ndarray, valid_NLDHW: np.ndarray) -> None:
    """In place, where the truth is missing the error of the same point in the latest window before that has one.

    Before the first, that of the last; 0 where none has. So each point varies by as much as its errors do.
    """
    latest = np.where(valid_NLDHW[::-1].any(axis=0), len(fields_NLDHW) - 1 - valid_NLDHW[::-1].argmax(axis=0), -1)
    held = np.take_along_axis(fields_NLDHW, latest.clip(min=0)[None], axis=0)[0]
    for field, valid in zip(fields_NLDHW, valid_NLDHW):
        field[...] = held = np.where(valid, field, held)
