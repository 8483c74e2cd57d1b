"""Tell what came out of an evaluation: sentences, a table, and the files of scores."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, event_label
from convlstm_wx.files import library_errors, replacing, write_text
from convlstm_wx.text import MOST_CHANNELS, merge_levels, select_some
from convlstm_wx.verification.describing import in_shown_units
from convlstm_wx.verification.wording import clear_outcomes, ensemble_outcomes, lead_label, outcomes, sentence

_MOST_DECIMALS = 6  # of the table: with more, columns touch, and nobody counts the zeros
TABLE_LEADS = 10
SHORT = {
    "persistence": "persist.",
    "diurnal_persistence": "diurnal",
    "damped_persistence": "damped",
    "climatology": "climat.",
    "linear_inverse_model": "inverse",
}
OF_SYSTEM = ("rmse", "rmse_low", "rmse_high", "mae", "bias", "acc", "acc_centred", "activity")
OF_PAIRS = ("observed_activity", "count", "pairs")
OF_ENSEMBLE = ("crps", "crps_low", "crps_high", "crps_linear_inverse_model", "crps_skill", "spread")
OF_EVENTS = ("pod", "far", "csi", "ets", "hss", "frequency_bias", "hits", "misses", "false_alarms", "correct_negatives")

RELIABLE = (0.9, 1.1)  # spread over error, about
LESS_RIVALS = ("pod", "far", "csi", "ets", "frequency_bias")


def verdicts(scores: xr.Dataset) -> list[str]:
    """One plain sentence per channel: which rival it beats until when, and where no difference can be shown; of an
    ensemble another one. Of many channels, levels of a variable with the same verdict share one.
    """
    hours, names = scores["lead_hours"].values, list(map(str, scores["channel"].values))
    said = [(name, sentence(name, outcomes(scores.sel(channel=name)), hours)) for name in names]
    if "crps" in scores:
        said += [(name, _ensemble_verdict(name, scores.sel(channel=name))) for name in names]
    return merge_levels([(Channel.parse(name), text) for name, text in said])


def _ensemble_verdict(name: str, scores: xr.Dataset) -> str:
    """How its CRPS compares, and whether its spread is as large as the error of its mean."""
    ratios = (scores["spread"] / scores["rmse"].sel(system="model")).values
    if not np.isfinite(ratios).any():
        return f"{name} ensemble has nothing to score."
    low, high = np.nanmin(ratios), np.nanmax(ratios)
    share = " to ".join(dict.fromkeys((f"{low:.2f}", f"{high:.2f}")))
    words = {high < RELIABLE[0]: ", too small: it is too sure", low > RELIABLE[1]: ", too large: it is not sure enough"}
    spread = f"its spread is {share} of the error of its mean{words.get(True, '')}."
    if "crps_skill" not in scores:
        return f"{name} ensemble: {spread}"
    found = {"the linear inverse model's normal distribution": ensemble_outcomes(scores)}
    return f"{sentence(f'{name} ensemble (CRPS)', found, scores['lead_hours'].values)[:-1]}; {spread}"


def event_verdicts(scores: xr.Dataset) -> list[str]:
    """A sentence for each event that is forecast clearly better or worse than by a rival, by its CSI."""
    found: list[tuple[Channel, str]] = []
    for name in map(str, scores["channel"].values):
        of_channel = scores.sel(channel=name)
        for place, label in enumerate(map(str, of_channel["threshold_label"].values)):
            clear = clear_outcomes(of_channel.isel(threshold=place))
            if any(map(any, clear.values())):
                text = sentence(f"{event_label(name, label)} (CSI)", clear, scores["lead_hours"].values)
                found.append((Channel.parse(name), text))
    return merge_levels(found)


def table(scores: xr.Dataset) -> str:
    """Monospaced table: RMSE of all systems, and bias, ACC and blur of the model, by channel and lead time.

    The smallest RMSE of a row is marked with *. Of more than ten lead times ten are shown, the first and last included;
    of more than eight channels eight, of all variables.
    """
    n_channels = scores.sizes["channel"]
    scores = select_some(in_shown_units(scores), MOST_CHANNELS)
    n_leads = scores.sizes["lead_time"]
    shown = np.unique(np.linspace(0, n_leads - 1, min(n_leads, TABLE_LEADS)).round().astype(int))
    names = [SHORT.get(name, name) for name in map(str, scores["system"].values)]
    others = ["CRPS", "spread"] if "crps" in scores else []
    heads = [f"{name} " for name in names]
    lines = [
        f"{'':8}  {' RMSE (* best) ':-^{10 * len(names) - 2}}  {' model ':-^{9 * (4 + len(others)) - 2}}",
        _line(("lead", *heads), ("bias", "ACC", "activity", *others, "pairs")),
    ]
    for name in scores["channel"].values:
        lines += ["", *_channel_lines(scores.sel(channel=name).isel(lead_time=shown))]
    lines += ["", "activity: size of the forecast anomalies over that of the observed ones; below 1 is blurred."]
    if shown.size < n_leads:
        lines += [f"{shown.size} of {n_leads} lead times; all are in scores.csv."]
    if scores.sizes["channel"] < n_channels:
        lines += [f"{scores.sizes['channel']} of {n_channels} channels; all are in scores.csv."]
    return "\n".join(lines)


def _channel_lines(scores: xr.Dataset) -> Iterator[str]:
    """The name and units of one channel, and a row per lead time."""
    yield f"{scores['channel'].item()} ({scores['units'].item()})"
    smallest = float(scores["rmse"].min())
    decimals = max(0, int(2 - np.floor(np.log10(smallest)))) if smallest > 0 else 3
    plain = decimals <= _MOST_DECIMALS
    size, bias = (f".{decimals}f", f"+.{decimals + 1}f") if plain else (".1e", "+.1e")
    for row in range(scores.sizes["lead_time"]):
        at = scores.isel(lead_time=row)
        best, model = float(at["rmse"].min()), at.sel(system="model")
        rmse = [f"{value:{size}}{'*' if value == best else ' '}" for value in at["rmse"].values]
        ensemble = [f"{float(at[name]):{size}}" for name in ("crps", "spread") if name in at]
        yield _line(
            (lead_label(float(at["lead_hours"])), *rmse),
            (
                f"{float(model['bias']):{bias}}",
                f"{float(model['acc']):.3f}",
                f"{float(model['activity'] / at['observed_activity']):.2f}",
                *ensemble,
                f"{int(at['pairs'])}",
            ),
        )


def _line(rmse: tuple[str, ...], others: tuple[str, ...]) -> str:
    cells = [f"{rmse[0]:>8}", *(f"{cell:>10}" for cell in rmse[1:]), *(f"{cell:>9}" for cell in others)]
    return "".join(cells)


def write_scores(scores: xr.Dataset, folder: Path) -> list[Path]:
    """Write the scores; returns the paths.

    scores.nc holds everything; scores.csv a row per channel, lead time and system; events.csv one per threshold too;
    scores.json both tables, with formulas, counts, the method and the verdicts. Units are those of the data.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    paths = [folder / name for name in ("scores.nc", "scores.csv", "events.csv", "scores.json")]
    packed = {name: {"zlib": True, "dtype": "float32"} for name in ("bias_map", "rmse_map")}
    with replacing(paths[0]) as temporary, library_errors():
        scores.to_netcdf(temporary, encoding=packed)
    rows, happened = _rows(scores), _event_rows(scores)
    for path, frame in ((paths[1], rows), (paths[2], happened)):
        with replacing(path) as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
    said = {
        "verdicts": verdicts(scores),
        "event_verdicts": event_verdicts(scores),
        "method": scores.attrs,
        "formulas": {str(name): scores[name].attrs for name in scores.data_vars},
        "scores": rows.to_dict("records"),
        "events": happened.to_dict("records"),
    }
    write_text(paths[3], json.dumps(plain(said), indent=1, allow_nan=False) + "\n")
    return paths


def _rows(scores: xr.Dataset) -> Any:
    """A table with a row per channel, lead time and system; those of the ensemble stand in the rows of the model."""
    # The skill of the model against a system stands in that system's row.
    skill = {f"skill{part}": f"model_skill{part}" for part in ("", "_low", "_high")}
    against = scores[list(skill)].rename({"reference": "system", **skill})
    of_ensemble = [name for name in OF_ENSEMBLE if name in scores]
    rows = xr.merge([scores[[*OF_SYSTEM, *OF_PAIRS]], against], join="left")
    is_model = xr.DataArray(scores["system"].values == "model", dims="system")
    rows = rows.assign({name: scores[name].where(is_model) for name in of_ensemble})
    columns = ["channel", "units", "lead_hours", "system", *OF_SYSTEM, *OF_PAIRS, *skill.values(), *of_ensemble]
    return rows.to_dataframe().reset_index()[columns]


def _event_rows(scores: xr.Dataset) -> Any:
    """A table with a row per channel, lead time, system and threshold; a column fss_N per window of N x N points.

    The model less a system stands in that system's row.
    """
    parts = ("", "_low", "_high")
    less = {f"{name}_difference{part}": f"model_{name}_difference{part}" for name in LESS_RIVALS for part in parts}
    against = scores[list(less)].rename({"reference": "system", **less})
    happened = xr.merge([scores[list(OF_EVENTS)], against], join="left")
    for size in scores["window"].values:
        of_window = scores.sel(window=size, drop=True)
        happened[f"fss_{size}"] = of_window["fss"]
        for part in parts:
            difference = of_window[f"fss_difference{part}"].rename(reference="system")
            happened[f"model_fss_{size}_difference{part}"] = difference.reindex(system=scores["system"])
    names = ["channel", "units", "lead_hours", "system", "threshold_label", "threshold_value"]
    frame = happened.to_dataframe().reset_index()
    return frame.loc[frame["threshold_label"] != "", [*names, *map(str, happened.data_vars)]]


def plain(value: Any) -> Any:
    """The same in JSON's types; what is not finite is null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
