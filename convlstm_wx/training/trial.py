"""A small training run on made-up weather, the same on every device: what the audit and the doctor look at.

Everything that training can meet is in it: gaps and their masks, precipitation, an upstream region.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import TrainingInputs, prepare_training
from convlstm_wx.device import DevicePolicy
from convlstm_wx.distributed import Processes
from convlstm_wx.training.loop import Run

WEST = (40.0, 70.0, -30.0, -2.0)
TARGET = (40.0, 70.0, 0.0, 70.0)


def small_weather(*, days: int, height: int, width: int, seed: int = 0) -> xr.Dataset:
    """Waves that travel east over a grid in which one variable has gaps."""
    rng = np.random.default_rng(seed)
    times = np.datetime64("2001-01-01", "ns") + np.arange(days) * np.timedelta64(1, "D")
    lat, lon = np.linspace(70, 40, height), np.linspace(-30, 70, width)
    elapsed = np.arange(days)[:, None, None]
    wave = np.sin(2 * np.pi * (lon / 40 - elapsed / 6) + lat[:, None] / 10) + 0.1 * rng.normal(
        size=(days, height, width)
    )
    fields = {
        "t2m": (280 + 5 * wave, "K"),
        "u10": (5 + 3 * wave, "m s-1"),
        "tp": (np.maximum(0.004 * wave - 0.002, 0), "m"),
        "sst": (np.where(rng.random((days, height, width)) < 0.2, np.nan, 285 + wave), "K"),
    }
    return xr.Dataset(
        {
            name: (("time", "lat", "lon"), values.astype(np.float32), {"units": u})
            for name, (values, u) in fields.items()
        },
        coords={
            "time": times,
            "lat": ("lat", lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", lon, {"units": "degrees_east", "standard_name": "longitude"}),
        },
    )


@dataclass(frozen=True)
class Trial:
    """A small run that can be made again and again.

    Attributes:
        config: its settings.
        inputs: its data.
        folder: where it may write.
    """

    config: TrainConfig
    inputs: TrainingInputs
    folder: Path

    def run(self, policy: DevicePolicy, **changes: Any) -> Run:
        """A run with fresh weights, the same on every device for the same seed."""
        config = replace(self.config, **changes)
        inputs = self.inputs if config.blend == self.config.blend else prepare_training(config)
        run = Run(config, inputs, policy, self.folder, Processes())
        _wake_up(run.learner.network, config.seed)
        return run


@contextmanager
def trial(*, days: int = 40, height: int = 8, width: int = 20, **settings: Any) -> Iterator[Trial]:
    """A trial in a folder of its own, which is gone afterwards."""
    with TemporaryDirectory(prefix="convlstm_wx_") as folder:
        path = Path(folder) / "weather.nc"
        small_weather(days=days, height=height, width=width).to_netcdf(path, engine="netcdf4")
        config = TrainConfig(data=(str(path),), output_dir=folder, target_region=TARGET, **settings)
        yield Trial(config, prepare_training(config), Path(folder))


def _wake_up(network: nn.Module, seed: int) -> None:
    """Give weights that start at zero small values, so that every other one gets a gradient in the first step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


# One step, looked at


@dataclass(frozen=True)
class Step:
    """What one optimiser step gave, on the CPU.

    Attributes:
        outputs: the forecast before the step, without what persistence would say: that needs no arithmetic.
        gradients: of every parameter, as the optimiser got them.
        changes: of every parameter.
    """

    outputs: Tensor
    gradients: dict[str, Tensor]
    changes: dict[str, Tensor]

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are numbers."""
        every = [self.outputs, *self.gradients.values(), *self.changes.values()]
        return all(bool(torch.isfinite(tensor).all()) for tensor in every)


def one_step(run: Run) -> Step:
    """The first windows of a run through a whole optimiser step."""
    network, optimizer = run.learner.network, run.learner.optimizer
    named = dict(network.named_parameters())
    before = {name: _on_cpu(parameter) for name, parameter in named.items()}
    outputs: list[Tensor] = []
    gradients: dict[str, Tensor] = {}

    def keep_gradients(*_: Any) -> None:
        gradients.update((name, _on_cpu(p.grad)) for name, p in named.items() if p.grad is not None)

    handles = [
        network.register_forward_hook(lambda _, inputs, output: outputs.append(_without_last(run, inputs[0], output))),
        optimizer.register_step_pre_hook(keep_gradients),
    ]
    try:
        batches = list(run.load(run.training_windows, [np.arange(run.config.batch_size)]))
        run.learner.learn(batches, run.config.learning_rate)
    finally:
        for handle in handles:
            handle.remove()
    changes = {name: _on_cpu(parameter) - before[name] for name, parameter in named.items()}
    return Step(torch.cat(outputs), gradients, changes)


def _without_last(run: Run, x_BTCHW: Tensor, forecast_BLDHW: Tensor) -> Tensor:
    return _on_cpu(forecast_BLDHW) - _on_cpu(x_BTCHW[:, -1:, run.spec.target_indices])


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64, copy=True)


@dataclass(frozen=True)
class Difference:
    """How far one step is from another, as a share of the latter; the smaller the better.

    Attributes:
        outputs: of the forecast.
        gradients: of the parameter whose gradient differs most.
        weights: of all changes of the weights together.
        worst: name of that parameter.
        is_finite: whether both had finite numbers only.
    """

    outputs: float
    gradients: float
    weights: float
    worst: str
    is_finite: bool


def difference(reference: Step, other: Step) -> Difference:
    """Root mean square of the difference over that of the reference.

    AdamW's first step goes by the sign of a gradient, so noise turns the tiniest ones round: the weights are compared
    as a whole, and a small gradient by the size of all.
    """
    shares = {
        name: _share(gradient, other.gradients[name], least=0.01 * _rms(*reference.gradients.values()))
        for name, gradient in reference.gradients.items()
    }
    worst = max(shares, key=lambda name: shares[name])
    changes = [torch.cat([tensor.flatten() for tensor in step.changes.values()]) for step in (reference, other)]
    return Difference(
        outputs=_share(reference.outputs, other.outputs),
        gradients=shares[worst],
        weights=_share(changes[0], changes[1]),
        worst=worst,
        is_finite=reference.is_finite and other.is_finite,
    )


def _share(reference: Tensor, other: Tensor, *, least: float = 1e-30) -> float:
    return _rms(other - reference) / max(least, _rms(reference))


def _rms(*tensors: Tensor) -> float:
    squares = sum(float(tensor.square().sum()) for tensor in tensors)
    return (squares / max(1, sum(tensor.numel() for tensor in tensors))) ** 0.5
