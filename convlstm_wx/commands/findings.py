"""What an inspection found, for people and for programs."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from convlstm_wx.config import AUTO, TrainConfig, as_flag

if TYPE_CHECKING:
    from convlstm_wx.data.account import Account
    from convlstm_wx.data.inputs import TrainingInputs
    from convlstm_wx.training.plan import Plan, RolePlan

OUTPUT_SETTINGS = ("output_dir", "checkpoint_frequency", "keep_checkpoints", "tensorboard")
_MOST_GAPS_LISTED = 20
_INDENT = "  "


@dataclass
class Findings:
    """What could be found out before something stopped it.

    Attributes:
        account: of the target region's data.
        inputs: the data as training would get them.
        roles: windows of each role.
        plan: memory and time.
        problem: what makes training impossible, in one line; "" where nothing does.
    """

    account: "Account | None" = None
    inputs: "TrainingInputs | None" = None
    roles: "list[RolePlan] | None" = None
    plan: "Plan | None" = None
    problem: str = ""


def told(findings: Findings, config: TrainConfig, *, each_channel: bool = False) -> Iterator[str]:
    """The account for people, section by section; on request with a row for each of many channels."""
    from convlstm_wx.text import wrap

    account = findings.account
    if account is not None:
        yield from _section("File", _file(account))
        yield from _section("Variables", _variables(account, each_channel))
        yield from _section("Time", _time(account))
    if findings.inputs is not None and findings.inputs.notes:
        yield from _section("Upstream", wrap(findings.inputs.notes, len(_INDENT)))
    if findings.inputs is not None and findings.roles:
        yield from _section("Windows", _windows(findings.inputs, findings.roles))
    if findings.plan is not None and findings.inputs is not None:
        yield from _section("Memory", _memory(findings.plan, config))
        yield from _section("One training batch", _batch(findings.plan))
    if account is not None:
        what = "gaps" if account.gaps else "uneven steps"
        notes = [f"the {what} in time, told above"] if account.time_warnings() else []
        notes += account.channel_warnings() or ([] if notes else ["nothing unusual"])
        yield from _section("To look at", wrap(notes, len(_INDENT)))


def _section(title: str, lines: "list[str] | Iterator[str]") -> Iterator[str]:
    yield title
    yield from (_INDENT + line for line in lines)
    yield ""


def _file(account: "Account") -> list[str]:
    from convlstm_wx.text import aligned

    renamed = [f"{ours} ('{theirs}' in the file)" for ours, theirs in account.axis_names.items() if ours != theirs]
    rows = [
        ["source", account.source],
        ["grid", account.grid()],
        ["axes", ", ".join(renamed)],
        ["levels", ", ".join(f"{level:g}" for level in account.levels) + " hPa" if account.levels else ""],
        ["static fields", ", ".join(account.static_fields)],
    ]
    return aligned([row for row in rows if row[1]])


def _variables(account: "Account", each_channel: bool) -> list[str]:
    from convlstm_wx.data.channel_account import joined, remarks
    from convlstm_wx.text import aligned, count, describe_levels

    groups = [[channel] for channel in account.channels] if each_channel else account.rows()
    by_channel = len(groups) == len(account.channels)
    head = ["channel", "", "meaning", "units", "lowest", "mean", "highest", "missing", "remarks"]
    if not by_channel:
        head[0], head[1], head[5] = "variable", "levels", ""  # a mean over levels would say nothing
    rows = []
    for levels in groups:
        c, several = joined(levels), len(levels) > 1
        lowest, mean, highest = (f"{v:.6g}" if c.values else "-" for v in (c.minimum, c.mean, c.maximum))
        rows.append(
            [
                c.variable if several else c.name,
                f"{count(len(levels), 'level')}, {describe_levels([each.level for each in levels])}" if several else "",
                c.meaning or "not recognised",
                c.units,
                lowest,
                mean if by_channel else "",
                highest,
                f"{100 * c.missing_share:.3g} %" if c.missing_share else "-",
                ", ".join(remarks(levels)),
            ]
        )
    lines = aligned([head, *rows], right=(4, 5, 6, 7))
    if any(channel.missing_share for channel in account.channels):
        lines.append("missing values are masked: the loss and the scores leave them out")
    if not by_channel:
        lines.append(f"{len(account.channels)} channels; --channels shows a row for each")
    return lines


def _time(account: "Account") -> Iterator[str]:
    from convlstm_wx.text import count

    each = f", one each {account.step}" if account.step else ""
    calendar = f", calendar {account.calendar}" if account.calendar else ""
    yield f"{count(account.steps, 'time')}{each}, from {account.period[0]} to {account.period[1]}{calendar}"
    if account.duplicate_times:
        yield f"{count(account.duplicate_times, 'time')} repeated; the first of each is shown above"
    if account.unsorted_times:
        yield f"{count(account.unsorted_times, 'time')} out of order; sorted above"
    if account.irregular_steps:
        yield f"{count(account.irregular_steps, 'time')} closer to the one before than {account.step}"
    lost = sum(gap.missing_steps for gap in account.gaps)
    if not account.gaps:
        yield from [] if account.irregular_steps else ["no gaps"]
        return
    yield f"{count(len(account.gaps), 'gap')}, {count(lost, 'step')} missing in all:"
    yield from (_INDENT + gap.line() for gap in account.gaps[:_MOST_GAPS_LISTED])
    if len(account.gaps) > _MOST_GAPS_LISTED:
        yield f"{_INDENT}and {len(account.gaps) - _MOST_GAPS_LISTED} more"


def _windows(inputs: "TrainingInputs", roles: "list[RolePlan]") -> Iterator[str]:
    from convlstm_wx.data.reading import describe_step
    from convlstm_wx.text import aligned, count, list_channels, wrap

    spec = inputs.spec
    yield from wrap([f"targets     {list_channels(spec.targets)}"], len(_INDENT))
    last = describe_step(spec.step * spec.lead_steps)
    yield (
        f"one window: {spec.input_steps} times in, {spec.lead_steps} to forecast "
        f"(+{describe_step(spec.step)} to +{last})"
    )
    rows = [[r.role, f"{r.first} to {r.last}", count(r.windows, "window"), _costs(r)] for r in roles]
    yield from aligned(rows, right=(2,))
    yield from wrap(
        [f"split {spec.split.method}; {count(spec.split.embargo_steps, 'step')} left out between the parts"],
        len(_INDENT),
    )


def _costs(role: "RolePlan") -> str:
    lost = [(role.lost_to_gaps, "gaps"), (role.lost_to_missing, "missing values")]
    told = [f"{number:,} lost to {cause}" for number, cause in lost if number]
    return ", ".join(told)


def _memory(plan: "Plan", config: TrainConfig) -> Iterator[str]:
    from convlstm_wx.files import describe_bytes
    from convlstm_wx.text import aligned, count

    budget = describe_bytes(plan.budget_bytes)
    data = f"{describe_bytes(plan.data_bytes)} in memory, as it fits the budget of {budget}"
    if not plan.in_memory:
        data = f"{plan.stored}, which training reads too: the budget is {budget}"
    yield from aligned(
        [
            ["data", data],
            ["network", f"{describe_bytes(plan.probe.network_bytes)} for {plan.parameters:,} parameters in training"],
            ["a batch", f"about {describe_bytes(plan.probe.batch_bytes)} for {count(plan.probe.windows, 'window')}"],
            ["device", f"{describe_bytes(plan.device_bytes)} to use: {_batch_advice(plan, config)}"],
        ]
    )


def _batch_advice(plan: "Plan", config: TrainConfig) -> str:
    from convlstm_wx.text import count

    size = plan.batch_size
    if plan.probe.windows < size and plan.largest_batch_size >= plan.probe.windows:
        return f"--batch-size {size} fits, as training has only {count(plan.probe.windows, 'window')}"
    if plan.largest_batch_size >= size:
        return f"--batch-size {size} fits; so would up to {plan.largest_batch_size:,}"
    if not plan.largest_batch_size:
        return "hardly one window; choose a smaller --target-region, fewer --hidden-channels or fewer --lead-steps"
    smaller = next(number for number in range(plan.largest_batch_size, 0, -1) if size % number == 0)
    steps = size // smaller * config.gradient_accumulation_steps
    return f"--batch-size {size} is tight; --batch-size {smaller} --gradient-accumulation-steps {steps} learns the same"


def _batch(plan: "Plan") -> Iterator[str]:
    from convlstm_wx.files import describe_duration
    from convlstm_wx.text import count

    probed = plan.probe
    yield (
        f"{count(probed.windows, 'window')} through the network and back, {count(probed.lead_steps, 'lead step')}: "
        f"{probed.seconds:.2g} s, loss {probed.loss:.3g} (untrained)"
    )
    yield f"so an epoch takes about {describe_duration(plan.epoch_seconds)}, validation included"


def last_line(findings: Findings, config: TrainConfig) -> str:
    """Ready, and how to train; or not, and why."""
    return f"not ready: {findings.problem}" if findings.problem else f"ready: {_command(config)}"


def _command(config: TrainConfig) -> str:
    """How to train with these settings: those that differ from the defaults."""
    words = ["python", "train_convlstm.py"]
    for entry in fields(TrainConfig):
        value = getattr(config, entry.name)
        if entry.name in OUTPUT_SETTINGS or value == entry.default:
            continue
        shown = "auto" if entry.metadata["auto"] and value == AUTO else value
        words += _as_words(as_flag(entry.name), shown, entry.metadata["shape"])
    return shlex.join(words)


def _as_words(flag: str, value: Any, shape: str) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if shape == "boxes":
        return [word for box in value for word in (flag, *(f"{number:.15g}" for number in box))]
    values = value if isinstance(value, tuple) else (value,)
    return [flag, *(f"{number:.15g}" if isinstance(number, float) else str(number) for number in values)]


def as_dict(findings: Findings, config: TrainConfig) -> dict[str, Any]:
    """The same for programs."""
    from convlstm_wx.data.account import finite_or_none

    inputs = findings.inputs
    found = {
        "ready": not findings.problem,
        "problem": findings.problem or None,
        "command": None if findings.problem else _command(config),
        "account": None if findings.account is None else findings.account.to_dict(),
        "split": None if inputs is None else inputs.spec.split.to_dict(),
        "windows": None if findings.roles is None else [vars(role) for role in findings.roles],
        "notes": [] if inputs is None else list(inputs.notes),
        "plan": None if findings.plan is None else findings.plan.to_dict(),
    }
    return finite_or_none(found)
