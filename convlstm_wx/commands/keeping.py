"""Where forecasts wait until they are scored: in memory, or in a temporary file if they are too many for it."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.options import above_zero
from convlstm_wx.errors import ConfigError

if TYPE_CHECKING:
    import xarray as xr

    from convlstm_wx.forecast.rollout import Forecast

log = logging.getLogger(__name__)


def add_budget(command: Any) -> None:
    """The option that says how much fits into memory."""
    command.add_argument(
        "--memory-budget",
        metavar="GB",
        type=above_zero,
        help="forecasts that need more wait in a temporary file until they are scored (default: half of the memory)",
    )


@contextmanager
def kept(
    forecast: "Forecast", folder: Path | None, *, budget: float | None, in_file: bool = False
) -> Iterator["xr.Dataset"]:
    """The forecasts, as long as the block lasts; a file goes with it, however it ends.

    Args:
        forecast: what to make.
        folder: beside which a temporary file may lie; None: where the system keeps such files.
        budget: --memory-budget.
        in_file: whether they must be in a file, so that other processes can read them.

    Raises:
        ConfigError: if the file cannot be written.
        DataError: if inputs have missing values.
    """
    from convlstm_wx.data.reading import open_forecast
    from convlstm_wx.data.store import memory_budget_bytes
    from convlstm_wx.files import describe_bytes
    from convlstm_wx.forecast.writing import forecast_to_file

    size = forecast.bytes_of_one * len(forecast.init_times)
    if not in_file and 2 * size <= memory_budget_bytes(budget):  # pieces and what is made of them, for a moment
        yield forecast.collect().sortby("lat")
        return
    with _temporary_folder(folder) as place:
        log.info("forecasts  %s, in %s until they are scored", describe_bytes(size), place)
        path = place / "forecasts.nc"
        forecast_to_file(forecast, path, data_files=[])
        made = open_forecast(path)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def _temporary_folder(beside: Path | None) -> Iterator[Path]:
    place = beside and next(parent for parent in beside.absolute().parents if parent.exists())
    try:
        made = tempfile.TemporaryDirectory(prefix=".forecasts-", dir=place)
    except OSError as error:
        raise ConfigError(
            f"{place or tempfile.gettempdir()}: cannot be written ({error.strerror}), but forecasts wait there to be "
            "scored; choose another --output, or a larger --memory-budget"
        ) from error
    with made as name:
        yield Path(name)
