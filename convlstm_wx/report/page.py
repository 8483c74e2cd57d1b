"""One self-contained HTML page about an evaluation: it can be mailed, and opens without a network."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined

from convlstm_wx.files import write_text
from convlstm_wx.report.diagnostics import spoken
from convlstm_wx.report.maps import pretty_units
from convlstm_wx.report.tables import further

# Attributes of the scores that the page tells under "How this was computed", in this order.
METHOD = (
    "points",
    "weights",
    "persistence",
    "diurnal_persistence",
    "damped_persistence",
    "climatology",
    "linear_inverse_model",
    "acc",
    "events",
    "intervals",
)
FORMULAS = (
    "rmse",
    "mae",
    "bias",
    "acc",
    "activity",
    "skill",
    "csi",
    "ets",
    "frequency_bias",
    "fss",
    "power",
    "crps",
    "spread",
)


def write_page(
    path: Path,
    *,
    title: str,
    verdicts: Sequence[str],
    scores: xr.Dataset,
    figures: Mapping[str, Path],
    facts: Mapping[str, str],
) -> Path:
    """Write the page and return its path.

    Args:
        verdicts: one plain sentence per channel.
        scores: as verification.evaluate gives them; shown as a table, with its formulas and counts.
        figures: caption -> PNG file; embedded in the page.
        facts: what data, what model, which months: name -> value.

    Raises:
        ConfigError: if the page cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("convlstm_wx.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("page.html").render(
        title=title,
        verdicts=verdicts,
        tables=[_table(scores.sel(channel=name)) for name in scores["channel"].values],
        systems=[spoken(str(name)) for name in scores["system"].values],
        further=further(scores),
        figures={caption: _embedded(file) for caption, file in figures.items()},
        facts=facts,
        counts=_counts(scores),
        method={spoken(name): scores.attrs[name] for name in METHOD if name in scores.attrs},
        formulas={spoken(name): scores[name].attrs["formula"] for name in FORMULAS if name in scores},
    )
    write_text(path, text)
    return path


def _embedded(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _table(scores: xr.Dataset) -> dict[str, Any]:
    """What the template shows of one channel: name, units, and a row per lead time."""
    smallest = float(scores["rmse"].min())
    decimals = int(np.clip(2 - np.floor(np.log10(smallest)), 0, 8)) if smallest > 0 else 3
    return {
        "name": str(scores["channel"].item()),
        "units": pretty_units(str(scores["units"].item())),
        "rows": [_row(scores.isel(lead_time=lead), decimals) for lead in range(scores.sizes["lead_time"])],
    }


def _row(scores: xr.Dataset, decimals: int) -> dict[str, Any]:
    best, model = float(scores["rmse"].min()), scores.sel(system="model")
    return {
        "lead": f"+{scores['lead_hours'].item():g} h",
        "rmse": [{"text": f"{value:.{decimals}f}", "best": value == best} for value in scores["rmse"].values],
        "others": [
            f"{model['mae'].item():.{decimals}f}",
            f"{model['bias'].item():+.{decimals + 1}f}",
            f"{model['acc'].item():.3f}",
            f"{(model['activity'] / scores['observed_activity']).item():.2f}",
        ],
        "skills": [f"{100 * skill:+.0f} %" for skill in scores["skill"].values],
    }


def _counts(scores: xr.Dataset) -> dict[str, str]:
    init_times = np.datetime_as_string(scores["init_time"].values, unit="m")
    lead_hours = scores["lead_hours"].values
    return {
        "Forecasts": f"{init_times.size}, started from {init_times[0]} to {init_times[-1]} UTC",
        "Lead times": f"{lead_hours.size}, +{lead_hours[0]:g} h to +{lead_hours[-1]:g} h",
        "Region": f"{_extent(scores, 'lat', 'latitude', 'N')}, {_extent(scores, 'lon', 'longitude', 'E')}",
        "Points scored": f"{int(scores['count'].sum()):,} over all channels and lead times",
        "Pairs without truth": f"{scores.attrs['pairs_without_truth']} of {scores.attrs['pairs_offered']}, left out",
    }


def _extent(scores: xr.Dataset, axis: str, mesh: str, side: str) -> str:
    """Points along an axis and the degrees that they cover: of a projected grid, those of the points themselves."""
    degrees = scores[mesh if mesh in scores.coords else axis].values
    return f"{scores.sizes[axis]} points from {degrees.min():g} to {degrees.max():g} °{side}"
