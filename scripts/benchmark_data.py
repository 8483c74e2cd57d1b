"""How fast windows come, and in how much memory: ours beside the usual way, in one process, alternating.

    python scripts/benchmark_data.py             # 4,380 steps x 20 variables x 61 x 61: 10 minutes, 4 GB of disk
    python scripts/benchmark_data.py --steps 400 --variables 5 --rounds 2  # a quick look

The record is written as compressed NetCDF, in the chunks that xarray chooses by itself, and once more in chunks of one
time, which suit reading windows best. "Usual" opens a file with xarray, takes one window per sample with isel and
batches samples with a DataLoader. "Ours" is what training does, up to the batch of tensors with its forcings: from
memory, and from the data cache, whose pages the system has in memory then (warm). Windows of 6 + 1 steps, batch 4,
random order.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import TrainingInputs, prepare_training
from convlstm_wx.data.loaders import TensorBatch, in_batches, load_batches
from convlstm_wx.data.splits import TRAIN
from convlstm_wx.device import choose_device
from convlstm_wx.distributed import Processes
from convlstm_wx.training.loop import Run

INPUT_STEPS, LEAD_STEPS, BATCH = 6, 1, 4
CPU = torch.device("cpu")


def make_record(*, steps: int, variables: int, size: int) -> xr.Dataset:
    """Travelling waves with noise, rounded as packed archives are."""
    rng = np.random.default_rng(0)
    times = np.datetime64("2001-01-01", "ns") + np.arange(steps) * np.timedelta64(6, "h")
    grid = np.linspace(0, 2 * np.pi, size, dtype=np.float32)
    fields = {}
    for number in tqdm(range(variables), desc="making the record", leave=False, disable=None):
        phase = np.arange(steps, dtype=np.float32)[:, None, None] / (7 + number)
        wave = np.sin(grid[None, :, None] + 2 * grid[None, None, :] - phase)
        values = 280 + 8 * wave + rng.normal(size=(steps, size, size)).astype(np.float32)
        fields[f"v{number}"] = (("time", "lat", "lon"), np.round(values, 2).astype(np.float32), {"units": "K"})
    coords = {"time": times, "lat": np.linspace(30, 45, size), "lon": np.linspace(0, 15, size)}
    record = xr.Dataset(fields, coords)
    record.lat.attrs["units"], record.lon.attrs["units"] = "degrees_north", "degrees_east"
    return record


def write_record(record: xr.Dataset, path: Path, **how: object) -> None:
    record.to_netcdf(path, encoding={name: {"zlib": True, "complevel": 1, **how} for name in record.data_vars})


class UsualWindows(Dataset):
    """One window per item, read with xarray when it is asked for."""

    def __init__(self, path: Path):
        self.record = xr.open_dataset(path)
        self.variables = list(self.record.data_vars)

    def __len__(self) -> int:
        return self.record.sizes["time"] - INPUT_STEPS - LEAD_STEPS + 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        window = self.record.isel(time=slice(index, index + INPUT_STEPS + LEAD_STEPS)).to_array().values
        values = torch.from_numpy(window).transpose(0, 1)
        return values[:INPUT_STEPS], values[INPUT_STEPS:]


def usual_batches(path: Path, seed: int) -> Iterator:
    generator = torch.Generator().manual_seed(seed)
    return iter(DataLoader(UsualWindows(path), batch_size=BATCH, shuffle=True, generator=generator))


def our_batches(inputs: TrainingInputs, seed: int) -> Iterator[TensorBatch]:
    windows = inputs.windows(TRAIN)
    order = np.random.default_rng(seed).permutation(len(windows))
    return load_batches(windows, in_batches(order, BATCH), CPU)


def windows_per_second(batches: Iterator, count: int) -> float:
    next(batches)
    started = time.perf_counter()
    deque(islice(batches, count), maxlen=0)  # each is let go before the next is asked for
    return count * BATCH / (time.perf_counter() - started)


def prepared(path: Path, cache: Path, **changes: object) -> TrainingInputs:
    settings = {"data": (str(path),), "input_steps": INPUT_STEPS, "lead_steps": LEAD_STEPS, "cache_dir": str(cache)}
    return prepare_training(TrainConfig(**settings, **changes))


def warm(inputs: TrainingInputs) -> TrainingInputs:
    """The same after its arrays were read once, so that the system has the pages of a cache at hand."""
    values = inputs.sources.target.values_NCHW
    deque((values[start : start + 100] for start in range(0, len(values), 100)), maxlen=0)
    return inputs


def budget_of(path: Path) -> float:
    """A quarter of the record, GB."""
    with xr.open_dataset(path) as record:
        return sum(record[name].size for name in record.data_vars) / 2**30


def compare_speed(path: Path, aligned: Path, cache: Path, rounds: int) -> None:
    inside, cached = prepared(path, cache, memory_budget=1e4), prepared(path, cache, memory_budget=budget_of(path))
    packed = prepared(path, cache, memory_budget=budget_of(path), cache_dtype="int16")
    count = min(400, len(inside.windows(TRAIN)) // BATCH - 1)
    ways: dict[str, Callable[[int], float]] = {
        "ours, in memory": lambda seed: windows_per_second(our_batches(inside, seed), count),
        "ours, data cache": lambda seed: windows_per_second(our_batches(warm(cached), seed), count),
        "ours, data cache of 16 bits": lambda seed: windows_per_second(our_batches(warm(packed), seed), count),
        "usual, chunks of one time": lambda seed: windows_per_second(usual_batches(aligned, seed), 15),
        "usual, chunks as xarray writes": lambda seed: windows_per_second(usual_batches(path, seed), 15),
    }
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(rounds):
        for name, way in ways.items():
            measured[name].append(way(seed))
    usual = np.array(list(measured.values())[-1])
    print(f"\n{'way':<36}{'windows/s':>12}{'ratio to the last':>20}")
    for name, speeds in measured.items():
        print(f"{name:<36}{np.median(speeds):>12,.0f}{np.median(np.array(speeds) / usual):>19,.1f}x")


def share_of_waiting(path: Path, cache: Path, steps: int) -> None:
    """Time spent in fetching batches of a real training step of the default network on one lead time."""
    inputs = prepared(path, cache, memory_budget=budget_of(path))
    config = TrainConfig(data=(str(path),), input_steps=INPUT_STEPS, lead_steps=LEAD_STEPS, batch_size=BATCH)
    run = Run(config, inputs, choose_device("cpu", use_amp=False), cache, Processes())
    batches, waited, worked = our_batches(inputs, 0), [], []
    for _ in range(steps):
        started = time.perf_counter()
        batch = next(batches)
        fetched = time.perf_counter()
        run.learner.learn([batch], 1e-4)
        waited.append(fetched - started)
        worked.append(time.perf_counter() - fetched)
    share = np.median(waited) / (np.median(waited) + np.median(worked))
    print(f"\nwaiting for data: {100 * share:.2f} % of a training step (float32, {run.parameters:,} parameters)")


def memory_of_training(path: Path, small: Path, folder: Path) -> None:
    """Largest resident set of the real command: a record four times the budget beside a short one of the same grid."""
    budget_gb = budget_of(path)
    peaks = {}
    for name, data in (("short record", small), ("record of 4 budgets", path)):
        peaks[name] = _peak_of_command(data, folder, budget_gb)
    extra = peaks["record of 4 budgets"] - peaks["short record"]
    print(f"\nrecord {4 * budget_gb:.2f} GB, --memory-budget {budget_gb:.2f} GB, largest resident set of training:")
    for name, peak in peaks.items():
        print(f"  {name:<22}{peak / 2**30:.2f} GB")
    print(f"  beyond the short record's {extra / 2**30:.2f} GB: {extra / 2**30 / budget_gb:.2f} of the budget")


def _peak_of_command(data: Path, folder: Path, budget_gb: float) -> int:
    script = Path(__file__).parents[1] / "train_convlstm.py"
    options = f"--input-steps {INPUT_STEPS} --lead-steps {LEAD_STEPS} --hidden-channels 2 4 --num-epochs 1 --device cpu"
    folders = ["--output-dir", str(folder / "run"), "--overwrite", "--cache-dir", str(folder / "cache")]
    command = [sys.executable, str(script), "--data", str(data), *options.split(), *folders]
    peak = 0
    with subprocess.Popen([*command, "--memory-budget", str(budget_gb)], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, _resident_bytes(process.pid))
            time.sleep(0.01)
    if process.returncode:
        sys.exit(process.returncode)
    return peak


def _resident_bytes(process: int) -> int:
    """The resident set of another process; its largest one so far counts what its parent had before the fork."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=False).stdout
    return 1024 * int(shown or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4380)
    parser.add_argument("--variables", type=int, default=20)
    parser.add_argument("--size", type=int, default=61, help="grid points along each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where record and cache go (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        path, aligned, short = folder / "record.nc", folder / "aligned.nc", folder / "short.nc"
        record = make_record(steps=options.steps, variables=options.variables, size=options.size)
        write_record(record, path)
        write_record(record, aligned, chunksizes=(1, options.size, options.size))
        write_record(record.isel(time=slice(max(100, options.steps // 40))), short)
        del record
        compare_speed(path, aligned, folder / "cache", options.rounds)
        share_of_waiting(path, folder / "cache", 10)
        memory_of_training(path, short, folder)


if __name__ == "__main__":
    main()
