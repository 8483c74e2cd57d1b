"""One pass over all pairs of a channel: every statistic that the scores are made of, in bounded memory."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from convlstm_wx.verification import ensembles, events, metrics, spectra
from convlstm_wx.verification.baselines import Baseline
from convlstm_wx.verification.events import Threshold
from convlstm_wx.verification.pairs import Pairs, pairs_of
from convlstm_wx.verification.record import Record

# By kind: "means" are area means per init time, "maps" means over init times, "in ..." area means of a box; all others
# are sums over init times.
Statistics = dict[str, xr.Dataset]


@dataclass(frozen=True)
class Measures:
    """What is measured of each block of pairs.

    weights: area of each row (lat); thresholds: of the channel's events; areas: rows and columns of each box;
    rings: of the spectra, None for a grid too small for them.
    """

    weights: xr.DataArray
    thresholds: Sequence[Threshold]
    areas: Mapping[str, tuple[np.ndarray, np.ndarray]]
    rings: spectra.Rings | None

    def of(self, pairs: Pairs) -> Statistics:
        """Of one lead time and one block of init times."""
        found = {
            "means": metrics.by_init(pairs, self.weights),
            "maps": metrics.by_point(pairs),
            "events": events.count(pairs, self.thresholds),
        }
        for name, (rows, columns) in self.areas.items():
            found[f"in {name}"] = metrics.by_init(pairs.inside(rows, columns), self.weights.isel(lat=rows))
        if self.rings is not None:
            model = pairs.systems.sel(system="model")
            found["spectra"] = spectra.power_of(model, pairs.truth, self.rings)
        if pairs.members is not None:
            found["means"] = found["means"].assign(ensembles.by_init(pairs, self.weights).data_vars)
            found["ensemble"] = ensembles.sums(pairs, self.thresholds)
        return found


def gather(fields: xr.DataArray, record: Record, rivals: Mapping[str, Baseline], measures: Measures) -> Statistics:
    """All statistics of one channel, with the dimension lead_time.

    Args:
        fields: forecast ([realization,] init_time, lead_time, lat, lon).
    """
    parts = [measures.of(pairs) for pairs in pairs_of(fields, record.fields, record.usual, rivals)]
    leads = fields.sizes["lead_time"]
    blocks = [parts[start : start + leads] for start in range(0, len(parts), leads)]
    return {
        kind: _joined(kind)([xr.concat([part[kind] for part in block], fields["lead_time"]) for block in blocks])
        for kind in parts[0]
    }


def _joined(kind: str) -> Callable[[list[xr.Dataset]], xr.Dataset]:
    """How blocks of init times become one."""
    if kind == "means" or kind.startswith("in "):
        return lambda blocks: xr.concat(blocks, "init_time")
    return _pooled if kind == "maps" else lambda blocks: functools.reduce(operator.add, blocks)


def _pooled(blocks: list[xr.Dataset]) -> xr.Dataset:
    maps = xr.concat(blocks, "block")
    return metrics.pool(maps[["mse", "bias"]], maps["count"], "block")


def by_channel(statistics: Mapping[str, Statistics]) -> Statistics:
    """The same kinds with the dimension channel; thresholds are numbered, and NaN where a channel has fewer."""
    names = xr.Variable("channel", list(statistics))
    kinds = next(iter(statistics.values()))
    return {
        kind: xr.concat([_numbered(of_channel[kind]) for of_channel in statistics.values()], names, join="outer")
        for kind in kinds
    }


def _numbered(part: xr.Dataset) -> xr.Dataset:
    return part.assign_coords(threshold=np.arange(part.sizes["threshold"])) if "threshold" in part.dims else part
