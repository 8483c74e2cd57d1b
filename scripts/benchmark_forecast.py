"""Would forecasts from consecutive init times gain if neighbouring windows shared the encoder's first convolutions?

    python scripts/benchmark_forecast.py

Windows of T input times one step apart have T - 1 times in common: of those the stem and the input's share of the first
ConvLSTM's gates could be computed once a time rather than once a window. The network is the default one with made-up
weights; timed is the network alone, without reading and writing: the ratio is the most that sharing could bring.

Shapes: B batch, T input times, F different times of a batch, C channels, H lat, W lon.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from convlstm_wx.config import TrainConfig
from convlstm_wx.models.blocks import fold_times, unfold_times
from convlstm_wx.models.build import build
from convlstm_wx.models.convlstm import State
from convlstm_wx.models.network import Network

GRIDS = {"ERA-Interim": (21, 24), "made-up": (61, 65)}
CHANNELS, FORCINGS = 3, 9


def default_network() -> Network:
    config = TrainConfig(data=("none.nc",))
    options = {
        "input_channels": CHANNELS,
        "target_indices": list(range(CHANNELS)),
        "target_mask_indices": [-1] * CHANNELS,
        "mask_channels": 0,
        "forcing_channels": FORCINGS,
        "upstream_channels": [],
        "increment_scale": [1.0] * CHANNELS,
        "hidden_channels": list(config.hidden_channels),
        "kernel_size": config.kernel_size,
        "dropout": config.dropout,
    }
    return build(config.model, options).eval().to(memory_format=torch.channels_last)


def read_shared(network: Network) -> Callable[[Tensor], list[State]]:
    """RecurrentPyramid.read for windows that are one step apart."""
    encoder = network.encoder

    def read(x_BTCHW: Tensor) -> list[State]:
        times = x_BTCHW.shape[1]
        x_FCHW = torch.cat([x_BTCHW[0], x_BTCHW[1:, -1]]).contiguous(memory_format=torch.channels_last)
        features = functional.silu(encoder.stem(x_FCHW))
        gates_FGHW = encoder.cells[0].input_gates(features.unsqueeze(0))[0]
        gates_BTGHW = gates_FGHW.unfold(0, times, 1).movedim(-1, 1)
        hidden_BTKHW, state = encoder.cells[0].unroll(gates_BTGHW)
        states = [state]
        for down, cell in zip(encoder.downs, encoder.cells[1:]):
            features = functional.silu(down(fold_times(hidden_BTKHW)))
            hidden_BTKHW, state = cell(unfold_times(features, times))
            states.append(state)
        return states

    return read


@torch.inference_mode()
def measure(size: tuple[int, int], *, bf16: bool, batch: int, lead_steps: int, rounds: int) -> tuple[float, float]:
    """Milliseconds of a forecast without sharing, and the median ratio to it with."""
    torch.manual_seed(0)
    each, shared = default_network(), default_network()
    shared.load_state_dict(each.state_dict())
    shared.encoder.read = read_shared(shared)
    times = TrainConfig(data=("none.nc",)).input_steps
    record_FCHW = torch.randn(batch + times - 1, CHANNELS, *size)
    forcing_FCHW = torch.randn(batch + times - 1 + lead_steps, FORCINGS, *size)
    x_BTCHW = record_FCHW.unfold(0, times, 1).movedim(-1, 1).contiguous()
    forcing_BSFHW = forcing_FCHW.unfold(0, times + lead_steps, 1).movedim(-1, 1).contiguous()
    seconds: dict[str, list[float]] = {"each": [], "shared": []}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        made = [network(x_BTCHW, forcing_BSFHW) for network in (each, shared)]
        torch.testing.assert_close(*made, rtol=0.1 if bf16 else 1e-4, atol=0.1 if bf16 else 1e-4)
        for _ in range(rounds):
            for name, network in (("each", each), ("shared", shared)):
                started = time.perf_counter()
                network(x_BTCHW, forcing_BSFHW)
                seconds[name].append(time.perf_counter() - started)
    ratios = [one / other for one, other in zip(seconds["each"], seconds["shared"])]
    return 1e3 * statistics.median(seconds["each"]), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lead-steps", type=int, nargs="+", default=[4])
    arguments = parser.parse_args()
    print("| grid | lead steps | precision | each window on its own | gain of sharing |\n|---|---|---|---|---|")
    for name, size in GRIDS.items():
        for lead_steps in arguments.lead_steps:
            for bf16 in (False, True):
                given = {"batch": arguments.batch, "lead_steps": lead_steps, "rounds": arguments.rounds}
                milliseconds, ratio = measure(size, bf16=bf16, **given)
                shape = " x ".join(map(str, size))
                precision = "bfloat16" if bf16 else "float32"
                print(f"| {name}, {shape} | {lead_steps} | {precision} | {milliseconds:.0f} ms | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
