"""The ConvLSTM layer against a textbook cell: time and memory of the same networks, side by side in one process.

    python scripts/benchmark_convlstm.py [--workloads W1 W2 W3] [--rounds 7] [--skip-memory] [--skip-windows]

Prints Markdown. W1: encoder, bottleneck and decoder, 6 frames of 56 channels on 61x61 points, batch 4. W2: two layers
of 64 on 32x32, 10 frames in, 10 out, batch 8. W3: one layer of 64 with normalised gates, 12 frames of 20 channels on
128x128, batch 2. Variants take turns, so that a noisy machine slows all of them alike; a ratio is the median of the
ratios of neighbouring runs. "Ceiling" is the time of the fewest convolutions that give the result (no convolution of
zeros, no gradient for data), one after the other, as a share of the time of the whole.
"""

import argparse
import functools
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from convlstm_wx.models import compiled
from convlstm_wx.models.convlstm import ConvLSTM

GATE_GROUPS = 8
HIDDEN = 64


class TextbookConvLSTM(nn.Module):
    """As public cells do it: input and state side by side in one convolution a step, from states of zeros."""

    def __init__(self, input_channels: int, hidden_channels: int, *, gate_norm_groups: int | None = None):
        super().__init__()
        gates = 4 * hidden_channels
        self.hidden_channels = hidden_channels
        self.conv = nn.Conv2d(input_channels + hidden_channels, gates, 3, padding=1)
        self.norm = nn.GroupNorm(gate_norm_groups, gates) if gate_norm_groups else nn.Identity()

    def forward(self, x_BTCHW: Tensor, state=None):
        if state is None:
            zeros = x_BTCHW.new_zeros(x_BTCHW.shape[0], self.hidden_channels, *x_BTCHW.shape[3:])
            state = zeros, zeros
        h, c = state
        outputs = []
        for time_index in range(x_BTCHW.shape[1]):
            gates = self.norm(self.conv(torch.cat([x_BTCHW[:, time_index], h], dim=1)))
            i, f, g, o = gates.chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, c)


def folded(run: Callable[[Tensor], Tensor], x_BTCHW: Tensor) -> Tensor:
    """A layer without recurrence at all times at once, time-major as our layer's output is."""
    y = run(x_BTCHW.transpose(0, 1).flatten(0, 1))
    return y.unflatten(0, (x_BTCHW.shape[1], -1)).transpose(0, 1)


class W1(nn.Module):
    """Encoder, pool, bottleneck, upsample, one step of decoder, head: the ConvLSTM U-Net."""

    shape = (4, 6, 56, 61, 61)
    target = (4, 20, 61, 61)

    def __init__(self, layer: Callable[..., nn.Module]):
        super().__init__()
        self.encoder, self.bottleneck, self.decoder = layer(56, 32), layer(32, 64), layer(96, 32)
        self.head = nn.Conv2d(32, 20, 1)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        return self.after_encoder(self.encoder(x_BTCHW)[0])

    def after_encoder(self, fine: Tensor) -> Tensor:
        coarse = self.bottleneck(folded(lambda x: functional.max_pool2d(x, 2), fine))[0][:, -1]
        grown = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        both = torch.cat([grown, fine[:, -1]], dim=1)
        return self.head(self.decoder(both.unsqueeze(1))[0][:, -1])


class W2(nn.Module):
    """Two layers; ten frames in, ten frames out, each from the one before."""

    shape = (8, 10, 16, 32, 32)
    target = (8, 10, 16, 32, 32)

    def __init__(self, layer: Callable[..., nn.Module]):
        super().__init__()
        self.first, self.second = layer(16, HIDDEN), layer(HIDDEN, HIDDEN)
        self.head = nn.Conv2d(HIDDEN, 16, 1)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        hidden, first = self.first(x_BTCHW)
        hidden, second = self.second(hidden)
        frames = [self.head(hidden[:, -1])]
        for _ in range(9):
            hidden, first = self.first(frames[-1].unsqueeze(1), first)
            hidden, second = self.second(hidden, second)
            frames.append(self.head(hidden[:, 0]))
        return torch.stack(frames, dim=1)


class W3(nn.Module):
    """One layer with normalised gates on a large grid."""

    shape = (2, 12, 20, 128, 128)
    target = (2, 12, HIDDEN, 128, 128)

    def __init__(self, layer: Callable[..., nn.Module]):
        super().__init__()
        self.layer = layer(20, HIDDEN, gate_norm_groups=GATE_GROUPS)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        return self.layer(x_BTCHW)[0]


WORKLOADS = {"W1": W1, "W2": W2, "W3": W3}


def convolutions(name: str) -> Iterable[tuple[int, int, int, int, int, str]]:
    """The fewest that training needs: (times, batch, in, out, grid, passes): f forward, d data, w weight gradient."""
    if name == "W1":
        yield from [(1, 4, 56, 96, 61, "fw"), (5, 4, 56, 128, 61, "fw"), (5, 4, 32, 128, 61, "fdw")]
        yield from [(1, 4, 32, 192, 30, "fdw"), (5, 4, 32, 256, 30, "fdw"), (5, 4, 64, 256, 30, "fdw")]
        yield 1, 4, 96, 96, 61, "fdw"
    elif name == "W2":
        yield from [(1, 8, 16, 192, 32, "fw"), (9, 8, 16, 256, 32, "fw"), (9, 8, 16, 256, 32, "fdw")]
        yield from [(1, 8, 64, 192, 32, "fdw"), (18, 8, 64, 256, 32, "fdw"), (37, 8, 64, 256, 32, "fdw")]
    else:
        yield from [(1, 2, 20, 192, 128, "fw"), (11, 2, 20, 256, 128, "fw"), (11, 2, 64, 256, 128, "fdw")]


def ceiling(name: str, dtype: torch.dtype, *, training: bool) -> Callable[[], None]:
    """Runs those convolutions and nothing else."""
    calls = []
    for times, batch, inputs, outputs, grid, passes in convolutions(name):
        x = random(batch, inputs, grid, grid).to(dtype).contiguous(memory_format=torch.channels_last)
        y = random(batch, outputs, grid, grid).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = random(outputs, inputs, 3, 3).to(dtype)
        calls.append((times, x, y, weight, ["d" in passes, "w" in passes, False]))

    @torch.no_grad()
    def run() -> None:
        for times, x, _, weight, _ in calls:
            for _ in range(times):
                functional.conv2d(x, weight, padding=1)
        for times, x, y, weight, wanted in calls if training else ():
            for _ in range(times):
                torch.ops.aten.convolution_backward(
                    y, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
                )

    return run


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "textbook": TextbookConvLSTM,
    "ours": ConvLSTM,
    "ours, recomputing": lambda *sizes, **options: ConvLSTM(*sizes, **options, memory="recompute"),
}


def a_run(
    name: str,
    variant: str,
    *,
    training: bool,
    bf16: bool,
    device: str = "cpu",
    data_sets: int = 3,
    grid: int | None = None,
) -> Callable[[], object]:
    """One training step, or one forecast, of a workload built from a variant of the layer; fresh inputs each time."""
    torch.manual_seed(0)
    network = WORKLOADS[name](LAYERS[variant.removesuffix(", no compiler").removesuffix(", compiled")]).to(device)
    if device == "cuda":
        network = network.to(memory_format=torch.channels_last)
    if variant.endswith(", compiled"):
        network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    shape, target = WORKLOADS[name].shape, WORKLOADS[name].target
    if grid is not None:
        shape, target = (*shape[:-2], grid, grid), (*target[:-2], grid, grid)
    no_compiler = variant.endswith(", no compiler")

    # Drawing them takes long enough to blur what is measured: a few sets in turn, none twice in a row.
    data = itertools.cycle(
        [(torch.rand(shape, device=device), torch.rand(target, device=device)) for _ in range(data_sets)]
    )

    def run() -> None:
        if no_compiler:
            os.environ[compiled.NO_COMPILER] = "1"
        x, y = next(data)
        with torch.set_grad_enabled(training), torch.autocast(device, torch.bfloat16, enabled=bf16):
            forecast = network(x)
        if training:
            functional.mse_loss(forecast.float(), y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        os.environ.pop(compiled.NO_COMPILER, None)

    return run


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, taking turns, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast]))


def has_compiler() -> bool:
    return compiled.library(torch.float32) is not None


def measure_speed(name: str, rounds: int) -> None:
    for training in (True, False):
        kind = "training step" if training else "inference"
        runs = {
            "textbook": a_run(name, "textbook", training=training, bf16=False),
            "ours": a_run(name, "ours", training=training, bf16=False),
            "ours, no compiler": a_run(name, "ours, no compiler", training=training, bf16=False),
            "ceiling": ceiling(name, torch.float32, training=training),
            "textbook bf16": a_run(name, "textbook", training=training, bf16=True),
            "ours bf16": a_run(name, "ours", training=training, bf16=True),
            "ceiling bf16": ceiling(name, torch.bfloat16, training=training),
        }
        if has_compiler():
            runs["textbook, compiled"] = a_run(name, "textbook, compiled", training=training, bf16=False)
        if training:
            runs["ours, recomputing"] = a_run(name, "ours, recomputing", training=True, bf16=False)
        seconds = alternate(runs, rounds)
        for variant in runs:
            if variant.startswith("ceiling"):
                continue
            top = "ceiling bf16" if variant.endswith("bf16") else "ceiling"
            row(
                *(name, kind, variant, f"{1e3 * statistics.median(seconds[variant]):.0f} ms"),
                f"{ratio(seconds, 'textbook', variant):.2f}x",
                f"{ratio(seconds, 'textbook bf16', variant):.2f}x" if variant.endswith("bf16") else "",
                f"{ratio(seconds, 'textbook, compiled', variant):.2f}x" if "textbook, compiled" in runs else "",
                f"{100 * ratio(seconds, top, variant):.0f} %",
            )


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def peak_memory(name: str, variant: str, bf16: bool) -> float:
    """MB that training adds to a fresh process, at its peak."""
    command = [sys.executable, __file__, "--memory-of", name, variant, "bf16" if bf16 else "float32"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report_own_memory(name: str, variant: str, precision: str) -> None:
    """In a process of its own. VmHWM and not ru_maxrss, which starts at the peak of the parent that forked."""

    def kilobytes(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    bf16 = precision == "bf16"
    a_run(name, variant, training=True, bf16=bf16, grid=8)()  # loads all code that it needs
    before = kilobytes("VmRSS")
    run = a_run(name, variant, training=True, bf16=bf16, data_sets=1)
    for _ in range(3):
        run()
    print((kilobytes("VmHWM") - before) / 1024)


def measure_memory(name: str) -> None:
    reference = peak_memory(name, "textbook", bf16=False)
    for variant in LAYERS:
        for bf16 in (False, True):
            used = peak_memory(name, variant, bf16)
            row(name, variant + (" bf16" if bf16 else ""), f"{used:.0f} MB", f"{used / reference:.2f}")


@torch.no_grad()
def measure_windows(rounds: int, frames: int = 18) -> None:
    """Forecasts from every window of 6 frames of a record: neighbouring windows share five of them."""
    ours, textbook = W1(ConvLSTM).eval(), W1(TextbookConvLSTM).eval()
    _, times, channels, height, width = W1.shape
    record = torch.rand(frames, channels, height, width)
    windows = frames - times + 1

    def each_window(network: W1) -> None:
        for start in range(0, windows, 4):
            chosen = range(start, min(start + 4, windows))
            network(torch.stack([record[first : first + times] for first in chosen]))

    def shared(gates_FGHW: Tensor) -> None:
        """Gates go into an array that stays; a batch of windows is an overlapping view of it, not a copy."""
        gates_WTGHW = gates_FGHW.unfold(0, times, 1).movedim(-1, 1)
        done = 0
        for start in range(0, windows, 4):
            needed = min(start + 4 + times - 1, frames)
            gates_FGHW[done:needed] = ours.encoder.input_gates(record[None, done:needed])[0]
            done = needed
            ours.after_encoder(ours.encoder.unroll(gates_WTGHW[start : start + 4])[0])

    for bf16 in (False, True):
        dtype = torch.bfloat16 if bf16 else torch.float32
        gates = torch.empty(frames, 128, height, width, dtype=dtype, memory_format=torch.channels_last)
        runs = {
            "textbook": lambda: each_window(textbook),
            "ours": lambda: each_window(ours),
            "shared": functools.partial(shared, gates),
        }
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            seconds = alternate(runs, rounds)
        for variant in runs:
            name = {"shared": "ours, input convolution once a frame"}.get(variant, variant)
            milliseconds = 1e3 * statistics.median(seconds[variant])
            row(
                name,
                "bf16" if bf16 else "float32",
                f"{milliseconds:.0f} ms",
                f"{ratio(seconds, 'textbook', variant):.2f}x",
            )


def measure_cuda(names: list[str], rounds: int) -> None:
    print(f"\n## {torch.cuda.get_device_name()}\n")
    torch.backends.cudnn.benchmark = True
    table("workload", "batch", "variant", "time", "over the textbook cell")
    for name in names:
        for batch in (4, 64) if name == "W1" else (WORKLOADS[name].shape[0],):
            WORKLOADS[name].shape = (batch, *WORKLOADS[name].shape[1:])
            WORKLOADS[name].target = (batch, *WORKLOADS[name].target[1:])
            for bf16 in (False, True):
                runs = {v: a_run(name, v, training=True, bf16=bf16, device="cuda") for v in ("textbook", "ours")}
                seconds = alternate(runs, rounds)
                for variant in runs:
                    label = variant + (" bf16" if bf16 else "")
                    milliseconds = 1e3 * statistics.median(seconds[variant])
                    row(
                        name, str(batch), label, f"{milliseconds:.1f} ms", f"{ratio(seconds, 'textbook', variant):.2f}x"
                    )


def table(*heads: str) -> None:
    row(*heads)
    row(*("---" for _ in heads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each variant (default: 7)")
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-windows", action="store_true")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        report_own_memory(*arguments.memory_of)
        return
    print(f"PyTorch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads; ", end="")
    print("pointwise pass compiled" if has_compiler() else "pointwise pass in PyTorch: no compiler")
    if not arguments.skip_speed:
        print("\n## Speed on the CPU\n")
        over = ("over the textbook cell", "over it in bf16", "over it compiled")
        table("workload", "what", "variant", "time", *over, "of the ceiling")
        for name in arguments.workloads:
            measure_speed(name, arguments.rounds)
    if not arguments.skip_memory:
        print("\n## Peak memory of training on the CPU\n")
        table("workload", "variant", "peak", "of the textbook cell's")
        for name in arguments.workloads:
            measure_memory(name)
    if not arguments.skip_windows:
        print("\n## Inference from every window of 6 frames of a record (W1)\n")
        table("variant", "precision", "time", "over the textbook cell")
        measure_windows(arguments.rounds)
    if torch.cuda.is_available():
        measure_cuda(arguments.workloads, arguments.rounds)
    else:
        print("\nNo CUDA GPU here: its rows were skipped.")


if __name__ == "__main__":
    main()
