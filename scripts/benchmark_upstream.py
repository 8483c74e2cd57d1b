"""What a coarser upstream region saves in a training step: factors of --upstream-coarsen side by side, alternating.

    python scripts/benchmark_upstream.py --data regional.nc --target-region 25 40 110 125 \
        --upstream-region 25 50 70 110 --use-amp --factors 1 2 3 none

Takes the options of `train`. A step is all that training does for one: windows gathered, forward and backward pass,
clipping, optimiser. "none" leaves the upstream region out. Prints the median seconds of a step, the median of the
ratios to the first factor, and the memory that a batch needs.
"""

import argparse
import statistics
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from convlstm_wx.commands.options import add_settings, training_config, training_device
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.data.loaders import in_batches
from convlstm_wx.distributed import Processes
from convlstm_wx.files import describe_bytes
from convlstm_wx.training.loop import Run
from convlstm_wx.training.probe import probe


class Steps:
    """Training steps with one factor."""

    def __init__(self, run: Run):
        self.run = run
        self.batch_bytes = probe(run).batch_bytes
        self.start = 0

    def step(self) -> float:
        """Seconds of the next one."""
        size, count = self.run.config.batch_size, len(self.run.training_windows)
        numbers = [(self.start + index) % count for index in range(size)]
        self.start += size
        started = time.perf_counter()
        batches = self.run.load(self.run.training_windows, in_batches(numbers, size))
        self.run.learner.learn(islice(batches, 1), 1e-4)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_settings(parser, without=("include_upstream", "upstream_coarsen"))
    parser.add_argument("--factors", nargs="+", default=["1", "2", "3", "none"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    options.include_upstream = True
    config = training_config(options)
    policy = training_device(config)
    ways = {}
    for factor in options.factors:
        if factor == "none":
            changed = replace(config, include_upstream=False, upstream_region=(), upstream_data=())
        else:
            changed = replace(config, upstream_coarsen=int(factor))
        run = Run(changed, prepare_training(changed), policy, Path(), Processes())
        ways[factor] = Steps(run)
    seconds: dict[str, list[float]] = {factor: [] for factor in ways}
    for _ in tqdm(range(options.rounds), desc="rounds", disable=None):
        for factor, steps in ways.items():
            seconds[factor].append(steps.step())
    first = next(iter(ways))
    for factor, steps in ways.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], seconds[factor]))
        print(
            f"factor {factor:>4}  {statistics.median(seconds[factor]):.2f} s a step, {ratio:.2f} times as fast as "
            f"{first}; {describe_bytes(steps.batch_bytes)} for a batch"
        )


if __name__ == "__main__":
    main()
