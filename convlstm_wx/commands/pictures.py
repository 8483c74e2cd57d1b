"""An example forecast as pictures, for TensorBoard."""

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.forecast.labelling import to_dataset, to_physical
from convlstm_wx.report.plots import case_figure, pixels
from convlstm_wx.text import choose_some
from convlstm_wx.training.logbook import Example

MOST_CHANNELS = 3


def draw_example(spec: DataSpec, example: Example) -> dict[str, np.ndarray]:
    """Truth, forecast and error at the first and the last lead time, of some channels: name -> [height, width, 3].

    uint8, in the file's units.
    """
    at = example.init_time
    forecast, truth = (
        to_dataset(spec, np.array([at]), to_physical(spec, at, fields)[None])
        for fields in (example.forecast_LDHW, example.truth_LDHW)
    )
    return {
        channel.name: pixels(case_figure(_ends(forecast, channel), _ends(truth, channel), channel))
        for channel in choose_some(spec.targets, MOST_CHANNELS)
    }


def _ends(dataset: xr.Dataset, channel: Channel) -> xr.DataArray:
    """A channel at its first and last lead time, [lead_time, lat, lon]."""
    field = dataset[channel.variable].isel(init_time=0)
    field = field if channel.level is None else field.sel(level=channel.level)
    return field.isel(lead_time=np.unique([0, field.sizes["lead_time"] - 1]))
