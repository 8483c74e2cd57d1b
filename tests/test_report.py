"""Figures and the page: every file is there, says what it should, and shows the typical case rather than the best."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from convlstm_wx.conventions import Channel
from convlstm_wx.data.regions import Grid, Region
from convlstm_wx.errors import ConfigError
from convlstm_wx.report import atlas, coastlines, plots, tables
from convlstm_wx.report.card import Card, map_caption, region_map
from convlstm_wx.report.cases import typical_case, worst_case
from convlstm_wx.report.maps import Band, Look, around_zero, error_levels, pretty_units
from convlstm_wx.report.page import write_page
from convlstm_wx.report.tables import digits
from convlstm_wx.verification.evaluate import evaluate
from convlstm_wx.verification.summary import verdicts

DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
HISTORY = "epoch,train_loss,validation_loss,learning_rate\n1,0.9,0.8,0.001\n2,0.5,0.6,0.0005\n3,0.4,0.7,0.0001\n"


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    """Two years of daily weather; rain is missing in a corner."""
    generator = np.random.default_rng(0)
    at = np.datetime64("2000-01-01", "ns") + np.arange(730) * DAY
    t = 280 + generator.standard_normal((730, 2, 12, 14))
    rain = generator.gamma(0.3, 5, (730, 12, 14))
    rain[:, :3, :3] = np.nan
    return xr.Dataset(
        {
            "t": (("time", "level", "lat", "lon"), t, {"units": "K"}),
            "tp": (("time", "lat", "lon"), rain, {"units": "mm"}),
        },
        {"time": at, "level": [500.0, 850.0], "lat": np.linspace(30, 52, 12), "lon": np.linspace(-10, 16, 14)},
    )


@pytest.fixture(scope="module")
def forecast(truth) -> xr.Dataset:
    inits, leads = truth["time"].values[600:700], np.arange(1, 7) * DAY
    valid = xr.DataArray(np.add.outer(inits, leads), dims=("init_time", "lead_time"))
    given = truth.sel(time=valid).drop_vars("time") + 0.5
    given["t"].attrs, given["tp"].attrs = truth["t"].attrs, truth["tp"].attrs
    return given.assign_coords(init_time=inits, lead_time=leads)


@pytest.fixture(scope="module")
def scored(forecast, truth) -> xr.Dataset:
    return evaluate(forecast, truth, truth["time"].values[:550])


@pytest.fixture(scope="module")
def figures(forecast, truth, scored, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("figures")
    (folder / "history.csv").write_text(HISTORY)
    return plots.draw_all(folder, forecast, truth, scored, folder / "history.csv")


def test_every_channel_gets_its_figures_and_each_is_a_picture(figures):
    names = [path.name for path in figures.values()]
    cases = ["case_t_500hPa.png", "case_t_850hPa.png", "case_tp.png"]
    assert names == ["rmse.png", *cases, "bias.png", "spectra.png", "events.png", "months.png", "loss.png"]
    for path in figures.values():
        picture = imread(path)
        assert min(picture.shape[:2]) > 300
        assert picture[..., :3].std() > 0.02  # not blank


def test_without_a_history_there_is_no_loss_curve(forecast, truth, scored, tmp_path):
    one = scored.isel(channel=[2])
    assert "Loss in training" not in plots.draw_all(tmp_path / "new", forecast, truth, one, tmp_path / "history.csv")


def test_the_case_is_the_median_one(scored):
    errors = np.tile(np.arange(100.0)[::-1], (5, 3, 6, 1))
    known = scored.assign(mse_by_init=scored["mse_by_init"].copy(data=errors))
    assert typical_case(known) == scored["init_time"].values[50]  # the 50th smallest of 100


def test_a_case_with_missing_channels_is_not_chosen(scored):
    errors = np.tile(np.arange(100.0), (5, 3, 6, 1))
    errors[0, 1, :, :90] = np.nan
    known = scored.assign(mse_by_init=scored["mse_by_init"].copy(data=errors))
    assert typical_case(known) >= scored["init_time"].values[90]
    errors[0, 1] = np.nan  # no init time has all channels: those that there are decide
    known = scored.assign(mse_by_init=scored["mse_by_init"].copy(data=errors))
    assert typical_case(known) == scored["init_time"].values[49]


def test_a_case_beyond_the_end_of_the_truth_is_drawn_with_what_there_is(forecast, truth, tmp_path):
    init_time = forecast["init_time"].values[-1]
    short = truth.sel(time=slice(None, init_time + 2 * DAY))
    assert plots.case(forecast, short, init_time, Channel("tp"), tmp_path / "case.png").exists()


def test_longitudes_of_another_convention_are_found(forecast, truth, tmp_path):
    shifted = truth.assign_coords(lon=truth["lon"] + 360.0)
    init_time = forecast["init_time"].values[0]
    paths = [
        plots.case(forecast, data, init_time, Channel("t", 500.0), tmp_path / name)
        for data, name in ((truth, "a.png"), (shifted, "b.png"))
    ]
    np.testing.assert_array_equal(*(imread(path) for path in paths))


def test_the_smallest_grids_and_single_lead_times_can_be_drawn(forecast, truth, tmp_path):
    small, place = forecast.isel(lat=[0], lon=[0], lead_time=[0]), truth.isel(lat=[0], lon=[0])
    assert plots.case(
        small, place, forecast["init_time"].values[0], Channel("t", 500.0), tmp_path / "case.png"
    ).exists()


def test_errors_are_centred_on_zero_and_the_middle_is_white():
    levels = around_zero(np.array([-3.0, 0.5, 7.0]))
    np.testing.assert_array_equal(levels, -levels[::-1])
    assert 0 not in levels
    assert levels[-1] >= 6.9
    assert around_zero(np.zeros(4)).size >= 2
    assert around_zero(np.full(4, np.nan)).size >= 2


def test_small_errors_of_early_lead_times_are_seen_beside_large_ones():
    levels = error_levels(np.array([-3300.0, 3300.0, 160.0]))
    assert levels.tolist() == [-2000, -1000, -500, -200, 200, 500, 1000, 2000]
    assert error_levels(np.array([0.5])).tolist()[4:] == pytest.approx([0.05, 0.1, 0.2, 0.5])
    assert error_levels(np.zeros(4)).size == error_levels(np.full(4, np.nan)).size == 8


def test_truth_and_forecast_share_levels_that_hold_both():
    look = Look.of(Channel("t2m"), {"units": "K"})
    levels = look.levels(np.array([270.0, 280.0]), np.array([290.0, 300.0]))
    assert levels[0] <= 271
    assert levels[-1] >= 299


def test_rain_has_levels_from_zero_that_show_light_rain():
    look = Look.of(Channel("tp"), {"units": "mm"})
    levels = look.levels(np.array([0.0] * 90 + [40.0] * 10))
    assert levels[:4].tolist() == [0.0, 0.1, 0.2, 0.5]
    assert levels[-1] == 20
    assert look.title == "tp: total precipitation"
    assert look.levels(np.zeros(5)).size >= 2


def test_wind_is_centred_on_zero():
    levels = Look.of(Channel("u10"), {"units": "m s-1"}).levels(np.array([-1.0, 9.0]))
    np.testing.assert_array_equal(levels, -levels[::-1])


def test_what_is_not_known_is_drawn_under_its_own_name():
    look = Look.of(Channel("mystery"), {"units": "furlong"})
    assert (look.title, look.units, look.colormap) == ("mystery", "furlong", "viridis")


@pytest.mark.parametrize(
    ("units", "pretty"), [("m**2 s**-2", "m² s⁻²"), ("kg kg**-1", "kg kg⁻¹"), ("degC", "°C"), ("K", "K"), ("1", "1")]
)
def test_units_are_written_as_people_write_them(units, pretty):
    assert pretty_units(units) == pretty


class Page(HTMLParser):
    """Collects what a page refers to, and checks that tags are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.sources, self.images, self.ids, self.open, self.text, self.scripts = [], [], [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.sources += [found[name] for name in ("src", "href", "xlink:href", "action") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "img":
            self.images.append(found)
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def card() -> Card:
    target, upstream = (Grid(tuple(np.arange(30.0, 50, 2)), tuple(west + np.arange(0.0, 20, 2))) for west in (0, 330))
    spans = {"training": [("2000-01-01", "2001-07-03")], "scored": [("2001-08-23", "2001-11-30")]}
    facts = {"Data": "<script>alert(1)</script>.nc"}
    return Card(facts, {"target": target, "upstream 1": upstream}, spans)


@pytest.fixture(scope="module")
def page(scored, forecast, truth, card, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    (folder / "history.csv").write_text(HISTORY)
    path = write_page(
        folder / "report.html",
        title="Forecasts of A & B",
        verdicts=verdicts(scored),
        scores=scored,
        forecast=forecast,
        truth=truth,
        card=card,
        history=folder / "history.csv",
    )
    return path.read_text(encoding="utf-8")


def test_page_is_whole_and_refers_to_nothing_outside(page):
    parsed = Page(page)
    assert all(source.startswith(("data:", "#")) for source in parsed.sources)
    assert not re.search(r"https?://|@import|url\(", page)
    assert len(page) < 4e6
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {source[1:] for source in parsed.sources if source.startswith("#")} <= set(parsed.ids)


def test_every_image_of_the_page_has_a_text_or_is_decoration(page):
    assert all("alt" in image for image in Page(page).images)
    silent = [image for image in Page(page).images if not image["alt"]]
    assert {image.get("class") for image in silent} <= {None, "overlay"}  # samples of lines, which stand beside words
    assert len([image for image in Page(page).images if image.get("class") == "field"]) == 5


def test_the_script_is_given_every_lead_time_of_both_cases(page, scored):
    forecasts, places = (json.loads(text) for text in Page(page).scripts[:2])
    assert [[len(row) for row in chart["frames"]] for chart in forecasts] == [[6, 6]] * 3
    assert [[len(row) for row in chart["frames"]] for chart in places] == [[6]] * 3
    frame = forecasts[2]["frames"][1][5]
    assert frame["moment"].startswith("+144 h: from ")
    assert frame["texts"][1].startswith("Map of tp, truth, +144 h after")
    rmse = scored["mse_by_init"].sel(system="model", channel="tp", init_time=worst_case(scored, "tp"))[5] ** 0.5
    assert frame["notes"][2] == f"RMSE {float(f'{float(rmse):.3g}'):g} mm"
    pictures = [frame["pictures"][1] for chart in forecasts for row in chart["frames"] for frame in row]
    assert len(set(pictures)) == len(pictures)  # of the truth: a day of its own each


def test_without_the_script_the_first_lead_time_of_the_first_variable_is_there(page):
    first = json.loads(Page(page).scripts[0])[0]["frames"][0][0]
    shown = [image for image in Page(page).images if image.get("class") == "field"]
    assert [image["src"] for image in shown[:3]] == first["pictures"]
    assert [image["alt"] for image in shown[:3]] == first["texts"]
    assert first["moment"] in page


def test_the_worst_case_is_that_of_the_channel(scored):
    errors = np.ones((5, 3, 6, 100))
    errors[0, 1, :, 7], errors[0, 2, :, 9] = 5.0, 7.0
    known = scored.assign(mse_by_init=scored["mse_by_init"].copy(data=errors))
    assert worst_case(known, "t@850hPa") == scored["init_time"].values[7]
    assert worst_case(known, "tp") == scored["init_time"].values[9]


@pytest.mark.parametrize(
    ("channels", "leads", "expected"),
    [(3, 10, (3, 10)), (11, 4, (11, 4)), (1, 60, (1, 45)), (20, 40, (11, 4)), (5, 2, (5, 2))],
)
def test_few_enough_pictures_are_drawn_and_the_first_and_last_lead_times_always(channels, leads, expected):
    n_channels, shown = atlas.choose(channels, leads, 8)
    assert (n_channels, shown.size) == expected
    assert (shown[0], shown[-1]) == (0, leads - 1)
    assert n_channels * shown.size * 8 <= atlas.MOST_PICTURES


def test_what_is_left_out_is_said(scored, forecast, truth):
    shown = 2, np.array([0, 2, 5])
    text = "Shown are 3 of 6 lead times and 2 of 3 variables, so that the page stays small; scores.nc has all."
    for made in (atlas.places(scored, shown), atlas.forecasts(forecast, truth, scored, shown)):
        assert made.left_out == text
        assert [len(chart.frames[0]) for chart in made.charts] == [3, 3]
    assert not atlas.places(scored, (3, np.arange(6))).left_out


def test_forecast_and_truth_share_a_colour_bar_and_errors_are_told_alike_on_both_sides(scored, forecast, truth):
    bars = atlas.forecasts(forecast, truth, scored, (1, np.array([0]))).charts[0].bars
    assert bars[0] == bars[1]
    assert bars[2].label == "forecast - truth (K)"
    errors = [float(text) for _, text in bars[2].ticks]
    assert errors == [-value for value in errors[::-1]]


def test_a_picture_fills_its_frame_with_the_colours_of_its_values(scored):
    grid = scored["bias_map"].isel(lat=slice(2), lon=slice(2))
    band = Band({}, np.array([0.0, 1.0, 2.0, 3.0]), "viridis", "K", in_cells=True)
    pixels = picture_of(atlas.Easel(grid).picture(np.array([[0.5, 1.5], [2.5, np.nan]]), band))
    corners = [tuple(pixels[y, x]) for y, x in ((-5, 5), (-5, -5), (5, 5), (5, -5))]  # row 0 lies in the south
    assert len(set(corners)) == 4
    assert corners[3] == (217, 217, 217)  # missing is grey


def picture_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


def test_the_scorecard_tells_what_is_sure_from_what_is_not(scored):
    card = tables.scorecard(scored)
    assert card.leads == ["+24 h", "+72 h", "+144 h"]  # of six, so that the table stays narrow
    assert card.rivals[0] == "persistence"
    name, cells = card.rows[0]
    at = scored.sel(channel=name, reference="persistence").isel(lead_time=0)
    assert cells[0].text == f"{100 * float(at['skill']):+.0f} %"
    assert cells[0].tone == "good"
    assert float(at["p_value"]) < 0.05
    unsure = scored.assign(p_value=0 * scored["skill"] + 0.06)
    assert {cell.tone for _, row in tables.scorecard(unsure).rows for cell in row} == {"open"}


def test_events_are_compared_with_every_rival_with_intervals(scored):
    rows = next(tables.event_differences(scored)).rows
    name = str(scored["channel"].values[0])
    at = scored.sel(channel=name, reference="persistence").isel(threshold=0, lead_time=0)
    best, low, high = (float(at[f"csi_difference{part}"]) for part in ("", "_low", "_high"))
    assert rows[0][2:4] == ["CSI", f"{best:+.2f} ({low:.2f} to {high:.2f})"]
    assert len(rows[0]) == 3 + scored.sizes["reference"]


def test_regions_lie_beside_each_other_however_longitudes_are_counted(card):
    panel = region_map(card.regions).axes[0]
    target, upstream = (line.get_xdata() for line in panel.lines)
    assert (target.min(), upstream.min()) == (0, -30)


def test_page_says_verdicts_scores_facts_formulas_and_counts(page, scored):
    text = Page(page).text
    for sentence in verdicts(scored):
        assert sentence in text
    rmse = scored["rmse"].sel(system="persistence", channel="t@850hPa").values[0]
    for part in (f"{rmse:.2f}", "t@850hPa (K)", "root last", "100, started from 2001-08-23", "12 points"):
        assert part in text, part
    assert scored.attrs["linear_inverse_model"] in text
    assert scored.attrs["climatology"] in text
    assert scored.attrs["intervals"] in text


def test_page_tells_of_events_and_periods(page, scored):
    text = Page(page).text
    model = scored.sel(system="model", channel="tp").isel(threshold=1, lead_time=0)
    for part in ("Events: tp", ">= 1 mm", f"{int(model['hits'] + model['misses']):,}", f"{float(model['csi']):.3f}"):
        assert part in text, part
    assert "Of anomalies, p90 is the 90th percentile" in text
    for part in ("By month of the valid time", "Sep", "By season of the valid time", "SON", "RMSE / climatology"):
        assert part in text, part
    assert "Ensemble of" not in text


def test_an_ensemble_a_box_and_the_wind_get_their_tables_and_figures(truth, forecast, tmp_path):
    both = {"t": "u", "tp": "v"}  # two fields that are called wind, in units of wind
    wind = [data.isel(level=0, drop=True).rename(both).fillna(0.0) for data in (truth, forecast)]
    for data in wind:
        for name in ("u", "v"):
            data[name].attrs = {"units": "m s-1"}
    truth, given = wind
    noise = xr.DataArray([-1.0, 0.0, 2.0], dims="realization")
    members = (given + noise).transpose("init_time", "realization", ...)
    for name in ("u", "v"):
        members[name].attrs = {"units": "m s-1"}
    training = truth["time"].values[:550]
    scored = evaluate(members, truth, training, baselines=["persistence"], boxes=[Region(35, 45, 0, 10)])
    found = (tables.ensemble(scored), tables.wind(scored), tables.boxes(scored))
    titles = {table.title: table for some in found for table in some}
    assert "Ensemble of 3 members" in titles
    assert titles["Box 35..45N 0..10E"].rows[0][2] == digits(float(scored["rmse_by_box"][0, 0, 0, 0]))
    assert titles["Wind: RMSE of the vector"].rows[0][2] == digits(float(scored["wind_rmse"][0, 0, 0]))
    squares = (scored["rmse"] ** 2).sum("channel") ** 0.5
    np.testing.assert_allclose(scored["wind_rmse"].isel(wind=0), squares, rtol=1e-10)
    names = [path.name for path in plots.draw_all(tmp_path / "figures", members, truth, scored).values()]
    assert "ensemble.png" in names
    path = write_page(
        tmp_path / "x.html", title="", verdicts=[], scores=scored, forecast=members, truth=truth, card=Card({})
    )
    text = Page(path.read_text()).text
    assert "Ensemble of 3 members" in text
    assert "Wind and parts of the region" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (12.345, "12.3"), (0.0123, "0.0123"), (0.0, "0"), (np.nan, "-"), (3e-9, "3.00e-09")],
)
def test_numbers_have_three_digits(value, text):
    assert digits(value) == text


def test_page_escapes_what_comes_from_files(page):
    assert "<script>alert" not in page
    assert "A &amp; B" in page
    assert "<script>alert(1)</script>.nc" in Page(page).text


def test_page_is_for_light_and_dark_and_for_phones(page):
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_a_page_that_cannot_be_written_is_an_error_of_the_user(scored, forecast, truth, tmp_path):
    few = scored.isel(channel=[0])
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(
            tmp_path / "absent" / "page.html",
            title="",
            verdicts=[],
            scores=few,
            forecast=forecast,
            truth=truth,
            card=Card({}),
        )


def test_coastlines_are_drawn_where_cartopy_has_them_and_nothing_is_fetched(monkeypatch, tmp_path):
    cartopy = pytest.importorskip("cartopy")
    shapefile = pytest.importorskip("shapefile")
    monkeypatch.setitem(cartopy.config, "data_dir", tmp_path)
    monkeypatch.setitem(cartopy.config, "pre_existing_data_dir", tmp_path)
    coastlines.coastlines.cache_clear()
    assert coastlines.coastlines() == ()
    folder = tmp_path / "shapefiles/natural_earth/physical"
    folder.mkdir(parents=True)
    with shapefile.Writer(str(folder / "ne_110m_coastline.shp")) as writer:
        writer.field("name", "C")
        writer.line([[[0, 40], [10, 50]]])
        writer.record("a coast")
    coastlines.coastlines.cache_clear()
    try:
        panel = Figure().subplots()
        panel.set(xlim=(355, 375), ylim=(35, 55))  # longitudes of 0 to 360 and beyond
        coastlines.draw_coastlines(panel)
        drawn = [path.vertices.tolist() for path in panel.collections[0].get_paths()]
        assert [[360, 40], [370, 50]] in drawn
        assert panel.get_xlim() == (355, 375)
    finally:
        coastlines.coastlines.cache_clear()


def test_without_coastlines_the_map_of_regions_says_so(card, monkeypatch):
    monkeypatch.setitem(sys.modules, "cartopy", None)  # as if it were not installed
    coastlines.coastlines.cache_clear()
    assert "No coastlines" in map_caption(card.regions)
    coastlines.coastlines.cache_clear()
