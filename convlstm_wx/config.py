"""The settings of a training run: one frozen dataclass, documented beside its defaults and checked at once.

Each field is also a command-line option and a key of a TOML file: `input_steps` is `--input-steps`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from convlstm_wx.errors import ConfigError

Box = tuple[float, float, float, float]
AUTO = 0  # a number that the program is to find
# What runs did that were begun without the setting.
BEFORE_THERE_WAS_A_SETTING = {"blend": "none", "lead_weighting": 0.0, "upstream_coarsen": 1}
SPREADS = ("auto", "errors", "states", "none")  # where the members of an ensemble get it from
PERTURBATION = 0.2  # of an ensemble's initial states, in units of a channel's typical change in one time step


def _option(
    default: Any,
    group: str,
    help: str,
    *,
    kind: type = str,
    shape: str = "one",
    low: float | None = None,
    choices: tuple[str, ...] = (),
    auto: bool = False,
) -> Any:
    """A field with what the command line needs to offer it.

    The shape is 'one' value, 'many' of them, a 'box' of four numbers, or several 'boxes'; low is the lowest value;
    choices are all that a text may say, if it may not say anything; auto allows that word for AUTO.
    """
    metadata = {"group": group, "help": help, "kind": kind, "shape": shape, "low": low, "choices": choices}
    return field(default=default, metadata=metadata | {"auto": auto})


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
    ignore_variables: tuple[str, ...] = _option(
        (), "Data", "variables and masks to leave out; '*_mask' leaves out all whose names end so", shape="many"
    )
    mask_values: tuple[str, ...] = _option(
        (),
        "Data",
        "values of masks that mean observed, as in 1, or tp_qc=0,1 for one mask (default: what the attributes of masks "
        "say, else found from the data)",
        shape="many",
    )
    levels: tuple[float, ...] = _option((), "Data", "levels to read, hPa (default: all)", kind=float, shape="many")
    input_steps: int = _option(4, "Data", "times that the network reads, in steps of the file", kind=int, low=1)
    lead_steps: int = _option(
        AUTO,
        "Data",
        "times that it learns to forecast, in steps of the file; auto: three days of them, 4 to 24, fewer of a short "
        "record (default: auto)",
        kind=int,
        low=AUTO,
        auto=True,
    )
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
    cache_dtype: str = _option(
        "float32",
        "Data",
        "numbers of the data cache; int16 needs half the disk, with errors of at most 1/65,000 of a field's range",
        choices=("float32", "int16"),
    )
    num_workers: int | None = _option(
        None, "Data", "threads that gather batches ahead (default: 1 beside a GPU, 0 on a CPU)", kind=int, low=0
    )

    target_region: Box | None = _option(
        None,
        "Regions",
        "the box to forecast, degrees (default: the whole file; with --include-upstream alone, its lee third)",
        kind=float,
        shape="box",
    )
    include_upstream: bool = _option(False, "Regions", "also read where the weather comes from", kind=bool)
    upstream_region: tuple[Box, ...] = _option(
        (),
        "Regions",
        "an upstream box, degrees; repeatable (default: the file on the windward side of the target)",
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
    upstream_coarsen: int = _option(
        AUTO,
        "Regions",
        "read upstream regions as area means over N x N grid points; auto: 1, unless the regions have more than "
        "1,000 points and cost more than the target (default: auto)",
        kind=int,
        low=AUTO,
        auto=True,
    )

    model: str = _option(
        "encoder-forecaster",
        "Network",
        "the network: encoder-forecaster; unet, which forecasts one step and is rolled out; shi2015, to compare with",
        choices=("encoder-forecaster", "unet", "shi2015"),
    )
    blend: str = _option(
        "auto",
        "Network",
        "blend the network's forecasts with those of a linear inverse model (EOFs and ridge regression) of training, "
        "weighted by lead time and variable as validation shows; auto: where training is long enough",
        choices=("auto", "none", "linear"),
    )
    hidden_channels: tuple[int, ...] = _option(
        (32, 64, 96), "Network", "width of the ConvLSTM at each resolution, finest first", kind=int, shape="many", low=1
    )
    kernel_size: int = _option(3, "Network", "width of the ConvLSTM kernels, odd, grid points", kind=int, low=1)
    dropout: float = _option(0.3, "Network", "share of features dropped while training, 0 to 1", kind=float, low=0)
    upstream_fusion: str = _option(
        "resample",
        "Network",
        "how upstream regions tell the target: their fields are stretched over it, or each point asks all of theirs",
        choices=("attention", "resample"),
    )

    init_from: str | None = _option(
        None,
        "Training",
        "a checkpoint of another run, or its folder, whose weights this one starts from (fine-tuning); all else starts "
        "anew (default: random weights)",
    )
    num_epochs: int = _option(
        AUTO,
        "Training",
        "passes over the training windows, at most; auto: 12, fewer (at least 4) of a record with more than 8,700 of "
        "them (default: auto)",
        kind=int,
        low=AUTO,
        auto=True,
    )
    batch_size: int = _option(
        4,
        "Training",
        "windows per micro-batch; auto tries how many fit (on a CPU: are fastest, at most 32) and leave an epoch at "
        "least 20 optimiser steps",
        kind=int,
        low=AUTO,
        auto=True,
    )
    gradient_accumulation_steps: int = _option(1, "Training", "micro-batches per optimiser step", kind=int, low=1)
    recompute: bool = _option(
        False, "Training", "compute the gates of the ConvLSTM twice, for less memory and more time", kind=bool
    )
    learning_rate: float = _option(5e-4, "Training", "peak learning rate of AdamW", kind=float, low=0)
    weight_decay: float = _option(0.1, "Training", "weight decay of AdamW", kind=float, low=0)
    schedule: str = _option(
        "cosine",
        "Training",
        "after the warm-up the learning rate falls along a cosine, or whenever the validation loss rests on a plateau",
        choices=("cosine", "plateau"),
    )
    plateau_factor: float = _option(
        0.5, "Training", "what a plateau multiplies the learning rate with, 0 to 1", kind=float, low=0
    )
    plateau_patience: int = _option(
        2, "Training", "epochs without a better validation loss that make a plateau", kind=int, low=1
    )
    gradient_clip_norm: float = _option(1.0, "Training", "longest gradient, 0 for no limit", kind=float, low=0)
    input_noise: float = _option(
        0.2, "Training", "noise on the inputs while training, in typical one-step changes", kind=float, low=0
    )
    ema_decay: float = _option(0.999, "Training", "moving average of the weights, 0 for none", kind=float, low=0)
    loss: str = _option(
        "mse",
        "Training",
        "what an error costs; errors are in typical one-step changes of their variable",
        choices=("mse", "mae", "huber", "log-cosh"),
    )
    huber_delta: float = _option(
        1.0, "Training", "where the Huber loss turns from squares to lines, in the same unit", kind=float, low=0
    )
    variable_weights: tuple[str, ...] = _option(
        (), "Training", "how much variables or channels count: t2m=2 z@500hPa=0.5 (default: all 1)", shape="many"
    )
    lead_weighting: float = _option(
        2.0,
        "Training",
        "errors n steps ahead count as n to the power of minus this while training, as far ahead chance rules; 0: all "
        "lead times alike, as in validation",
        kind=float,
        low=0,
    )
    rain_weights: tuple[str, ...] = _option(
        (),
        "Training",
        "weights of errors of precipitation by the amount observed, mm per step: 10=5 50=10 counts them 5 from 10 mm, "
        "10 from 50 mm; forecasts become wetter (default: all 1)",
        shape="many",
    )
    curriculum_epochs: int = _option(
        0, "Training", "epochs over which learning goes from one lead time to all, 0 for all at once", kind=int, low=0
    )
    scheduled_sampling: float = _option(
        0.0,
        "Training",
        "how likely a lead time starts from the truth, not the forecast, falling to 0 over the run",
        kind=float,
        low=0,
    )
    early_stopping_patience: int = _option(
        4, "Training", "epochs without a better validation loss before stopping, 0 for never", kind=int, low=0
    )
    seed: int = _option(0, "Training", "of the first weights, the order of windows, dropout and noise", kind=int, low=0)
    members: int = _option(
        1,
        "Training",
        "networks to train one after the other, which differ by their seed (seed, seed + 1 ...) and make an ensemble",
        kind=int,
        low=1,
    )

    device: str = _option("auto", "Device", "auto (CUDA, else MPS, else CPU), cuda, cuda:N, mps or cpu")
    use_amp: bool = _option(False, "Device", "half precision where the device has it natively", kind=bool)
    amp_dtype: str = _option(
        "auto",
        "Device",
        "which half precision: bfloat16 where the device has it, float16 on other GPUs",
        choices=("auto", "bfloat16", "float16"),
    )
    compile: bool = _option(
        False, "Device", "torch.compile: minutes of waiting first, then faster on CUDA; not on MPS", kind=bool
    )
    tf32: bool = _option(True, "Device", "on CUDA, products of float32 numbers with 10-bit mantissas", kind=bool)
    memory_cap: bool = _option(True, "Device", "on MPS, no more memory than Apple recommends for a program", kind=bool)
    auto_batch: bool = _option(
        True, "Device", "when memory runs out, go on with fewer windows at once and as many in a step", kind=bool
    )

    output_dir: str | None = _option(None, "Output", "folder of the run (default: checkpoints/<name of the data>)")
    checkpoint_frequency: int = _option(5, "Output", "epochs between periodic checkpoints, 0 for none", kind=int, low=0)
    save_every_minutes: float = _option(
        15.0, "Output", "minutes between saves of last.pt inside an epoch, 0 for none", kind=float, low=0
    )
    keep_checkpoints: int = _option(3, "Output", "periodic checkpoints to keep, 0 for all", kind=int, low=0)
    tensorboard: bool = _option(
        False, "Output", "curves and example forecasts for TensorBoard, in the folder's tensorboard/", kind=bool
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            self._check_range(entry.name, getattr(self, entry.name), entry.metadata["low"])
            self._check_choice(entry.name, getattr(self, entry.name), entry.metadata["choices"])
        if self.kernel_size not in (1, 3, 5, 7):
            raise ConfigError(f"--kernel-size {self.kernel_size}: must be odd and at most 7; choose 1, 3, 5 or 7")
        if not self.hidden_channels:
            raise ConfigError("--hidden-channels needs at least one number")
        for name in ("dropout", "ema_decay"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"{as_flag(name)} {getattr(self, name):g}: must be below 1")
        for name in ("upstream_region", "upstream_data"):
            if getattr(self, name) and not self.include_upstream:
                raise ConfigError(f"{as_flag(name)} does nothing without --include-upstream; add it")
        check_ignored(self.ignore_variables, [*self.variables, *self.target_variables, *self.upstream_variables])
        parse_mask_values(self.mask_values)
        self._check_network()
        if self.upstream_variables and not self.upstream_data:
            raise ConfigError("--upstream-variables does nothing without --upstream-data; add it")
        self._check_learning()
        if self.amp_dtype != "auto" and not self.use_amp:
            raise ConfigError(f"--amp-dtype {self.amp_dtype} does nothing without --use-amp; add it")

    def _check_network(self) -> None:
        """What not every network can do."""
        if self.upstream_fusion != "resample" and not self.include_upstream:
            raise ConfigError("--upstream-fusion does nothing without --include-upstream; add it")
        if self.upstream_coarsen > 1 and not self.include_upstream:
            raise ConfigError("--upstream-coarsen does nothing without --include-upstream; add it")
        if self.model == "shi2015" and self.include_upstream:
            raise ConfigError("--model shi2015 reads no upstream regions; take another or drop --include-upstream")

    def _check_learning(self) -> None:
        """The settings of loss and schedule, which lean on each other."""
        if self.huber_delta == 0:
            raise ConfigError("--huber-delta 0: must be above 0; for lines only, take --loss mae")
        if not 0 < self.plateau_factor < 1:
            raise ConfigError(f"--plateau-factor {self.plateau_factor:g}: must be above 0 and below 1")
        if self.scheduled_sampling > 1:
            raise ConfigError(f"--scheduled-sampling {self.scheduled_sampling:g}: a probability is at most 1")
        defaults = {entry.name: entry.default for entry in fields(self)}
        for name, needed, value in (
            ("huber_delta", "loss", "huber"),
            ("plateau_factor", "schedule", "plateau"),
            ("plateau_patience", "schedule", "plateau"),
        ):
            if getattr(self, name) != defaults[name] and getattr(self, needed) != value:
                raise ConfigError(f"{as_flag(name)} does nothing without {as_flag(needed)} {value}; add it")
        if self.num_epochs != AUTO and self.curriculum_epochs > self.num_epochs:
            raise ConfigError(f"--curriculum-epochs {self.curriculum_epochs}: the run has {self.num_epochs} epochs")
        for name in ("curriculum_epochs", "scheduled_sampling"):
            if getattr(self, name) and self.lead_steps == 1:
                raise ConfigError(f"{as_flag(name)} does nothing with one lead time; raise --lead-steps")
        parse_weights("--variable-weights", self.variable_weights)
        parse_rain_weights(self.rain_weights)

    @staticmethod
    def _check_range(name: str, value: Any, low: float | None) -> None:
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if low is not None and number is not None and not low <= number < 2**63:
                raise ConfigError(f"{as_flag(name)} {number:g}: must be at least {low:g} and less than 2^63")

    @staticmethod
    def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
        if choices and value not in choices:
            raise ConfigError(f"{as_flag(name)} {value}: there are {', '.join(choices)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, tuples as lists, for JSON and checkpoints."""
        entries = json.loads(json.dumps(asdict(self)))
        wanted = {entry.name for entry in fields(self) if entry.metadata["auto"]}
        return {name: "auto" if name in wanted and value == AUTO else value for name, value in entries.items()}

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


def parse_weights(option: str, entries: Sequence[str], *, example: str = "t2m=2") -> dict[str, float]:
    """Entries such as "t2m=2" as names and weights.

    Raises:
        ConfigError: for an entry of another form, a weight below 0, or a name that is there twice.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        name, _, text = entry.rpartition("=")
        weight = _number(text)
        if not name or not 0 <= weight < math.inf:
            raise ConfigError(f"{option} {entry}: write it as {example}, with a weight of at least 0")
        if name in weights:
            raise ConfigError(f"{option} {entry}: '{name}' has a weight already")
        weights[name] = weight
    return weights


def parse_mask_values(entries: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Entries such as "1" or "tp_qc=0,1" as values by mask; those of all other masks are under "".

    Raises:
        ConfigError: for an entry of another form, or a mask that is there twice.
    """
    values: dict[str, tuple[float, ...]] = {}
    for entry in entries:
        name, _, text = entry.rpartition("=")
        numbers = tuple(_number(part) for part in text.split(","))
        if not all(math.isfinite(number) for number in numbers):
            raise ConfigError(f"--mask-values {entry}: write the values that mean observed, as in 1 or tp_qc=0,1")
        if name and name in values:
            raise ConfigError(f"--mask-values {entry}: there are values for '{name}' already")
        values[name] = values.get(name, ()) + numbers
    return values


def check_ignored(ignored: Sequence[str], named: Sequence[str]) -> None:
    """Refuse to leave out what is asked for.

    Raises:
        ConfigError: naming it.
    """
    for name in named:
        if any(fnmatchcase(name.partition("@")[0], pattern) for pattern in ignored):
            raise ConfigError(
                f"--ignore-variables {' '.join(ignored)}: another option asks for '{name}'; drop one of them"
            )


def parse_rain_weights(entries: Sequence[str]) -> dict[float, float]:
    """Entries such as "5=2" as thresholds (mm per step, increasing) and weights.

    Raises:
        ConfigError: for an entry of another form, or a threshold that is not above 0.
    """
    weights = parse_weights("--rain-weights", entries, example="5=2")
    for text in weights:
        if not 0 < _number(text) < math.inf:
            raise ConfigError(f"--rain-weights {text}=...: a threshold is a number of mm above 0, as in 5=2")
    return dict(sorted((float(text), weight) for text, weight in weights.items()))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _coerce(value: Any, entry: Field, where: str) -> Any:
    """A JSON or TOML value as the field's type: lists become tuples, integers floats; anything else is an error."""
    kind, shape = entry.metadata["kind"], entry.metadata["shape"]
    if value is None and entry.default is None:
        return None
    if shape == "one":
        return _or_auto(value, entry, where) if entry.metadata["auto"] else _scalar(value, kind, where)
    if shape == "box":
        return _box(value, where)
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(_box(item, where) if shape == "boxes" else _scalar(item, kind, where) for item in items)


def _or_auto(value: Any, entry: Field, where: str) -> Any:
    if value == "auto":
        return AUTO
    number = _scalar(value, entry.metadata["kind"], where)
    if number == AUTO:
        raise ConfigError(f"{as_flag(entry.name)} {number}: must be at least 1, or auto")
    return number


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
