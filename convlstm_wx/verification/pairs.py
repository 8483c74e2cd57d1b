"""Who is compared with what: a forecast, its truth and its rivals on the same grid, times and points.

Nothing larger than one block of init times of one channel is in memory at once, so an archive of forecasts of any
length can be scored.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, normalise_units
from convlstm_wx.data.reading import is_projected, observed_only
from convlstm_wx.errors import DataError
from convlstm_wx.verification.baselines import Baseline, latest_at_same_hour
from convlstm_wx.verification.climatology import Climatology, read

MEMBER = "realization"
BLOCK_BYTES = 64e6  # of one channel's forecast, read at once
LEAD_BYTES = 2e6  # of one lead time in float64, worked on at once: some thirty such fields fit into caches
DEGREES_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Pairs:
    """Fields of one lead time and one block of init times, NaN where a point does not count.

    systems: (system, init_time, lat, lon), the forecast ("model"; of an ensemble its mean) and its rivals; truth and
    usual (the climatology): (init_time, lat, lon), at the valid times; lost: number of points per init time where the
    truth is valid but the forecast is not; members: (realization, init_time, lat, lon) of an ensemble.
    """

    systems: xr.DataArray
    truth: xr.DataArray
    usual: xr.DataArray
    lost: xr.DataArray
    members: xr.DataArray | None = None

    def inside(self, rows: np.ndarray, columns: np.ndarray) -> "Pairs":
        """The same pairs in a part of the grid; what was lost is counted in the whole."""
        systems, truth, usual = (f.isel(lat=rows, lon=columns) for f in (self.systems, self.truth, self.usual))
        return Pairs(systems, truth, usual, self.lost)


def channels_of(forecast: xr.Dataset) -> list[Channel]:
    """The channels of a forecast: each variable, level by level; a level that holds no value was not forecast."""
    channels: list[Channel] = []
    for name, variable in forecast.data_vars.items():
        if "level" not in variable.dims:
            channels.append(Channel(str(name)))
            continue
        levels = (variable.sel(level=level) for level in forecast["level"].values)
        channels += [Channel(str(name), float(fields["level"])) for fields in levels if _holds_a_value(fields)]
    return channels


def _holds_a_value(fields: xr.DataArray) -> bool:
    """Reads no more of them than it must."""
    parts = parts_of(fields, fields.nbytes / BLOCK_BYTES)
    return any(bool(np.isfinite(part.values).any()) for part in parts)


def fields_of(dataset: xr.Dataset, channel: Channel) -> xr.DataArray:
    """The variable of a channel as it was observed, at its level, with the coordinates of its dims alone."""
    fields = dataset[channel.variable]
    if channel.level is not None:  # first: what hides filled values may copy all that it is given
        fields = fields.sel(level=channel.level, drop=True)
    return observed_only(fields).reset_coords(drop=True)


def pairs_of(
    fields: xr.DataArray, observed: xr.DataArray, usual: Climatology, baselines: Mapping[str, Baseline]
) -> Iterator[Pairs]:
    """All pairs of one channel: block of init times by block, and within a block lead time by lead time.

    Args:
        fields: forecast ([realization,] init_time, lead_time, lat, lon).
        observed: truth (time, lat, lon) on the same grid.
        baselines: the rivals by name.
    """
    leads = fields["lead_time"].values
    for read_at_once in parts_of(fields, fields.nbytes / BLOCK_BYTES):
        loaded = read_at_once.load()
        # Neighbouring init times verify at the same times: read each time once.
        known = _Read.of(observed, loaded["init_time"].values, leads)
        for block in parts_of(loaded, 8 * loaded.size / leads.size / LEAD_BYTES):
            inits = block["init_time"].values
            for lead, forecast in zip(leads, block.transpose("lead_time", ...)):
                rivals = {name: baseline(inits, lead, known.at) for name, baseline in baselines.items()}
                yield _on_common_points(forecast, rivals, known.at(inits + lead), usual.at(inits + lead))


def parts_of(fields: xr.DataArray, number: float) -> Iterator[xr.DataArray]:
    """Stretches of init times, at least so many if there are as many."""
    n_inits = fields.sizes["init_time"]
    edges = np.linspace(0, n_inits, int(np.clip(np.ceil(number), 1, n_inits)) + 1).round().astype(int)
    return (fields.isel(init_time=slice(first, last)) for first, last in itertools.pairwise(edges.tolist()))


@dataclass(frozen=True)
class _Read:
    """Fields [N, H, W] of these times, read at once."""

    times: np.ndarray
    fields: np.ndarray

    @classmethod
    def of(cls, observed: xr.DataArray, inits: np.ndarray, leads: np.ndarray) -> "_Read":
        """All that pairs from these init times need: the init times, the valid times, and the same hour before."""
        past = [latest_at_same_hour(inits, lead) for lead in leads]
        times = np.unique(np.concatenate([inits, np.add.outer(inits, leads).ravel(), *past]))
        return cls(times, read(observed, times))

    def at(self, times: np.ndarray) -> np.ndarray:
        return self.fields[np.searchsorted(self.times, times)]


def _on_common_points(
    forecast: xr.DataArray, rivals: Mapping[str, np.ndarray], verifying: np.ndarray, usual: np.ndarray
) -> Pairs:
    """Every system loses the points that any one of them, or the truth, lacks."""
    members = forecast.transpose(MEMBER, ...).astype(float) if MEMBER in forecast.dims else None
    mean = forecast if members is None else members.mean(MEMBER, skipna=False)
    arrays = np.stack([mean.values, *rivals.values(), verifying, usual]).astype(float)
    finite = np.isfinite(arrays)
    common = finite.all(axis=0)
    arrays[:, ~common] = np.nan
    names = xr.Variable("system", ["model", *rivals])
    systems = xr.DataArray(arrays[:-2], dims=("system", *mean.dims), coords=dict(mean.coords)).assign_coords(
        system=names
    )
    lost = mean.copy(data=finite[-2] & ~finite[0]).sum(("lat", "lon"))
    truth, expected = (mean.copy(data=array) for array in arrays[-2:])
    return Pairs(systems, truth, expected, lost, None if members is None else members.where(common))


def match_truth(forecast: xr.Dataset, truth: xr.Dataset) -> xr.Dataset:
    """The truth on the forecast's variables, levels and grid points, with the forecast's own lat and lon.

    Raises:
        DataError: naming what differs.
    """
    for name, variable in forecast.data_vars.items():
        extra = set(variable.dims) - {"init_time", "lead_time", "level", "lat", "lon", MEMBER}
        if extra:
            raise DataError(f"forecast: {name} has dimension {', '.join(map(str, extra))}; score one of it at a time.")
        if name not in truth:
            raise DataError(f"truth: no variable {name} to score against; it has {', '.join(map(str, truth))}.")
        ours, theirs = (normalise_units(str(data[name].attrs.get("units", "1"))) for data in (forecast, truth))
        if ours != theirs:
            raise DataError(f"{name}: the forecast is in {ours}, the truth in {theirs}; bring both to the same units.")
    truth = truth[list(forecast.data_vars)]
    if "level" in forecast.dims:
        truth = truth.sel(level=_common_levels(forecast, truth))
    if is_projected(forecast) != is_projected(truth):
        kinds = ("on latitudes and longitudes", "on a projected grid")
        raise DataError(
            f"the forecast is {kinds[is_projected(forecast)]}, the truth {kinds[is_projected(truth)]}; score against "
            "data on the forecast's grid."
        )
    places = {axis: places_on(forecast, truth, axis) for axis in ("lat", "lon")}
    truth = truth.isel(places)
    _check_same_places(forecast, truth)
    return truth.assign_coords({axis: forecast[axis] for axis in places})


def _check_same_places(forecast: xr.Dataset, truth: xr.Dataset) -> None:
    """Of projected grids: the rows and columns of the same numbers may lie elsewhere."""
    if not is_projected(forecast):
        return
    apart = [np.abs(forecast[name].values - truth[name].values) for name in ("latitude", "longitude")]
    apart[1] = np.minimum(apart[1] % 360.0, 360.0 - apart[1] % 360.0)
    furthest = float(np.max(apart))
    if furthest > DEGREES_TOLERANCE:
        raise DataError(
            f"truth: its projected grid lies up to {furthest:.3g} degrees away from the forecast's. Score against data "
            "on that grid."
        )


def _common_levels(forecast: xr.Dataset, truth: xr.Dataset) -> np.ndarray:
    offered = truth["level"].values if "level" in truth.dims else np.array([])
    missing = np.setdiff1d(forecast["level"].values, offered)
    if missing.size:
        raise DataError(
            f"truth: no level {', '.join(f'{level:g}' for level in missing)} hPa to score against; "
            f"it has {', '.join(f'{level:g}' for level in offered) or 'none'}."
        )
    return forecast["level"].values


def places_on(forecast: xr.Dataset, truth: xr.Dataset, axis: str) -> np.ndarray:
    """Where the forecast's grid points lie on an axis of the truth; longitudes are compared around the circle.

    Raises:
        DataError: if the truth lacks some of them.
    """
    wanted, offered = forecast[axis].values.astype(float), truth[axis].values.astype(float)
    tolerance, compared = DEGREES_TOLERANCE, wanted
    if is_projected(truth):
        tolerance = 1e-3 * float(np.diff(offered).min(initial=np.inf)) if offered.size > 1 else 1e-3
    elif axis == "lon":
        origin = offered[0] - DEGREES_TOLERANCE
        compared = (wanted - origin) % 360.0 + origin
    index = truth.get_index(axis).astype(float)
    places = index.get_indexer(compared, method="nearest", tolerance=tolerance)
    if (places < 0).any():
        missing = wanted[places < 0]
        raise DataError(
            f"truth: {missing.size} of the forecast's {wanted.size} {axis} values are not on its grid (first: "
            f"{missing[0]:g}); forecast {_extent(wanted)}, truth {_extent(offered)}. Score against data on that grid."
        )
    return places


def _extent(axis: np.ndarray) -> str:
    step = f" by {np.median(np.diff(axis)):g}" if axis.size > 1 else ""
    return f"{axis[0]:g} to {axis[-1]:g}{step}"
