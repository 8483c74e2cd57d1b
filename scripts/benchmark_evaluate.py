"""How long `convlstm-wx evaluate` takes on a forecast file, and in how much memory, in a process of its own.

    python scripts/benchmark_evaluate.py                  # 500 init times x 10 lead times x 3 variables, 61 x 65 points
    python scripts/benchmark_evaluate.py --profile        # and where the time goes (the profiler itself slows it down)
    python scripts/benchmark_evaluate.py --members 5      # of an ensemble
    python scripts/benchmark_evaluate.py --init-times 60 --years 1   # a quick look

The truth is a few years of simulated weather by six hours, the forecasts are the truth and noise that grows with the
lead time. All that evaluate does by default is on: every rival, events with fractions, spectra, maps, intervals, page.
"""

import argparse
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

HEIGHT, WIDTH, PATTERNS = 61, 65, 60
UNITS = {"t2m": "K", "msl": "Pa", "tp": "mm"}
STEP = np.timedelta64(6, "h")
PARTS_SHOWN = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init-times", type=int, default=500)
    parser.add_argument("--lead-times", type=int, default=10)
    parser.add_argument("--years", type=int, default=4, help="of training")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="print what each part of ours took")
    parser.add_argument("--folder", type=Path, help="where the files go and stay (default: a temporary folder)")
    parser.add_argument("--more", default="", help="further options of evaluate, in one text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "forecast.nc").exists():
            make_files(folder, options)
        measure(folder, options)


def make_files(folder: Path, options: argparse.Namespace) -> None:
    """truth.nc and forecast.nc."""
    generator = np.random.default_rng(0)
    n_training = options.years * 1461
    truth = make_truth(n_training + options.init_times + options.lead_times, generator)
    truth.to_netcdf(folder / "truth.nc", encoding={name: {"zlib": True, "complevel": 1} for name in UNITS})
    at = n_training + np.arange(options.init_times)[:, None] + np.arange(1, options.lead_times + 1)
    dims = ("init_time", "realization", "lead_time", "lat", "lon")
    growing = np.linspace(0.3, 1.2, options.lead_times, dtype=np.float32)[:, None, None]
    fields = {}
    for name, units in UNITS.items():
        values = truth[name].values[at][:, None].repeat(options.members, axis=1)
        spread = growing * values[:, 0, 0].std()
        for row in values:
            row += spread * np.tensordot(
                generator.standard_normal((*row.shape[:2], PATTERNS), np.float32), patterns(generator), 1
            )
        fields[name] = (dims, values.clip(min=0) if name == "tp" else values, {"units": units})
    coords = {"init_time": truth["time"].values[n_training:][: options.init_times], "lat": truth["lat"]}
    leads = np.arange(1, options.lead_times + 1) * STEP.astype("timedelta64[ns]")
    coords |= {"lead_time": leads, "realization": np.arange(options.members), "lon": truth["lon"]}
    forecast = xr.Dataset(fields, coords)
    forecast = forecast if options.members > 1 else forecast.isel(realization=0, drop=True)
    forecast.to_netcdf(folder / "forecast.nc", encoding={name: {"zlib": True, "complevel": 1} for name in UNITS})


def make_truth(n_times: int, generator: np.random.Generator) -> xr.Dataset:
    """Patterns that come and go with a memory of some days, a season and a course of the day; half of the rain is 0."""
    hours = 6 * np.arange(n_times)
    season, clock = np.cos(2 * np.pi * hours / 8766), np.cos(2 * np.pi * hours / 24)
    fields = {}
    for name, units in UNITS.items():
        course = generator.standard_normal((n_times, PATTERNS), np.float32)
        for step in range(1, n_times):
            course[step] = 0.93 * course[step - 1] + 0.37 * course[step]
        values = np.tensordot(course, patterns(generator), 1)
        values += (1.5 * season + 0.5 * clock).astype(np.float32)[:, None, None]
        values = {"t2m": 285 + 4 * values, "msl": 101_000 + 700 * values, "tp": (2 * values).clip(min=0)}[name]
        fields[name] = (("time", "lat", "lon"), np.round(values, 2).astype(np.float32), {"units": units})
    times = np.datetime64("2001-01-01", "ns") + np.arange(n_times) * STEP
    lat = ("lat", np.linspace(35, 50, HEIGHT), {"units": "degrees_north"})
    lon = ("lon", np.linspace(0, 16, WIDTH), {"units": "degrees_east"})
    return xr.Dataset(fields, {"time": times, "lat": lat, "lon": lon})


def patterns(generator: np.random.Generator) -> np.ndarray:
    """Waves of many lengths [PATTERNS, H, W], long ones the largest; their sum has a variance of about 1."""
    down, along = generator.integers(0, 13, (2, PATTERNS, 1, 1))
    phase = generator.uniform(0, 2 * np.pi, (PATTERNS, 1, 1))
    y, x = np.linspace(0, np.pi, HEIGHT)[:, None], np.linspace(0, np.pi, WIDTH)
    waves = np.cos(down * y + along * x + phase) / (1 + np.hypot(down, along))
    return (waves / np.sqrt((waves**2).sum(axis=0).mean())).astype(np.float32)


def measure(folder: Path, options: argparse.Namespace) -> None:
    profile = folder / "profile"
    how = ["-m", "cProfile", "-o", str(profile)] if options.profile else []
    command = [sys.executable, *how, "-m", "convlstm_wx", "evaluate", *options.more.split()]
    files = ["--data", folder / "truth.nc", "--forecast", folder / "forecast.nc", "--output", folder / "evaluation"]
    started, peak = time.perf_counter(), 0
    with subprocess.Popen([*command, *map(str, files)], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, peak_kilobytes(process.pid))
            time.sleep(0.05)
    elapsed = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(process.returncode)
    n_forecasts = f"{options.init_times} init times x {options.lead_times} lead times x {len(UNITS)} variables"
    print(f"{n_forecasts} x {options.members} members, {HEIGHT} x {WIDTH} points")
    processors = used.ru_utime + used.ru_stime
    print(f"{elapsed:.1f} s ({processors:.1f} s of processors), at most {peak / 2**20:.2f} GB resident")
    if options.profile:
        pstats.Stats(str(profile)).sort_stats("cumulative").print_stats("convlstm_wx/", PARTS_SHOWN)


def peak_kilobytes(process: int) -> int:
    """The largest resident set of a running process so far."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
