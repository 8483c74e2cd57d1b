"""The settings of a training run: one frozen dataclass, documented beside its defaults and checked at once.

Each field is also a command-line option and a key of a TOML file: `input_steps` is `--input-steps`.
"""

import json
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from convlstm_wx.errors import ConfigError

Box = tuple[float, float, float, float]


def _option(
    default: Any, group: str, help: str, *, kind: type = str, shape: str = "one", low: float | None = None
) -> Any:
    """A field with what the command line needs to offer it.

    The shape is 'one' value, 'many' of them, a 'box' of four numbers, or several 'boxes'; low is the lowest value.
    """
    return field(default=default, metadata={"group": group, "help": help, "kind": kind, "shape": shape, "low": low})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a training run; see the metadata of each field for its meaning and unit.

    Raises:
        ConfigError: for a value out of its range.
    """

    data: tuple[str, ...] = _option((), "Data", "NetCDF files, a glob, or a Zarr store", shape="many")
    variables: tuple[str, ...] = _option((), "Data", "variables to read (default: all on the grid)", shape="many")
    target_variables: tuple[str, ...] = _option(
        (), "Data", "variables or channels (z@500hPa) to forecast (default: all that are read)", shape="many"
    )
    levels: tuple[float, ...] = _option((), "Data", "levels to read, hPa (default: all)", kind=float, shape="many")
    input_steps: int = _option(4, "Data", "times that the network reads, in steps of the file", kind=int, low=1)
    lead_steps: int = _option(4, "Data", "times that it learns to forecast, in steps of the file", kind=int, low=1)
    held_out_months: tuple[str, ...] = _option(
        (),
        "Data",
        "months never trained on: 2014-07, 07 (every July), 2014, 2009-01:2010-12 (default: the last 15 %)",
        shape="many",
    )
    validation_months: tuple[str, ...] = _option(
        (), "Data", "months that choose the best epoch, written likewise (default: the 15 % before those)", shape="many"
    )
    memory_budget: float | None = _option(
        None,
        "Data",
        "memory for the data, GB; more is kept in a cache (default: half the machine's)",
        kind=float,
        low=0,
    )
    cache_dir: str | None = _option(
        None, "Data", "folder of the data cache, which later runs use again (default: .convlstm_wx_cache)"
    )
    num_workers: int | None = _option(
        None, "Data", "threads that gather batches ahead (default: 1 beside a GPU, 0 on a CPU)", kind=int, low=0
    )

    target_region: Box | None = _option(
        None,
        "Regions",
        "the box to forecast, degrees (default: the whole file)",
        kind=float,
        shape="box",
    )
    include_upstream: bool = _option(False, "Regions", "also read where the weather comes from", kind=bool)
    upstream_region: tuple[Box, ...] = _option(
        (),
        "Regions",
        "an upstream box, degrees; repeatable (default: the windward side of the target)",
        kind=float,
        shape="boxes",
    )
    upstream_data: tuple[str, ...] = _option(
        (),
        "Regions",
        "files of upstream regions, each on a grid of its own: one file, glob or store for each",
        shape="many",
    )
    upstream_variables: tuple[str, ...] = _option(
        (), "Regions", "variables to read from those files (default: all on the grid)", shape="many"
    )

    hidden_channels: tuple[int, ...] = _option(
        (32, 64), "Network", "width of the ConvLSTM at each resolution, finest first", kind=int, shape="many", low=1
    )
    kernel_size: int = _option(3, "Network", "width of the ConvLSTM kernels, odd, grid points", kind=int, low=1)
    dropout: float = _option(0.3, "Network", "share of features dropped while training, 0 to 1", kind=float, low=0)

    num_epochs: int = _option(12, "Training", "passes over the training windows", kind=int, low=1)
    batch_size: int = _option(4, "Training", "windows per micro-batch", kind=int, low=1)
    gradient_accumulation_steps: int = _option(1, "Training", "micro-batches per optimiser step", kind=int, low=1)
    learning_rate: float = _option(5e-4, "Training", "peak learning rate of AdamW", kind=float, low=0)
    weight_decay: float = _option(0.1, "Training", "weight decay of AdamW", kind=float, low=0)
    gradient_clip_norm: float = _option(1.0, "Training", "longest gradient, 0 for no limit", kind=float, low=0)
    input_noise: float = _option(
        0.2, "Training", "noise on the inputs while training, in typical one-step changes", kind=float, low=0
    )
    ema_decay: float = _option(0.999, "Training", "moving average of the weights, 0 for none", kind=float, low=0)
    early_stopping_patience: int = _option(
        4, "Training", "epochs without a better validation loss before stopping, 0 for never", kind=int, low=0
    )
    seed: int = _option(0, "Training", "of the first weights, the order of windows, dropout and noise", kind=int, low=0)

    device: str = _option("auto", "Device", "auto (CUDA, else MPS, else CPU), cuda, cuda:N, mps or cpu")
    use_amp: bool = _option(False, "Device", "half precision where the device has it natively", kind=bool)

    output_dir: str | None = _option(None, "Output", "folder of the run (default: checkpoints/<name of the data>)")
    checkpoint_frequency: int = _option(5, "Output", "epochs between periodic checkpoints, 0 for none", kind=int, low=0)
    save_every_minutes: float = _option(
        15.0, "Output", "minutes between saves of last.pt inside an epoch, 0 for none", kind=float, low=0
    )
    keep_checkpoints: int = _option(3, "Output", "periodic checkpoints to keep, 0 for all", kind=int, low=0)

    def __post_init__(self) -> None:
        for entry in fields(self):
            self._check_range(entry.name, getattr(self, entry.name), entry.metadata["low"])
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"--kernel-size {self.kernel_size}: must be odd, so that the grid keeps its size")
        if not self.hidden_channels:
            raise ConfigError("--hidden-channels needs at least one number")
        for name in ("dropout", "ema_decay"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"{as_flag(name)} {getattr(self, name):g}: must be below 1")
        for name in ("upstream_region", "upstream_data"):
            if getattr(self, name) and not self.include_upstream:
                raise ConfigError(f"{as_flag(name)} does nothing without --include-upstream; add it")
        if self.upstream_variables and not self.upstream_data:
            raise ConfigError("--upstream-variables does nothing without --upstream-data; add it")

    @staticmethod
    def _check_range(name: str, value: Any, low: float | None) -> None:
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if low is not None and number is not None and not low <= number < 2**63:
                raise ConfigError(f"{as_flag(name)} {number:g}: must be at least {low:g} and less than 2^63")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, tuples as lists, for JSON and checkpoints."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any], source: str = "configuration") -> "TrainConfig":
        """Back from :meth:`to_dict`; absent keys keep their defaults.

        Raises:
            ConfigError: for an unknown key, a value of the wrong type or out of its range, naming it.
        """
        return cls(**cls.typed(entries, source))

    @classmethod
    def typed(cls, entries: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Entries as of a TOML file under the fields' names and with their types, not yet checked together.

        Raises:
            ConfigError: for an unknown key, or a value of the wrong type, naming it.
        """
        known = {entry.name: entry for entry in fields(cls)}
        values = {}
        for key, value in entries.items():
            name = key.replace("-", "_")
            if name not in known:
                raise ConfigError(f"{source}: unknown setting '{key}'; known are {', '.join(known)}")
            values[name] = _coerce(value, known[name], f"{source}: {key}")
        return values


def as_flag(name: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + name.replace("_", "-")


def _coerce(value: Any, entry: Field, where: str) -> Any:
    """A JSON or TOML value as the field's type: lists become tuples, integers floats; anything else is an error."""
    kind, shape = entry.metadata["kind"], entry.metadata["shape"]
    if value is None and entry.default is None:
        return None
    if shape == "one":
        return _scalar(value, kind, where)
    if shape == "box":
        return _box(value, where)
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(_box(item, where) if shape == "boxes" else _scalar(item, kind, where) for item in items)


def _box(value: Any, where: str) -> Box:
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ConfigError(f"{where}: expected [lat_min, lat_max, lon_min, lon_max], found {value!r}")
    lat_min, lat_max, lon_min, lon_max = (_scalar(number, float, where) for number in value)
    return (lat_min, lat_max, lon_min, lon_max)


def _scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value
