"""Which init times to forecast from: named ones, the newest, or all of a period; gaps of the data are named."""

import logging
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from convlstm_wx.data.inputs import open_sources
from convlstm_wx.data.reading import describe_step, source_of
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.windows import init_indices
from convlstm_wx.errors import ConfigError, DataError

log = logging.getLogger(__name__)

LATEST = "latest"
NEWEST_TRIES = 64
_GAPS_TOLD = 3


def possible_init_times(
    spec: DataSpec, times: np.ndarray, allowed_N: np.ndarray | None = None, *, lead_steps: int = 0
) -> np.ndarray:
    """The init times whose input times (and first `lead_steps` lead times) are in the file, allowed and without gap."""
    allowed = np.ones(len(times), bool) if allowed_N is None else allowed_N
    at = init_indices(times, spec.step, allowed, input_steps=spec.input_steps, lead_steps=lead_steps)
    return times[at]


def choose_init_times(
    spec: DataSpec,
    dataset: xr.Dataset,
    named: Sequence[str],
    start: str | None,
    end: str | None,
    upstream: Sequence[xr.Dataset] = (),
    *,
    every: np.timedelta64 | None = None,
) -> np.ndarray:
    """The init times that a user asked for: named ones, those of a period, or by default the newest possible.

    Of a period, init times whose input times are not all in the file are left out, with a warning that says how many
    and where the gaps are.

    Args:
        spec: of the checkpoint.
        dataset: that fits it.
        named: times, and "latest" for the newest whose inputs are there and complete.
        start: of a period.
        end: of a period, all of it: 2008-07 is July to its last time.
        upstream: one dataset for each of the spec's `upstream_files`.
        every: of a period, only the start (or the first possible time) and every so much later.

    Raises:
        ConfigError: for a time that cannot be read, a step that the file does not have, or named times together with a
            period.
        DataError: for a named time whose inputs are not there, or if the period holds no possible init time.
    """
    if named and (start or end or every is not None):
        raise ConfigError("--init-time goes alone; for all init times of a period give --start, --end and --every")
    if named or not (start or end or every is not None):
        return np.unique([_named(spec, dataset, text, upstream) for text in named or (LATEST,)])
    return _of_period(spec, dataset, start, end, every)


def check_init_times(spec: DataSpec, dataset: xr.Dataset, init_times: np.ndarray) -> None:
    """Refuse init times whose input times are not all there.

    Raises:
        DataError: naming the first one, and the times that are missing.
    """
    possible = possible_init_times(spec, dataset["time"].values)
    wrong = init_times[~np.isin(init_times, possible)]
    if wrong.size:
        ends = f"; possible are {iso(possible[0])} to {iso(possible[-1])}" if possible.size else ""
        reason = _why_impossible(spec, dataset["time"].values, wrong[0])
        raise DataError(f"{source_of(dataset)}: init time {iso(wrong[0])}: {reason}{ends}")


def _why_impossible(spec: DataSpec, times: np.ndarray, init_time: np.datetime64) -> str:
    covers = f"which covers {iso(times[0])} to {iso(times[-1])}"
    if init_time not in times:
        near = "" if not times[0] < init_time < times[-1] else f"; its times {_around(times, init_time)}"
        return f"it is not a time of the file, {covers}{near}"
    needed = init_time + np.arange(1 - spec.input_steps, 1) * spec.step
    missing = needed[~np.isin(needed, times)]
    what = f"its {spec.input_steps} input times, one each {describe_step(spec.step)}, are not all in the file"
    if not missing.size:
        return f"{what} without others between"
    if needed[0] < times[0]:
        return f"{what}, {covers}"
    listed = ", ".join(map(iso, missing[:_GAPS_TOLD])) + (" ..." if missing.size > _GAPS_TOLD else "")
    return f"{what}: missing {'are' if missing.size > 1 else 'is'} {listed}"


def _around(times: np.ndarray, time: np.datetime64) -> str:
    after = int(np.searchsorted(times, time))
    return f"go from {iso(times[after - 1])} on to {iso(times[after])}"


def parse_time(option: str, text: str, *, last: bool = False) -> np.datetime64:
    """A time as users write it; the last second of it on demand: "--end 2008-07" means all of July, as in prepare.

    Raises:
        ConfigError: naming the option.
    """
    bare = text.removesuffix("Z")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy's of an offset from UTC
            time = np.datetime64(bare, "s")
    except (ValueError, UserWarning) as error:
        raise ConfigError(
            f"{option} {text}: not a time; write it as 2008-07-01 or 2008-07-01T12:00, in UTC and without an offset"
        ) from error
    if not np.datetime64("1678") < time < np.datetime64("2262"):
        raise ConfigError(f"{option} {text}: out of range; files hold times from 1678 to 2261")
    if last:
        time = max(time, (np.datetime64(bare) + 1).astype("datetime64[s]") - np.timedelta64(1, "s"))
    return time.astype("datetime64[ns]")


def _named(spec: DataSpec, dataset: xr.Dataset, text: str, upstream: Sequence[xr.Dataset]) -> np.datetime64:
    if text == LATEST:
        return _newest(spec, dataset, upstream)
    time = parse_time("--init-time", text)
    check_init_times(spec, dataset, np.array([time]))
    return time


def _newest(spec: DataSpec, dataset: xr.Dataset, upstream: Sequence[xr.Dataset]) -> np.datetime64:
    held = dataset.sizes["time"]
    if held < spec.input_steps:
        raise DataError(
            f"{source_of(dataset)}: holds {held} time{'s' if held > 1 else ''}, but a forecast starts from "
            f"{spec.input_steps}, one each {describe_step(spec.step)}; give --data that holds so many"
        )
    tail = dataset.isel(time=slice(-(spec.input_steps + NEWEST_TRIES), None))
    windows = open_sources(spec, tail, upstream).windows(spec, lead_steps=0)
    if len(windows) == 0:
        raise DataError(
            f"{source_of(dataset)}: its last {tail.sizes['time']} times hold no {spec.input_steps} consecutive "
            f"complete ones to start from; name an --init-time before the gap"
        )
    return windows.times[windows.init_indices[-1]]


def _of_period(
    spec: DataSpec, dataset: xr.Dataset, start: str | None, end: str | None, every: np.timedelta64 | None
) -> np.ndarray:
    times = dataset["time"].values
    possible = possible_init_times(spec, times)
    first = parse_time("--start", start) if start else (possible if possible.size else times)[0]
    last = min(parse_time("--end", end, last=True), times[-1]) if end else times[-1]
    if every is None:
        asked = times[(times >= first) & (times <= last)]
    else:
        if every % spec.step:
            step = describe_step(spec.step)
            raise ConfigError(f"--every {describe_step(every)}: not a multiple of the file's time step, {step}")
        asked = np.arange(first, last + np.timedelta64(1, "ns"), every)
    # Of times before the first possible one nobody expects a forecast: nothing is missing there.
    asked = asked[asked >= possible[0]] if possible.size else asked[:0]
    there = np.isin(asked, possible)
    if not there.any():
        ends = f"it has some from {iso(possible[0])} to {iso(possible[-1])}" if possible.size else "it has none"
        raise DataError(
            f"{source_of(dataset)}: no init time between {start or 'its start'} and {end or 'its end'}"
            f"{'' if every is None else f', every {describe_step(every)}'}; {ends}"
        )
    if not there.all():
        gaps = "; ".join(_gaps(spec, times, asked[0], asked[-1]))
        log.warning(
            "%d of %d init times left out, as their input times are not all in the file%s",
            (~there).sum(),
            there.size,
            f": {gaps}" if gaps else "",
        )
    return asked[there]


def _gaps(spec: DataSpec, times: np.ndarray, first: np.datetime64, last: np.datetime64) -> Iterator[str]:
    """The first gaps that lie in the windows of a span of init times."""
    inside = times[(times >= first - spec.input_steps * spec.step) & (times <= last + spec.step)]
    at = np.flatnonzero(np.diff(inside) != spec.step)
    for index in at[:_GAPS_TOLD]:
        yield f"nothing between {iso(inside[index])} and {iso(inside[index + 1])}"
    if at.size > _GAPS_TOLD:
        yield f"and {at.size - _GAPS_TOLD} more gaps"


def iso(time: np.datetime64) -> str:
    """ISO, to the minute."""
    return str(time.astype("datetime64[m]"))
