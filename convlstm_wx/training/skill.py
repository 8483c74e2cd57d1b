"""RMSE in the file's own units, by variable and lead time, gathered while validation forecasts pass by.

Shapes: N windows, B batch, L lead times, D target channels, P climatology terms, H lat, W lon.
"""

import numpy as np
import torch
from torch import Tensor

from convlstm_wx.conventions import physical_limits
from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.distributed import Processes
from convlstm_wx.training.rain import RainFit, RainNumbers

Rmse = dict[str, list[float]]  # by channel, one number for each lead time


class PhysicalErrors:
    """Squared errors in the file's units, summed over valid points by area; the root of their mean comes last.

    Defined as the scores of verification are: precipitation is turned back from its logarithm before it is compared,
    and persistence repeats the last field itself, where the loss's repeats its anomaly from climatology. Points where
    it has none, as the last input is missing there, are left out of both.

    Args:
        spec: channels, grid and statistics.
        init_times: of the N windows that are to pass, in their order.
        device: of the batches.
    """

    def __init__(self, spec: DataSpec, init_times: np.ndarray, device: torch.device):
        self.init_times = init_times
        self.targets, self.target_indices = spec.targets, spec.target_indices
        self.masks = [len(spec.channels) + mask if mask >= 0 else mask for mask in spec.target_mask_indices]
        self.lead_times = np.arange(1, spec.lead_steps + 1) * spec.step
        statistics = spec.target.statistics.select(spec.targets)
        self.basis = statistics.basis
        self.climatology_PDHW = torch.from_numpy(statistics.climatology_PCHW).to(device)
        self.std_D11 = torch.from_numpy(statistics.std_C)[:, None, None].to(device)
        self.area_H1 = torch.from_numpy(np.float32(spec.target.grid.area_weights()))[:, None].to(device)
        self.millimetres = {index: float(each) for index, each in enumerate(statistics.millimetres_C) if each}
        attributes = spec.target.attributes
        limits = [physical_limits(channel.variable, attributes[channel.variable]) for channel in spec.targets]
        self.limits = {index: each for index, each in enumerate(limits) if each is not None}
        self.sums_2LD = np.zeros((2, spec.lead_steps, len(spec.targets)))
        self.seen = self.windows = 0
        self.rain_fit = RainFit([spec.targets[index].name for index in self.millimetres], spec.lead_steps)

    def add(self, forecast_BLDHW: Tensor, batch: TensorBatch) -> None:
        """Take in the forecasts of the next windows, normalised."""
        init_B1 = self._next(batch)
        forecast_BLDHW = self._physical(forecast_BLDHW.float(), init_B1 + self.lead_times)
        truth_BLDHW, valid_BLDHW = self._truth(init_B1, batch)
        self._add(forecast_BLDHW, truth_BLDHW, valid_BLDHW)
        self.windows += int(batch.valid_BLDHW.flatten(1).any(dim=1).sum())  # others fill the batch up
        emphasis_BLDHW = batch.emphasis_BLDHW
        for place, (index, factor) in enumerate(self.millimetres.items()):
            self.rain_fit.add(
                place,
                forecast_BLDHW[:, :, index] * factor,
                truth_BLDHW[:, :, index] * factor,
                valid_BLDHW[:, :, index] * self.area_H1,
                None if emphasis_BLDHW is None else emphasis_BLDHW[:, :, index],
            )

    def add_persistence(self, _: Tensor, batch: TensorBatch) -> None:
        """Take in what the last fields of the next windows say of all lead times."""
        init_B1 = self._next(batch)
        last_B1DHW = self._physical(batch.x_BTCHW[:, -1:, self.target_indices], init_B1)
        self._add(last_B1DHW, *self._truth(init_B1, batch))

    def rmse(self, processes: Processes) -> Rmse:
        """By channel and lead time, over the windows of all processes; NaN where no point was valid."""
        squares, weights = np.reshape(processes.sum(*self.sums_2LD.ravel()), self.sums_2LD.shape)
        mean_LD = np.divide(squares, weights, out=np.full_like(squares, np.nan), where=weights > 0)
        return {channel.name: np.sqrt(mean_LD[:, index]).tolist() for index, channel in enumerate(self.targets)}

    def with_rain_means(self, processes: Processes) -> tuple[Rmse, RainNumbers]:
        """The same of forecasts whose precipitation is turned into means, and the numbers that do that."""
        found, rmse_RL = self.rain_fit.means(self.windows, processes)
        factors = self.millimetres.values()
        rain = {name: (of_L / factor).tolist() for name, of_L, factor in zip(found, rmse_RL, factors)}
        return self.rmse(processes) | rain, found

    def _next(self, batch: TensorBatch) -> np.ndarray:
        numbers = np.arange(self.seen, self.seen + len(batch.x_BTCHW))
        self.seen += len(numbers)
        return self.init_times[numbers.clip(max=len(self.init_times) - 1), None]  # the last batch may be filled up

    def _truth(self, init_B1: np.ndarray, batch: TensorBatch) -> tuple[Tensor, Tensor]:
        """In the file's units, and where it is known and persistence has a value too."""
        valid_BLDHW = batch.valid_BLDHW * self._known(batch)
        return self._physical(batch.y_BLDHW, init_B1 + self.lead_times), valid_BLDHW

    def _add(self, forecast_BLDHW: Tensor, truth_BLDHW: Tensor, valid_BLDHW: Tensor) -> None:
        error = torch.where(valid_BLDHW > 0, forecast_BLDHW - truth_BLDHW, 0)
        sums = [(values * self.area_H1).sum(dim=(0, 3, 4)) for values in (error.square_(), valid_BLDHW)]
        self.sums_2LD += torch.stack(sums).cpu().numpy()

    def _known(self, batch: TensorBatch) -> Tensor:
        """Where the last input was observed, [B, 1, D, H, W]."""
        last_B1CHW = batch.x_BTCHW[:, -1:]
        ones = torch.ones_like(last_B1CHW[:, :, :1])
        return torch.cat([last_B1CHW[:, :, mask : mask + 1] if mask >= 0 else ones for mask in self.masks], dim=2)

    def _physical(self, fields_BLDHW: Tensor, times_BL: np.ndarray) -> Tensor:
        """In the file's units, as a forecast would be written."""
        terms = self.basis.terms(times_BL.ravel()).astype(np.float32)
        climatology = torch.tensordot(torch.from_numpy(terms).to(fields_BLDHW.device), self.climatology_PDHW, dims=1)
        values = fields_BLDHW * self.std_D11 + climatology.unflatten(0, times_BL.shape)
        for index, factor in self.millimetres.items():
            values[:, :, index] = values[:, :, index].clamp(min=0).expm1() / factor
        for index, limits in self.limits.items():
            values[:, :, index].clamp_(*limits)
        return values
