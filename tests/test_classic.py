"""Classic NetCDF files that were cut short."""

import netCDF4
import numpy as np
import pytest

from convlstm_wx.data.classic import missing_bytes
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.errors import DataError

FORMATS = ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA")


def write(path, form, *, unlimited, names=("t2m", "sp", "n")):
    with netCDF4.Dataset(path, "w", format=form) as file:
        file.title = "waves"
        file.createDimension("time", None if unlimited else 5)
        file.createDimension("lat", 3)
        file.createDimension("lon", 3)
        for axis, values in (("lat", [10, 20, 30]), ("lon", [0, 1, 2])):
            file.createVariable(axis, "f4", (axis,))[:] = values
        for name in names:
            kind = "i2" if name == "n" else "f4"  # two bytes times nine points: padded
            file.createVariable(name, kind, ("time", "lat", "lon"))[:] = np.arange(45).reshape(5, 3, 3)
        times = file.createVariable("time", "f8", ("time",))
        times.units = "days since 2000-01-01"
        times[:] = np.arange(5)
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("unlimited", [False, True])
@pytest.mark.parametrize("names", [("t2m", "sp", "n"), ("n",), ("n", "t2m")])
def test_every_missing_byte_is_counted(tmp_path, form, unlimited, names):
    path = write(tmp_path / "region.nc", form, unlimited=unlimited, names=names)
    assert missing_bytes(path) == 0
    whole = path.read_bytes()
    ends = len(whole) - (2 if names == ("n",) and not unlimited else 0)
    for lost in (4, 40, 100):
        path.write_bytes(whole[:-lost])
        assert abs(missing_bytes(path) - lost) <= len(whole) - ends + 2  # a padded end may be cut without loss
        with pytest.raises(DataError, match="damaged or cut short"):
            open_dataset([path])


@pytest.mark.parametrize("form", FORMATS)
def test_one_record_variable_alone_is_not_padded(tmp_path, form):
    path = tmp_path / "one.nc"
    with netCDF4.Dataset(path, "w", format=form) as file:
        file.createDimension("time", None)
        file.createDimension("x", 3)
        file.createVariable("n", "i2", ("time", "x"))[:] = np.arange(12).reshape(4, 3)
    assert missing_bytes(path) == 0


def test_other_formats_are_none_of_its_business(tmp_path):
    path = tmp_path / "new.nc"
    with netCDF4.Dataset(path, "w"):
        pass
    assert missing_bytes(path) == 0


def test_a_header_cut_short_is_told(tmp_path):
    path = write(tmp_path / "region.nc", FORMATS[0], unlimited=False)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="header"):
        missing_bytes(path)
    with pytest.raises(DataError, match="damaged or cut short"):
        open_dataset([path])


def test_the_real_file_of_this_format_is_whole(real_data):
    for path in real_data.glob("*.nc"):
        assert missing_bytes(path) == 0
