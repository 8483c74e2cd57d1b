"""Addresses: a Zarr store behind a real server on this machine is read piece by piece; errors are one line."""

import gc
import http.server
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from xarray.backends.file_manager import FILE_CACHE
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

from convlstm_wx.data import locations
from convlstm_wx.data.locations import Location, expand
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.errors import DataError

START, DAY = np.datetime64("2001-01-01", "ns"), np.timedelta64(1, "D")
VERSIONS = [(2, True), (2, False), (3, True), (3, False)]


def small(start: np.datetime64 = START) -> xr.Dataset:
    return xr.Dataset(
        {"t2m": (("time", "lat", "lon"), np.arange(24.0).reshape(4, 3, 2), {"units": "K"})},
        {"time": start + np.arange(4) * DAY, "lat": [1.0, 2.0, 3.0], "lon": [10.0, 20.0]},
    )


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, keeps what was asked for, and refuses what is called private."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "private" in self.path:
            self.send_error(403)
        elif "list-type=2" in self.path:  # how S3 is asked whether something is a folder
            body = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[str, Path, list[str]]]:
    """Address, folder, and the paths that were asked for."""
    pytest.importorskip("zarr")
    pytest.importorskip("aiohttp")
    asked: list[str] = []
    handler = type("Recording", (Handler,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path)) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", tmp_path, asked
        serving.shutdown()
        thread.join()


def write(folder: Path, name: str, dataset: xr.Dataset, zarr_format: int = 2, consolidated: bool = True) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata are no part of Zarr 3 yet
        dataset.to_zarr(
            folder / name, zarr_format=zarr_format, consolidated=consolidated, encoding={"t2m": {"chunks": (1, 3, 2)}}
        )


@pytest.mark.parametrize(("zarr_format", "consolidated"), VERSIONS)
def test_a_store_behind_an_address_is_read(server, zarr_format, consolidated):
    url, folder, _ = server
    write(folder, "era5.zarr", small(), zarr_format, consolidated)
    dataset = open_dataset([f"{url}/era5.zarr/"])
    assert dataset["t2m"].values.ravel().tolist() == list(range(24))
    assert dataset.attrs["source"] == "era5.zarr"


def test_only_the_chunks_that_are_used_are_fetched(server):
    url, folder, asked = server
    write(folder, "era5.zarr", small())
    dataset = open_dataset([f"{url}/era5.zarr"])
    assert not any("t2m/" in path for path in asked)
    assert dataset["t2m"][2].values.ravel().tolist() == list(range(12, 18))
    assert [path for path in asked if "t2m/" in path] == ["/era5.zarr/t2m/2.0.0"]


def test_an_address_a_file_and_a_file_address_are_read_together(server):
    url, folder, _ = server
    write(folder, "a.zarr", small())
    small(START + 4 * DAY).to_netcdf(folder / "b.nc")
    small(START + 8 * DAY).to_netcdf(folder / "c.nc")
    dataset = open_dataset([f"{url}/a.zarr", folder / "b.nc", f"file://{folder}/c.nc"])
    assert dataset["t2m"].values.ravel().tolist() == [*range(24)] * 3
    assert dataset.attrs["source"] == "a.zarr, b.nc, c.nc"


def test_a_zarr_folder_has_a_file_address_too(tmp_path):
    pytest.importorskip("zarr")
    write(tmp_path, "x.zarr", small())
    assert open_dataset([f"file://{tmp_path}/x.zarr"])["t2m"].sum() == 276


def test_an_address_that_went_through_a_path_is_still_one():
    assert expand([Path("https://host/a/era5.zarr")]) == [Location("https://host/a/era5.zarr")]
    assert expand(["gs://bucket/era5.zarr"])[0].name == "era5.zarr"
    assert expand(["https://host/era5.zarr?key=1"])[0].name == "era5.zarr"
    assert expand(["C:/data/x.nc"])[0].scheme is None


def test_a_google_bucket_is_read_from_its_web_address_without_an_account(server, monkeypatch):
    assert Location("gs://bucket/a/era5.zarr").served_at == "https://storage.googleapis.com/bucket/a/era5.zarr"
    url, folder, _ = server
    (folder / "bucket").mkdir()
    write(folder / "bucket", "era5.zarr", small())
    monkeypatch.setattr(locations, "_GOOGLE_CLOUD", url)
    dataset = open_dataset(["gs://bucket/era5.zarr"])
    assert dataset["t2m"].sum() == 276
    assert dataset.attrs["source"] == "era5.zarr"
    with pytest.raises(DataError, match=r"gs://bucket/none.zarr: there is no Zarr store"):
        open_dataset(["gs://bucket/none.zarr"])


def test_an_s3_bucket_is_read_without_an_account(server, monkeypatch):
    pytest.importorskip("s3fs")
    url, folder, _ = server
    (folder / "bucket").mkdir()
    write(folder / "bucket", "era5.zarr", small())
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert open_dataset(["s3://bucket/era5.zarr"])["t2m"].sum() == 276
    assert locations._storage_options("s3")["anon"] is True


def test_a_store_that_lists_nothing_says_what_it_needs(server):
    url, folder, _ = server
    write(folder, "era5.zarr", small(), consolidated=False)
    (folder / "era5.zarr" / "index.html").write_text("no listing here")
    with pytest.raises(DataError, match=r"no variables are listed there.*needs consolidated metadata"):
        open_dataset([f"{url}/era5.zarr"])


def test_what_the_server_does_not_have_is_said_in_one_line(server):
    url, folder, _ = server
    write(folder, "private.zarr", small())
    for name, fragment in (("none.zarr", "there is no Zarr store; check the address"), ("private.zarr", "account")):
        with pytest.raises(DataError, match=fragment) as raised:
            open_dataset([f"{url}/{name}"])
        assert str(raised.value).startswith(f"{url}/{name}: ")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
def test_a_host_that_does_not_answer_is_said_at_once(host):
    pytest.importorskip("aiohttp")
    pytest.importorskip("zarr")
    with pytest.raises(DataError, match=r"cannot be reached \(.*check the address and the network") as raised:
        open_dataset([f"http://{host}/era5.zarr"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "fragment"),
    [
        ("https://host/era5.nc", "a NetCDF file cannot be read piece by piece.*download it first"),
        ("s3://bucket/era5.nc4?version=2", "download it first"),
        ("ftp://host/era5.zarr", "ftp:// is not known; known are https://"),
        ("gs://bucket/*.zarr", "patterns work for files only"),
    ],
)
def test_addresses_that_cannot_be_read_are_refused(address, fragment):
    with pytest.raises(DataError, match=fragment) as raised:
        open_dataset([address])
    assert str(raised.value).startswith(address)


@pytest.mark.parametrize(
    ("address", "package"),
    [
        ("https://host/era5.zarr", "aiohttp"),
        ("gs://bucket/era5.zarr", "aiohttp"),
        ("s3://bucket/era5.zarr", "s3fs"),
        ("s3://bucket/era5.zarr", "fsspec"),
        ("s3://bucket/era5.zarr", "zarr"),
    ],
)
def test_a_missing_package_is_named_with_the_remedy(monkeypatch, address, package):
    monkeypatch.setattr(locations, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(DataError, match=rf"needs {package}, .*pip install 'convlstm_wx\[cloud\]'"):
        open_dataset([address])


@pytest.mark.real_data
def test_a_file_is_open_once_however_often_it_is_read(real_data):
    """A second handle on a file of Copernicus makes the NetCDF library fail, or crash, once one of them is closed."""
    file = real_data / "era5_plev_merapi_6h_202601.nc"
    chance = np.random.default_rng(1)
    kept = []
    for _ in range(150):
        dataset = open_dataset([file])
        assert np.isfinite(dataset["t"][0].values).all()
        kept.append(dataset)
        if len(kept) > 20:
            kept.pop(int(chance.integers(len(kept))))


def test_a_file_that_was_let_go_in_the_midst_of_reading_is_not_opened_twice(tmp_path):
    """A garbage collection may come while the library is at work; xarray cannot close the file then."""
    file = tmp_path / "region.nc"
    small().to_netcdf(file)

    def handles() -> int:
        return sum(str(file.resolve()) in str(key) for key in FILE_CACHE)

    dataset = open_dataset([file])
    with NETCDF4_PYTHON_LOCK:
        del dataset
        gc.collect()
    assert handles() == 1
    dataset = open_dataset([file])
    assert handles() == 1
    assert (dataset["t2m"].values == small()["t2m"].values).all()
    del dataset
    gc.collect()
    assert handles() == 0


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    file = tmp_path / "region.nc"
    held = []
    for value in (1.0, 2.0):
        (small() * 0 + value).to_netcdf(tmp_path / "next.nc")
        (tmp_path / "next.nc").replace(file)
        held.append(open_dataset([file]))
        assert (held[-1]["t2m"].values == value).all()
