"""The sample region: simulated weather for the quick start and for tests that need no download.

A moist two-layer quasi-geostrophic atmosphere flows round a beta-plane channel. The file holds a window of it, so
weather is born outside, enters from the west and leaves in the east. Nothing in it was measured.

Layer 1 stands for 500 hPa, layer 2 for 850 hPa; each carries its potential vorticity (Phillips 1954; Vallis 2017, ch. 5
and 9). tau = psi_1 - psi_2 is the thickness, which thermal wind ties to temperature:

    D_1 q_1 = -F Q                                      q_1 = lap(psi_1) + beta y - F tau
    D_2 q_2 = +F Q - lap(psi_2) / FRICTION_TIME         q_2 = lap(psi_2) + beta y + F tau
    Q = (tau_eq - tau) / RADIATION_TIME + latent heating

The jet of radiative equilibrium, tau_eq(lat, season), is baroclinically unstable: its eddies are the weather. Vertical
motion w keeps vorticity and thickness in step, D tau = Q - w STABILITY / THERMAL_WIND: it is what the inversion of q
asks for and carrying and heating tau do not give. Temperature T and moisture m ride on the 850 hPa wind, and it rains
where ascent or cooling saturates the air (after Lapeyre and Held 2004):

    D_2 T = -w STABILITY + (T_eq - T) / RADIATION_TIME + latent heating
    D_2 m = m w / MOIST_DEPTH + evaporation (mostly from the sea) - rain
    rain  = max(m - RAIN_ABOVE m_saturated(T), 0) / RAIN_TIME

Over land the sun heats the lowest air, more in summer and at noon and less under cloud: that is the diurnal cycle.
The strengths are tuned to mid-latitude means, variances and speeds. Two damped strips keep the walls quiet.

Numbers: finite volumes, QUICKEST fluxes in alternating directions (Leonard 1979), whose error is the only diffusion;
winds extrapolated to the middle of the step; inversion by Fourier modes in x and sines in y.

References: Bolton (1980), Mon. Weather Rev. 108, 1046-1053. Lapeyre and Held (2004), J. Atmos. Sci. 61, 1693-1710.
Leonard (1979), Comput. Methods Appl. Mech. Eng. 19, 59-98. Phillips (1954), Tellus 6, 273-286. Vallis (2017),
Atmospheric and Oceanic Fluid Dynamics, 2nd ed., Cambridge University Press.
"""

from pathlib import Path

import numpy as np
import xarray as xr
from tqdm import tqdm

from convlstm_wx.errors import ConfigError
from convlstm_wx.files import make_folder, replacing

F4 = np.float32
START = np.datetime64("2001-01-01T00", "ns")
STEP = np.timedelta64(6, "h")
STEPS_PER_DAY, SPIN_UP_DAYS = 4, 40

# The channel, rows from south to north and columns once round, and the window of it that is written.
ROWS, COLUMNS, WIDTH = 48, 112, 116  # WIDTH: a row with its two margins of two columns
LAT, LON = 17.5 + 1.25 * np.arange(ROWS), -165.0 + 1.75 * np.arange(COLUMNS)
WINDOW = (slice(8, 40), slice(60, 108))
DY, DX = 1.25 * 111_195.0, 1.75 * 111_195.0 * np.cos(np.radians(47.0))  # m
Y = DY * (np.arange(ROWS) - (ROWS - 1) / 2)[:, None]  # m from the axis
F0 = 2 * 7.292e-5 * np.sin(np.radians(47.0))  # Coriolis parameter, s-1
BETA = 2 * 7.292e-5 * np.cos(np.radians(47.0)) / 6.371e6  # its northward gradient, m-1 s-1

DAY = 86_400.0
TIME_STEP = 1440.0  # s; the scheme is stable for winds below about 90 m s-1
F = 1 / (2 * 450e3**2)  # m-2, from a radius of deformation of 450 km
SHEAR, LOW_JET, JET_WIDTH = 16.0, 10.0, 1.8e6  # m s-1 between the layers, m s-1 in layer 2, m
SEASON = 0.2  # the shear of January is this share above its mean, that of July below
FRICTION_TIME, RADIATION_TIME, WALL_TIME = 3 * DAY, 7 * DAY, 0.5 * DAY  # s
GAS, HEAT_CAPACITY, LATENT = 287.0, 1004.0, 2.5e6  # of air and of vapour, J kg-1 K-1 (twice), J kg-1
THERMAL_WIND = F0 / (GAS * np.log(850 / 500))  # K per m2 s-1 of tau
STABILITY = 4.5e-3  # K that rising air cools per m, relative to the air around it
MOIST_DEPTH, MOIST_MASS, HEATED_MASS = 4000.0, 2500.0, 6000.0  # m; kg m-2 of air with the vapour, and with its heat
LATENT_SHARE = 0.5  # of the latent heat that warms the layers; with all of it hurricanes grow at the southern wall
RAIN_ABOVE, RAIN_TIME, EVAPORATION_TIME = 0.9, 3 * 3600.0, 3 * DAY
MEAN_T, SEASON_T, SEASON_SEA = 278.5, 8.5, 7.0  # K at 850 hPa; amplitudes of the year in the air and in the sea
LAPSE = 9.0  # K from 850 hPa down to 2 m
GROUND_AIR = 1.2 * HEAT_CAPACITY * 500.0  # J m-2 K-1, of the 500 m of air that feel the ground
SUN, NIGHT_LOSS, GROUND_TIME = 500.0, 90.0, 5 * 3600.0  # W m-2 overhead and lost by a clear sky; s

ATTRIBUTES = {  # name: standard name, long name, units, and more
    "time": ("time", "time", None, {"axis": "T"}),
    "level": ("air_pressure", "pressure level", "hPa", {"axis": "Z", "positive": "down"}),
    "lat": ("latitude", "latitude", "degrees_north", {"axis": "Y"}),
    "lon": ("longitude", "longitude", "degrees_east", {"axis": "X"}),
    "z": ("geopotential", "geopotential", "m2 s-2", {}),
    "u": ("eastward_wind", "eastward wind", "m s-1", {}),
    "v": ("northward_wind", "northward wind", "m s-1", {}),
    "t": ("air_temperature", "temperature", "K", {}),
    "t2m": ("air_temperature", "2 metre temperature", "K", {}),
    "msl": ("air_pressure_at_mean_sea_level", "mean sea level pressure", "Pa", {}),
    "tp": (
        "lwe_thickness_of_precipitation_amount",
        "total precipitation in the 6 hours up to the time",
        "m",
        {"cell_methods": "time: sum"},
    ),
    "lsm": ("land_area_fraction", "land area fraction", "1", {}),
}


def write_sample(path: str | Path, *, years: int = 2, seed: int = 0, progress: bool = True) -> Path:
    """Simulate the sample region and write it as NetCDF (see `simulate` for what is in it), whole or not at all.

    Args:
        path: the file; its folder is made, an older file is replaced.
        years: whole years from 2001-01-01.
        seed: another seed is other weather in the same climate; the same seed gives the same values (on one machine:
            another one rounds differently, and weather does not forgive that).
        progress: show a bar over the simulated days.

    Returns:
        The path.

    Raises:
        ConfigError: if `years` is not positive, or the file cannot be written.
    """
    path = Path(path)
    if years < 1:
        raise ConfigError(f"years is {years}; the sample region needs at least 1")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of the file to write, as in {path / 'sample_region.nc'}")
    make_folder(path.parent)
    days = (np.datetime64(f"{2001 + years}-01-01") - np.datetime64("2001-01-01")).astype(int)
    _write(simulate(START, int(days), seed=seed, progress=progress), path)
    return path


def _write(dataset: xr.Dataset, path: Path) -> None:
    encoding: dict[str, dict] = {str(name): {"_FillValue": None} for name in dataset.variables}
    for name, variable in dataset.data_vars.items():
        encoding[str(name)] |= {"zlib": True, "complevel": 1}
        if "time" in variable.dims:
            encoding[str(name)]["chunksizes"] = (min(len(variable), 31 * STEPS_PER_DAY), *variable.shape[1:])
    encoding["time"] |= {"units": "hours since 2001-01-01", "dtype": "int32"}
    with replacing(path) as temporary:
        dataset.to_netcdf(temporary, engine="netcdf4", encoding=encoding)


def simulate(
    start: np.datetime64, days: int, *, seed: int = 0, spin_up_days: int = SPIN_UP_DAYS, progress: bool = False
) -> xr.Dataset:
    """The weather of the window, every 6 hours from `start`.

    Returns:
        z [m2 s-2], u, v [m s-1], t [K] on (time, level, lat, lon), levels 500 and 850 hPa; t2m [K], msl [Pa], tp [m,
        over the 6 hours before] on (time, lat, lon); lsm [1], the share of land, on (lat, lon). 32 latitudes, 48
        longitudes, float32, with CF attributes.
    """
    atmosphere = Atmosphere(start - np.timedelta64(spin_up_days, "D") - STEP, np.random.default_rng(seed))
    for _ in range(spin_up_days * STEPS_PER_DAY):
        atmosphere.run()
    times = start + np.arange(days * STEPS_PER_DAY) * STEP
    series = {name: np.empty((len(times), *value.shape), F4) for name, value in atmosphere.observe().items()}
    for day in tqdm(range(days), unit="day", desc="simulating", disable=None if progress else True):
        for i in range(day * STEPS_PER_DAY, (day + 1) * STEPS_PER_DAY):
            atmosphere.run()
            for name, value in atmosphere.observe().items():
                series[name][i] = value
    assert np.isfinite(series["z"][-1]).all()  # a simulation that blew up never comes back
    return _dataset(times, series, seed)


def _dataset(times: np.ndarray, series: dict[str, np.ndarray], seed: int) -> xr.Dataset:
    dims = {4: ("time", "level", "lat", "lon"), 3: ("time", "lat", "lon"), 2: ("lat", "lon")}
    fields = series | {"lsm": land_fraction()[WINDOW].round(3).astype(F4)}
    dataset = xr.Dataset(
        {name: (dims[values.ndim], values) for name, values in fields.items()},
        {"time": times, "level": [500.0, 850.0], "lat": LAT[WINDOW[0]], "lon": LON[WINDOW[1]]},
        {
            "Conventions": "CF-1.11",
            "title": "Sample region of convlstm_wx: simulated weather, not measured",
            "source": f"moist two-layer quasi-geostrophic channel model of convlstm_wx, seed {seed}",
            "references": "Phillips (1954), Tellus 6, 273-286; Lapeyre and Held (2004), J. Atmos. Sci. 61, 1693-1710",
        },
    )
    for name, (standard_name, long_name, units, more) in ATTRIBUTES.items():
        unit = {"units": units} if units else {}  # those of time are its encoding
        dataset[name].attrs = {"standard_name": standard_name, "long_name": long_name, **unit, **more}
    return dataset


def land_fraction() -> np.ndarray:
    """Share of land [ROWS, COLUMNS]: one continent with a winding west coast near 0 E, and sea."""
    lat, lon = LAT[:, None], LON[None, :]
    west_coast = -2 + 5 * np.sin(lat / 6) + 3 * np.sin(lat / 2.3)
    inland = np.minimum(lon - west_coast, west_coast + 60 - lon)  # degrees from the nearest coast
    return 1 / (1 + np.exp(-inland / 1.2))


def saturation(temperature: np.ndarray) -> np.ndarray:
    """The vapour that the moist air holds at most at `temperature` [K], in kg m-2 (Bolton 1980, eq. 10, at 850 hPa)."""
    celsius = temperature - F4(273.15)
    return F4(0.622 * MOIST_MASS * 6.112 / 850) * np.exp(F4(17.67) * celsius / (celsius + F4(243.5)))


def jet(speed: float) -> tuple[np.ndarray, np.ndarray]:
    """A westerly jet u = speed / cosh(y / JET_WIDTH)**2: its stream function and its vorticity, [ROWS, 1]."""
    y = Y / JET_WIDTH
    return -speed * JET_WIDTH * np.tanh(y), 2 * speed / JET_WIDTH * np.tanh(y) / np.cosh(y) ** 2


class Inversion:
    """From potential vorticity to stream function, both 0 on the walls: Fourier modes in x, sines in y."""

    def __init__(self) -> None:
        mode = np.arange(1, ROWS + 1)
        sines = np.sin(np.pi * np.outer(mode, np.arange(ROWS) + 0.5) / ROWS)
        self.forward = sines.astype(F4)
        self.backward = (sines.T * np.where(mode == ROWS, 1, 2) / ROWS).astype(F4)
        in_y = (2 * np.sin(np.pi * mode / ROWS / 2) / DY) ** 2
        in_x = (2 * np.sin(np.pi * np.fft.rfftfreq(COLUMNS)) / DX) ** 2
        laplacian = -(in_y[:, None] + in_x)
        # The sum of the layers knows no stretching, their difference is stretched twice.
        self.inverse = np.stack([1 / laplacian, 1 / (laplacian - 2 * F)]).astype(F4)

    def __call__(self, q: np.ndarray) -> np.ndarray:
        """The stream function of both layers [2, ROWS, COLUMNS], m2 s-1, from their q, s-1."""
        in_x = np.fft.rfft(np.stack([q[0] + q[1], q[0] - q[1]]))
        modes = (self.forward @ in_x.view(F4)).view(np.complex64) * self.inverse
        both, difference = np.fft.irfft((self.backward @ modes.view(F4)).view(np.complex64), n=COLUMNS) * F4(0.5)
        return np.stack([both + difference, both - difference])


# Fields are carried in arrays with two rows and columns more on each side, taken as one flat run of numbers in which
# the next column is 1 and the next row WIDTH further on: one long loop is much faster than many short ones.


def _fill_margins(padded: np.ndarray) -> None:
    """Fill the margins of [N, ROWS + 4, WIDTH]: periodic in x, the edge row repeated in y."""
    padded[:, :2], padded[:, -2:] = padded[:, 2:3], padded[:, -3:-2]
    padded[:, :, :2], padded[:, :, -2:] = padded[:, :, -4:-2], padded[:, :, 2:4]


def winds(stream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Winds through the west and the south face of each cell, in cells per time step, flat with margins."""
    padded = np.empty((1, ROWS + 4, WIDTH), F4)
    padded[0, 2:-2, 2:-2] = stream
    _fill_margins(padded)
    # No wind blows through a wall: the stream function, mirrored there, is the same all along it.
    for row, margin in ((2, 1), (-3, -2)):
        padded[0, margin] = 2 * padded[0, row].mean() - padded[0, row]
    flat = padded.reshape(-1)
    pairs = flat[1:] + flat[:-1]
    corners = (pairs[WIDTH:] + pairs[:-WIDTH]) * F4(0.25 * TIME_STEP / DX / DY)  # first: south-west of cell WIDTH + 1
    east, north = np.zeros((2, flat.size), F4)
    # Beyond one cell per step the scheme is unstable; a gust that strong is carried a little too slowly.
    np.clip(corners[:-WIDTH] - corners[WIDTH:], -0.98, 0.98, out=east[WIDTH + 1 : -WIDTH])
    np.clip(corners[1:] - corners[:-1], -0.98, 0.98, out=north[WIDTH + 1 : -1])
    return east, north


def _sweep(field: np.ndarray, wind: np.ndarray, step: int) -> None:
    """Carry fields [N, cells] along one direction, in place; the first and last two steps stay as they are.

    `wind` blows through the near face of each cell; the next cell lies `step` further on. The last term keeps a uniform
    field uniform where the wind converges in this direction and diverges in the other.
    """
    slope = field[:, step:] - field[:, :-step]
    curvature = slope[:, step:] - slope[:, :-step]
    face = wind[2 * step : -step]
    square = face * face
    sixth = face * (1 - square) * F4(1 / 6)
    flux = (field[:, step : -2 * step] + field[:, 2 * step : -step]) * (face * F4(0.5))
    flux -= slope[:, step:-step] * (square * F4(0.5))
    flux -= curvature[:, :-step] * np.maximum(sixth, 0)
    flux -= curvature[:, step:] * np.minimum(sixth, 0)
    inside = field[:, 2 * step : -2 * step]
    inside += inside * (face[step:] - face[:-step]) + (flux[:, :-step] - flux[:, step:])


def carry(fields: np.ndarray, stream: np.ndarray, x_first: bool) -> np.ndarray:
    """Fields [N, ROWS, COLUMNS] one time step later, carried by the wind of a stream function [ROWS, COLUMNS]."""
    padded = np.empty((len(fields), ROWS + 4, WIDTH), F4)
    padded[:, 2:-2, 2:-2] = fields
    sweeps = list(zip(winds(stream), (1, WIDTH)))
    for wind, step in sweeps if x_first else sweeps[::-1]:
        _fill_margins(padded)
        _sweep(padded.reshape(len(fields), -1), wind, step)
    return padded[:, 2:-2, 2:-2]


def gradient(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives in x and y of [..., ROWS, COLUMNS] by central differences; 0 in the rows at the walls."""
    in_x, in_y = np.zeros_like(field), np.zeros_like(field)
    in_x[..., 1:-1, 1:-1] = field[..., 1:-1, 2:] - field[..., 1:-1, :-2]
    in_x[..., 1:-1, 0] = field[..., 1:-1, 1] - field[..., 1:-1, -1]
    in_x[..., 1:-1, -1] = field[..., 1:-1, 0] - field[..., 1:-1, -2]
    in_y[..., 1:-1, :] = field[..., 2:, :] - field[..., :-2, :]
    return in_x * F4(0.5 / DX), in_y * F4(0.5 / DY)


class Atmosphere:
    """The state of the channel. Arrays are [ROWS, COLUMNS] or [layer, ROWS, COLUMNS], float32.

    psi: stream function, m2 s-1. state: q_1, q_2 [s-1], T at 850 hPa [K], m [kg m-2]. w: vertical motion, m s-1. rain:
    since the last output, kg m-2. ground_warmth: how much warmer land is than the air above makes it, K.
    """

    def __init__(self, time: np.datetime64, random: np.random.Generator) -> None:
        self.time, self.x_first, self.invert = time, True, Inversion()
        rows_from_wall = np.minimum(np.arange(ROWS), np.arange(ROWS)[::-1])[:, None]
        self.wall_drag = (np.clip(1 - rows_from_wall / 7, 0, 1) ** 2 * TIME_STEP / WALL_TIME).astype(F4)
        self.land = land_fraction().astype(F4)
        self.evaporation = (1 - F4(0.7) * self.land) * F4(TIME_STEP / EVAPORATION_TIME)
        self._turn_season()
        noise = F4(2e-5) * random.standard_normal((2, ROWS, COLUMNS), F4)
        self.psi = self.old_psi = self.jet_psi + self.invert(noise)
        temperature = np.broadcast_to(self.t_eq, (ROWS, COLUMNS))
        self.state = np.stack([*(self.jet_q + noise), temperature, F4(0.6) * saturation(temperature)])
        self.w, self.rain, self.ground_warmth = np.zeros((3, ROWS, COLUMNS), F4)

    def _summer(self, lag_days: float) -> float:
        """From -1, so many days after 1 January, to 1 half a year later."""
        days = (self.time - START) / np.timedelta64(1, "D")
        return -float(np.cos(2 * np.pi * (days - lag_days) / 365.2425))

    def _turn_season(self) -> None:
        """Set what the state relaxes to: the jet, as stream function and as q, and the temperatures of air and sea."""
        shear, shear_vorticity = jet(SHEAR * (1 - SEASON * self._summer(20)))
        low, low_vorticity = jet(LOW_JET)
        self.t_mean = MEAN_T + SEASON_T * self._summer(28)
        self.t_eq = (self.t_mean + THERMAL_WIND * shear).astype(F4)
        self.t_sea = (MEAN_T + LAPSE + SEASON_SEA * self._summer(60) + 0.7 * THERMAL_WIND * shear).astype(F4)
        self.jet_psi = np.stack([low + shear, low]).astype(F4)
        vorticity = np.stack([low_vorticity + shear_vorticity - F * shear, low_vorticity + F * shear])
        self.jet_q = (vorticity + BETA * Y).astype(F4)

    def run(self) -> None:
        """Go on to the next output, and collect the rain on the way."""
        self._turn_season()
        self.rain[:] = 0
        for _ in range(round(DAY / STEPS_PER_DAY / TIME_STEP)):
            self._advance()
            self.time = self.time + np.timedelta64(round(TIME_STEP), "s")

    def _advance(self) -> None:
        """One TIME_STEP: carry everything, then add the sources, then find the stream function that fits."""
        middle = F4(1.5) * self.psi - F4(0.5) * self.old_psi
        self.state[:1] = carry(self.state[:1], middle[0], self.x_first)
        self.state[1:] = carry(self.state[1:], middle[1], self.x_first)
        self.x_first = not self.x_first
        tau = self.psi[0] - self.psi[1]
        tau += self._heat_and_rub(tau, self._rain())
        self.old_psi, self.psi = self.psi, self.jet_psi + self.invert(self.state[:2] - self.jet_q)
        (x_1, x_2), (y_1, y_2) = gradient(middle)
        tau -= (x_2 * y_1 - y_2 * x_1) * F4(TIME_STEP)  # carried by the mean wind: (psi_1 + psi_2) / 2 carries tau
        self.w = (tau - self.psi[0] + self.psi[1]) * F4(THERMAL_WIND / STABILITY / TIME_STEP)
        self.w[0] = self.w[-1] = 0

    def _rain(self) -> np.ndarray:
        """Lift, wet and dry the air and warm the ground under it; returns the warming by condensation [K]."""
        temperature, moisture = self.state[2:]
        full = saturation(temperature)
        rain = np.maximum(moisture - F4(RAIN_ABOVE) * full, 0) * F4(TIME_STEP / RAIN_TIME)
        self._warm_ground(moisture / full)
        moisture += moisture * self.w * F4(TIME_STEP / MOIST_DEPTH) - rain
        moisture += self.evaporation * np.maximum(F4(0.8) * full - moisture, 0)
        self.rain += rain
        return rain * F4(LATENT_SHARE * LATENT / HEAT_CAPACITY / HEATED_MASS)

    def _heat_and_rub(self, tau: np.ndarray, warming: np.ndarray) -> np.ndarray:
        """Change q and T by radiation, condensation, ascent and friction; returns the heating of tau [m2 s-1]."""
        q, temperature = self.state[:2], self.state[2]
        radiation = F4(TIME_STEP / RADIATION_TIME)
        heating = warming * F4(1 / THERMAL_WIND) + (self.jet_psi[0] - self.jet_psi[1] - tau) * radiation
        vorticity = q[1] - (BETA * Y).astype(F4) - F4(F) * tau
        q += (self.jet_q - q) * self.wall_drag
        q[0] -= F4(F) * heating
        q[1] += F4(F) * heating - vorticity * F4(TIME_STEP / FRICTION_TIME)
        temperature += warming - self.w * F4(STABILITY * TIME_STEP) + (self.t_eq - temperature) * radiation
        return heating

    def _warm_ground(self, humidity: np.ndarray) -> None:
        """Sun by day, loss by day and night, both less under cloud, which grows from 50 to 90 % humidity."""
        cloud = np.clip((humidity - F4(0.5)) * F4(2.5), 0, 1)
        declination, lat = np.radians(23.44) * self._summer(-10), np.radians(LAT)[:, None]
        hour = (self.time - START) / np.timedelta64(1, "D") * 2 * np.pi + np.radians(LON)
        cos_zenith = np.sin(lat) * np.sin(declination) - np.cos(lat) * np.cos(declination) * np.cos(hour)
        sun = np.maximum(cos_zenith, 0).astype(F4) * (1 - F4(0.6) * cloud)
        net = F4(SUN) * sun - F4(NIGHT_LOSS) * (1 - F4(0.5) * cloud)
        self.ground_warmth += net * F4(TIME_STEP / GROUND_AIR) - self.ground_warmth * F4(TIME_STEP / GROUND_TIME)

    def observe(self) -> dict[str, np.ndarray]:
        """The variables of the file, now and in the window. Mean heights are hydrostatic, from the mean temperature."""
        tau, t_850 = self.psi[0] - self.psi[1], self.state[2]
        z_500 = 1080 + GAS * (self.t_mean - 11) * np.log(1000 / 500) + F0 * self.psi[0]
        z_850 = 1080 + GAS * (self.t_mean + 4) * np.log(1000 / 850) + F0 * self.psi[1]
        surface = self.psi[1] - F4(np.log(1000 / 850) / np.log(850 / 500)) * tau  # stream function at 1000 hPa
        over_land, over_sea = t_850 + F4(LAPSE) + self.ground_warmth, (t_850 + F4(LAPSE) + self.t_sea) / 2
        v, minus_u = gradient(self.psi)
        fields = {
            "z": np.stack([z_500, z_850]),
            "u": -minus_u,
            "v": v,
            "t": np.stack([self.t_mean - 27 + THERMAL_WIND * tau, t_850]),
            "t2m": self.land * over_land + (1 - self.land) * over_sea,
            "msl": 101_325 + 1.2 * F0 * surface,
            "tp": self.rain / 1000,
        }
        return {name: values[..., WINDOW[0], WINDOW[1]] for name, values in fields.items()}
