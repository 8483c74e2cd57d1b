"""What forecasts from consecutive init times gain by what their windows have in common, computed once a time.

    python scripts/benchmark_forecast.py                    # files of 120 init times, and the network alone
    python scripts/benchmark_forecast.py --init-times 48 --rounds 3   # a quick look

Windows of T input times that slide by one have T - 1 times in common, of which the stem and the input's share of the
first ConvLSTM's gates are shared. Timed side by side with and without, in processor time, as others may be at work: a
whole forecast, from opened data to the NetCDF file, and the network alone on a batch of 16, with fresh weights and the
default settings.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from convlstm_wx.checkpoint import Checkpoint
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import Sources, prepare_training
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.device import choose_device
from convlstm_wx.forecast.rollout import Forecast, Trained
from convlstm_wx.forecast.writing import forecast_to_file
from convlstm_wx.models.build import build
from convlstm_wx.training.blueprint import blueprint

RECORDS = {"daily, 21 x 24": (24, (21, 24)), "6-hourly, 21 x 24": (6, (21, 24)), "6-hourly, 61 x 65": (6, (61, 65))}
UNITS = {"t2m": "K", "msl": "Pa", "u10": "m s-1"}
DAYS, BATCH = 365, 16


class EachOnItsOwn(Forecast):
    """A forecast that shares nothing."""

    def _apart(
        self, spec: DataSpec, sources: Sources, init_times: np.ndarray, rows: Sequence[tuple[int, int]]
    ) -> int | None:
        return None


def make_checkpoint(file: Path, hours: int, size: tuple[int, int]) -> Checkpoint:
    """An untrained one for a record of noise."""
    times = np.datetime64("2001-01-01", "ns") + np.arange(DAYS * 24 // hours) * np.timedelta64(hours, "h")
    noise = np.random.default_rng(0).standard_normal((len(UNITS), len(times), *size), np.float32)
    fields = {
        name: (("time", "lat", "lon"), values, {"units": units}) for (name, units), values in zip(UNITS.items(), noise)
    }
    lat, lon = (np.linspace(start, start + 30, n) for start, n in zip((35, -15), size))
    coords = {"time": times, "lat": ("lat", lat, {"units": "degrees_north"})}
    xr.Dataset(fields, coords | {"lon": ("lon", lon, {"units": "degrees_east"})}).to_netcdf(file)
    config = TrainConfig(data=(str(file),))
    spec = prepare_training(config).spec
    torch.manual_seed(0)
    plan = blueprint(config, spec)
    network = build(*plan)
    torch.nn.init.normal_(network.head.weight, std=0.3)  # at first it is zero: what is forecast would not matter
    return Checkpoint(config, spec, *plan, dict(network.state_dict()), {}, {})


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> tuple[float, float]:
    """Seconds of the first, and the median of how many times as fast the second is."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if number:  # the first time caches fill and kernels are chosen
                seconds[name].append(time.process_time() - started)
    each, shared = seconds.values()
    return statistics.median(each), statistics.median(one / other for one, other in zip(each, shared))


def whole(checkpoint: Checkpoint, folder: Path, init_times: int, rounds: int) -> tuple[float, float]:
    """Of all that the command does once its data are open."""
    dataset = open_dataset(checkpoint.config.data)
    given = ([Trained(checkpoint)], dataset, dataset["time"].values[20 : 20 + init_times], checkpoint.spec.lead_steps)

    def run(kind: type[Forecast]) -> None:
        forecast_to_file(kind(*given, choose_device("cpu")), folder / f"{kind.__name__}.nc", data_files=[])

    measured = alternate({kind.__name__: lambda kind=kind: run(kind) for kind in (EachOnItsOwn, Forecast)}, rounds)
    made = (xr.open_dataset(folder / f"{kind.__name__}.nc") for kind in (EachOnItsOwn, Forecast))
    xr.testing.assert_allclose(*made, rtol=1e-5, atol=1e-5)
    return measured


@torch.inference_mode()
def alone(checkpoint: Checkpoint, rounds: int, *, bf16: bool) -> tuple[float, float]:
    """Of the network, on noise."""
    network, spec = checkpoint.network(), checkpoint.spec
    choose_device("cpu").place(network)
    size = (len(spec.target.grid.lat), len(spec.target.grid.lon))

    def sliding(times: int, channels: int) -> torch.Tensor:
        return torch.randn(BATCH + times - 1, channels, *size).unfold(0, times, 1).movedim(-1, 1).contiguous()

    x_BTCHW = sliding(spec.input_steps, spec.target.input_channels)
    forcing_BSFHW = sliding(spec.input_steps + spec.lead_steps, spec.target.forcing_channels)

    def run(apart: int | None) -> torch.Tensor:
        return torch.stack(list(network.rollout(x_BTCHW, forcing_BSFHW, (), apart)))

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        torch.testing.assert_close(run(1), run(None), rtol=0, atol=0.1 if bf16 else 1e-5)
        return alternate({"each": lambda: run(None), "shared": lambda: run(1)}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--init-times", type=int, default=120)
    options = parser.parse_args()
    print("| record | lead steps | timed | each window on its own | gain of sharing |\n|---|---|---|---|---|")
    for name, (hours, size) in RECORDS.items():
        with tempfile.TemporaryDirectory() as temporary:
            checkpoint = make_checkpoint(Path(temporary) / "record.nc", hours, size)
            measured = {
                f"forecast of {options.init_times} init times": whole(
                    checkpoint, Path(temporary), options.init_times, options.rounds
                ),
                "network, float32": alone(checkpoint, options.rounds, bf16=False),
                "network, bfloat16": alone(checkpoint, options.rounds, bf16=True),
            }
        for timed, (seconds, ratio) in measured.items():
            print(f"| {name} | {checkpoint.spec.lead_steps} | {timed} | {seconds:.2f} s | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
