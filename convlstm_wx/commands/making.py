"""What forecast and evaluate have in common: how they tell of the forecasts that they make."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger(__name__)


def choose_lead_steps(asked: int | None, trained: int) -> int:
    """The number of lead times; beyond the trained one with a warning."""
    if asked is not None and asked > trained:
        log.warning("--lead-steps %d is beyond the %d of training: the later ones were never practised", asked, trained)
    return asked or trained


def say_forecast(made: "xr.Dataset") -> None:
    """What was forecast, in three lines."""
    init_times = made["init_time"].values.astype("datetime64[m]")
    hours = made["lead_time"].values.astype("timedelta64[s]").astype(int) / 3600
    several = f"{len(init_times)} from {init_times[0]} to {init_times[-1]}"
    log.info("init time  %s", several if len(init_times) > 1 else init_times[0])
    log.info("lead time  +%g h to +%g h, %d steps", hours[0], hours[-1], len(hours))
    log.info("variables  %s", ", ".join(map(str, made.data_vars)))
