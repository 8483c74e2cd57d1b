"""The files of a comparison."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from convlstm_wx.files import library_errors, replacing, write_text
from convlstm_wx.verification.summary import plain

OF_PAIRS = (
    "gain", "gain_low", "gain_high", "mse_a", "mse_b", "mse_difference", "mse_difference_low", "mse_difference_high",
    "p_value", "effective_size", "pairs",
)  # fmt: skip
OF_MONTH = ("gain", "gain_low", "gain_high", "pairs")


def write_comparison(gains: xr.Dataset, said: Sequence[str], folder: Path, name: str = "comparison") -> list[Path]:
    """NAME.nc with everything, NAME.csv with a row per channel, lead time and month, NAME.json; returns the paths.

    Args:
        gains: of verification.compare.compare.
        said: the sentences.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    paths = [folder / f"{name}.{ending}" for ending in ("nc", "csv", "json")]
    with replacing(paths[0]) as temporary, library_errors():
        gains.to_netcdf(temporary)
    rows = _rows(gains)
    with replacing(paths[1]) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.6g")
    told = {
        "verdicts": list(said),
        "method": gains.attrs,
        "formulas": {str(name): gains[name].attrs for name in gains.data_vars if gains[name].attrs},
        "gains": rows.to_dict("records"),
    }
    write_text(paths[2], json.dumps(plain(told), indent=1, allow_nan=False) + "\n")
    return paths


def _rows(gains: xr.Dataset) -> Any:
    """The column month is "all" in the rows of the whole period."""
    by_month = gains[[_of_month(name) for name in OF_MONTH]].rename({_of_month(name): name for name in OF_MONTH})
    whole = gains[list(OF_PAIRS)].expand_dims(month=["all"])
    rows = xr.concat([whole, by_month.assign_coords(month=[str(m) for m in by_month["month"].values])], "month")
    columns = ["channel", "units", "lead_hours", "month", *OF_PAIRS]
    frame = rows.transpose("channel", "lead_time", "month").to_dataframe().reset_index()[columns]
    return frame[frame["pairs"] > 0]


def _of_month(name: str) -> str:
    whole, _, end = name.partition("_")
    return f"{whole}_by_month_{end}" if end else f"{whole}_by_month"
