"""One channel of the truth."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from convlstm_wx.verification.climatology import Climatology, read


@dataclass(frozen=True)
class Record:
    """As it was observed: its fields (time, lat, lon), lazy or not, and what is usual."""

    fields: xr.DataArray
    usual: Climatology

    @property
    def times(self) -> np.ndarray:
        """When it was observed."""
        return self.fields["time"].values

    @property
    def shape(self) -> tuple[int, int]:
        """H, W."""
        return self.fields.shape[1], self.fields.shape[2]

    def anomalies(self, times: np.ndarray) -> np.ndarray:
        """At these times [N, H, W], NaN where nothing was observed."""
        return read(self.fields, times) - self.usual.at(times)
