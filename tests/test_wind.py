"""Wind as speed and direction: refused in training, and turned into components by prepare."""

import json
import re
import shlex

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.data.reading import adopt_dataset, open_dataset
from convlstm_wx.data.wind import with_components
from convlstm_wx.errors import ConfigError

NAN = np.nan
SMALL = ["--hidden-channels", "4", "--batch-size", "16", "--num-epochs", "1", "--device", "cpu"]


def wind(
    speed=(10, 10, 10, 10), direction=(0, 90, 180, 270), *, names=("ws", "wdir"), levels=(), about=None
) -> xr.Dataset:
    """Speeds and directions along the columns of a grid, the same at all times, rows and levels."""
    shape = (4, *([len(levels)] if levels else []), 3, len(speed))
    dims = ("time", *(["level"] if levels else []), "lat", "lon")
    axes = {
        "time": np.datetime64("2001-01-01", "ns") + np.arange(4) * np.timedelta64(1, "D"),
        "lat": [50.0, 51.0, 52.0],
        "lon": np.arange(len(speed)) * 1.0,
    }
    if levels:
        axes["level"] = ("level", list(levels), {"units": "hPa"})
    s, d = (np.broadcast_to(np.asarray(values, np.float32), shape).copy() for values in (speed, direction))
    attrs = {"units": "degree", **(about or {})}
    return xr.Dataset({names[0]: (dims, s, {"units": "m/s"}), names[1]: (dims, d, attrs)}, axes)


def components(dataset: xr.Dataset) -> tuple[list[float], list[float]]:
    """u and v along the columns."""
    made = with_components(adopt_dataset(dataset))
    return tuple(made[name][0, 0].values.round(4).tolist() for name in ("u", "v"))


def prepare(data, output, *more: str) -> int:
    return main(["prepare", "--data", str(data), "--output", str(output), *more])


# Components


def test_a_wind_from_the_west_blows_east():
    u, v = components(wind())  # from north, east, south, west
    assert u == [0, -10, 0, 10]
    assert v == [-10, 0, 10, 0]


@pytest.mark.parametrize(
    "attrs", [{"standard_name": "wind_to_direction"}, {"long_name": "direction the wind blows to: towards"}]
)
def test_a_direction_to_which_it_blows_has_the_other_sign(attrs):
    u, v = components(wind(about=attrs))
    assert u == [0, 10, 0, -10]
    assert v == [10, 0, -10, 0]


def test_angles_may_be_radians_or_go_from_minus_180():
    radians = wind(direction=np.deg2rad([0, 90, 180, 270]), about={"units": "radian"})
    assert components(radians) == components(wind(direction=(0, 90, 180, -90))) == components(wind())


def test_components_are_missing_where_speed_or_direction_are_or_make_no_sense():
    u, v = components(wind((5, NAN, 5, 5, -1, 0), (90, 90, NAN, 999, 90, 90)))
    np.testing.assert_allclose(u, [-5, NAN, NAN, NAN, NAN, 0])
    assert np.isnan(v).tolist() == np.isnan(u).tolist()


@pytest.mark.parametrize(
    ("speed", "attrs", "names"),
    [
        ("ws", {}, ("u", "v")),
        ("ws10", {}, ("u10", "v10")),
        ("si10", {}, ("u10", "v10")),
        ("10m_wind_speed", {}, ("u10", "v10")),
        ("wind_speed_10m", {}, ("u10", "v10")),
        ("sfcWind", {}, ("u10", "v10")),
        ("WIN_S_Avg_10mi", {}, ("u", "v")),
        ("ws100", {}, ("u", "v")),
        ("x", {"long_name": "10 metre wind speed"}, ("u10", "v10")),
        ("x", {"long_name": "wind speed at 10m"}, ("u10", "v10")),
        ("x", {"long_name": "10 minute mean wind speed", "standard_name": "wind_speed"}, ("u", "v")),
    ],
)
def test_components_are_named_for_their_height(speed, attrs, names):
    source = wind(names=(speed, "wdir"))
    source[speed].attrs |= attrs
    made = with_components(adopt_dataset(source))
    assert list(made.data_vars) == [speed, *names]
    assert made[names[0]].attrs["standard_name"] == "eastward_wind"
    assert made[names[1]].attrs["units"] == "m s-1"


def test_components_have_levels_where_the_wind_has():
    made = with_components(adopt_dataset(wind(names=("wind_speed_10m", "wdir"), levels=(850, 500))))
    assert made["u"].dims == ("time", "level", "lat", "lon")
    assert made["u"][0, 1, 0].values.round(4).tolist() == [0, -10, 0, 10]


def test_nothing_is_read_before_it_is_needed(tmp_path):
    wind().to_netcdf(tmp_path / "x.nc")
    made = with_components(open_dataset([tmp_path / "x.nc"]))
    assert made["u"].chunks is not None
    assert not made["ws"].variable._in_memory


# prepare


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_prepare_puts_components_in_the_place_of_the_direction_and_says_so(tmp_path, capsys, ending):
    wind().to_netcdf(tmp_path / "x.nc")
    assert prepare(tmp_path / "x.nc", tmp_path / f"y.{ending}", "--derive", "u", "v", "--units", "u=knot") == 0
    said = capsys.readouterr().out
    assert "derived    u and v from the speed 'ws' and the direction 'wdir' that the wind comes from" in said
    made = open_dataset([tmp_path / f"y.{ending}"])
    assert set(made.data_vars) == {"ws", "u", "v"}
    np.testing.assert_allclose(made["u"][0, 0], np.array([0, -10, 0, 10]) * 3.6 / 1.852, atol=1e-5)
    with xr.open_dataset(tmp_path / f"y.{ending}") as file:
        assert json.loads(file.attrs["prepare_options"])["derive"] == ["u", "v"]
        assert file["v"].attrs["comment"] == "-ws * cos(wdir)"
        assert file["v"].attrs["standard_name"] == "northward_wind"


def test_components_are_made_before_they_are_averaged(tmp_path):
    wind(direction=(350, 10, 350, 10)).to_netcdf(tmp_path / "x.nc")
    assert prepare(tmp_path / "x.nc", tmp_path / "y.nc", "--derive", "u", "v", "--coarsen", "2") == 0
    made = open_dataset([tmp_path / "y.nc"])
    np.testing.assert_allclose(made["u"], 0, atol=1e-5)
    np.testing.assert_allclose(made["v"], -10 * np.cos(np.deg2rad(10)), rtol=1e-5)


def test_speed_and_direction_may_come_from_several_files_of_several_periods(tmp_path):
    source = wind()
    for name in source:
        source[[name]].isel(time=slice(0, 2)).to_netcdf(tmp_path / f"{name}1.nc")
        source[[name]].isel(time=slice(2, 4)).to_netcdf(tmp_path / f"{name}2.nc")
    assert prepare(tmp_path / "w*.nc", tmp_path / "y.nc", "--derive", "u", "v", "--region", "50", "51", "1", "3") == 0
    made = open_dataset([tmp_path / "y.nc"])
    assert made["u"].shape == (4, 2, 3)
    assert made["u"][3, 1].values.round(4).tolist() == [-10, 0, 10]


def test_what_was_filled_in_either_is_marked_in_both_components(tmp_path):
    source = wind()
    source["ws"][1, 0, 0] = NAN
    source["wdir"][2, 0, 1] = NAN
    source.to_netcdf(tmp_path / "x.nc")
    assert prepare(tmp_path / "x.nc", tmp_path / "filled.nc", "--fill-time", "1") == 0
    assert prepare(tmp_path / "filled.nc", tmp_path / "y.nc", "--derive", "u", "v") == 0
    with xr.open_dataset(tmp_path / "y.nc") as made:
        marked = [tuple(at) for at in np.argwhere(made["u_filled"].values == 1).tolist()]
        assert marked == [(1, 0, 0), (2, 0, 1)]
        assert "wdir_filled" not in made
        np.testing.assert_allclose(made["u"][2, 0], [0, -10, 0, 10], atol=1e-5)
        assert (made["ws_filled"].values == 1).sum() == 1


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (wind().drop_vars("ws"), "--derive u v", "needed is one wind speed, and there is none among wdir"),
        (wind().drop_vars("wdir"), "--derive u v", "needed is one wind direction, and there is none among ws"),
        (
            wind().assign(ws100=wind()["ws"]),
            "--derive u v",
            "needed is one wind speed, and there is several (ws, ws100); choose one with --variables",
        ),
        (
            wind().assign(u=wind()["ws"]),
            "--derive u v",
            "there is a variable 'u' already; leave it out with --variables",
        ),
        (
            wind().assign(wdir=wind(levels=(850,))["wdir"]),
            "--derive u v",
            "'wdir' is on (time, level, lat, lon); needed are the same dimensions",
        ),
        (wind(), "--derive u w", "--derive u w: only the wind can be derived; write --derive u v"),
        (wind(), "--coarsen 2", "--coarsen: 'wdir' is a direction, which cannot be averaged; leave it out with"),
        (wind(), "--fill-space 1", "--fill-space: 'wdir' is a direction"),
    ],
)
def test_what_cannot_be_derived_or_averaged_is_told_in_one_line(tmp_path, capsys, source, options, message):
    source.to_netcdf(tmp_path / "x.nc")
    assert prepare(tmp_path / "x.nc", tmp_path / "y.nc", *options.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "y.nc").exists()


def test_of_several_winds_one_can_be_chosen(tmp_path):
    source = wind().assign(ws100=2 * wind()["ws"])
    source["ws100"].attrs = source["ws"].attrs
    source.to_netcdf(tmp_path / "x.nc")
    assert prepare(tmp_path / "x.nc", tmp_path / "y.nc", "--variables", "ws100", "wdir", "--derive", "u", "v") == 0
    assert open_dataset([tmp_path / "y.nc"])["u"][0, 0].values.round(4).tolist() == [0, -20, 0, 20]


@pytest.mark.slow
def test_a_cluster_derives_the_same(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    wind().to_netcdf(tmp_path / "x.nc")
    monkeypatch.chdir(tmp_path)
    assert prepare("x.nc", "here.nc", "--derive", "u", "v") == 0
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        assert prepare("x.nc", "there.nc", "--derive", "u", "v", "--dask-scheduler", address) == 0
    with xr.open_dataset("here.nc") as here, xr.open_dataset("there.nc") as there:
        xr.testing.assert_equal(here.load(), there.load())


# Training


def record(*, with_speed: bool = True, days: int = 200) -> xr.Dataset:
    """Temperature and a wind that turns through north."""
    rng = np.random.default_rng(0)
    shape, dims = (days, 4, 5), ("time", "lat", "lon")
    times = np.datetime64("2001-01-01", "ns") + np.arange(days) * np.timedelta64(1, "D")
    fields = {
        "t2m": (dims, (280 + rng.normal(size=shape)).astype("f4"), {"units": "K"}),
        "ws": (dims, rng.uniform(0, 20, shape).astype("f4"), {"units": "m s-1"}),
        "wdir": (dims, (rng.normal(0, 20, shape) % 360).astype("f4"), {"units": "degree"}),
    }
    axes = {"time": times, "lat": np.arange(4) + 50.0, "lon": np.arange(5) * 1.0}
    return xr.Dataset(fields, axes).drop_vars([] if with_speed else ["ws"])


@pytest.mark.parametrize("more", [[], ["--target-variables", "wdir"], ["--target-variables", "t2m"]])
def test_a_direction_is_refused_in_training_and_inspection_with_advice_that_works(tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    record().to_netcdf("x.nc")
    assert main(["train", "--data", "x.nc", "--output-dir", "run", *SMALL, *more]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "x.nc: 'wdir' is a direction, where 359 and 1 degrees are neighbours, and cannot be learned" in said
    assert not (tmp_path / "run").exists()
    assert main(["inspect", "--data", "x.nc", *SMALL, *more]) == 2
    shown = capsys.readouterr().out
    assert "wdir     wind direction" in shown
    assert shown.splitlines()[-1].startswith("not ready: x.nc: 'wdir' is a direction")
    derive, without = re.search(r"of it: convlstm-wx (prepare .*), or leave it out: (--variables .*)$", said).groups()
    assert main(["inspect", "--data", "x.nc", *SMALL, *shlex.split(without)]) == 0
    assert main(shlex.split(derive)) == 0
    assert main(["inspect", "--data", "components.nc", *SMALL]) == 0


def test_where_there_is_no_speed_only_what_works_is_advised(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record(with_speed=False).to_netcdf("x.nc")
    assert main(["train", "--data", "x.nc", *SMALL]) == 2
    assert capsys.readouterr().err.endswith("plain numbers; leave it out: --variables t2m\n")
    assert main(["train", "--data", "x.nc", "--variables", "wdir", *SMALL]) == 2
    assert capsys.readouterr().err.endswith("plain numbers; add other variables, such as u and v\n")
    both = record(with_speed=False)
    both["mwd"] = both["wdir"].assign_attrs(long_name="Mean wave direction")
    both.to_netcdf("y.nc")
    assert main(["train", "--data", "y.nc", *SMALL]) == 2
    assert "y.nc: 'wdir', 'mwd' are directions" in (said := capsys.readouterr().err)
    assert said.endswith("plain numbers; leave them out: --variables t2m\n")


def test_a_direction_in_upstream_data_is_refused_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record()[["t2m"]].to_netcdf("x.nc")
    record().to_netcdf("up.nc")
    command = ["inspect", "--data", "x.nc", "--include-upstream", "--upstream-data", "up.nc", *SMALL]
    assert main(command) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert "not ready: up.nc: 'wdir' is a direction" in last
    assert "prepare --data up.nc --output components.nc --derive u v" in last
    assert last.endswith("leave it out: --upstream-variables t2m ws")
    assert main([*command, "--upstream-variables", "t2m", "ws"]) == 0


def test_two_files_that_cannot_be_paired_raise_a_config_error():
    with pytest.raises(ConfigError, match="needed is one wind speed"):
        with_components(adopt_dataset(wind().drop_vars("ws")))
