"""A probe: one real batch through all of a training step but its last act, so that nothing can fail an hour later.

Nothing is learned and nothing is moved: weights, optimiser and gradient scaler are as before.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.errors import TrainingError
from convlstm_wx.training.loop import Run
from convlstm_wx.training.memory import DoesNotFitError, fitting, too_little

_PASSING_SHARE = 0.5  # of what is kept: gradients under way and workspace, measured on a CPU
_FORWARD_SHARE = 1 / 3  # of a training step: a validation step has no backward pass
_VALUES_PER_PARAMETER = 5  # weight, gradient, two moments, moving average; float32 all


@dataclass(frozen=True)
class Probe:
    """What one batch costs.

    Attributes:
        windows: in the batch.
        lead_steps: of the rollout.
        loss: mean over the valid points, of the network as it stands; 1 is an error of one typical one-step change.
        seconds: of the forward and the backward pass.
        batch_bytes: what the batch needs while it is learned from; grows with the windows.
        network_bytes: weights, gradients, moments and moving average; does not.
    """

    windows: int
    lead_steps: int
    loss: float
    seconds: float
    batch_bytes: int
    network_bytes: int

    def windows_that_fit(self, memory_bytes: float) -> int:
        """The largest batch size, a power of two, that needs at most so much memory; 0 if one window is too much."""
        fitting = (memory_bytes - self.network_bytes) * self.windows / max(1, self.batch_bytes)
        return 2 ** int(math.log2(fitting)) if fitting >= 1 else 0


def probe(run: Run, *, size: int | None = None, repeats: int = 1) -> Probe:
    """The first batch of the training windows through forward pass, loss and backward pass, at all lead times.

    Args:
        run: which is about to train.
        size: windows of the batch; by default as many as the run takes at once.
        repeats: how often; the fastest is told, as the first pass also warms up.

    Raises:
        DoesNotFitError: if there is too little memory, in this process or in a sibling.
        TrainingError: if the loss or a gradient is not finite.
    """
    size = min(size or run.micro_batch, len(run.training_windows))
    try:
        with fitting(run.processes), _undone(run):
            batch = next(iter(run.load(run.training_windows, [np.arange(size)])))
            passes = [_pass(run, batch) for _ in range(repeats)]
    except DoesNotFitError:
        raise DoesNotFitError(too_little(run.config, run.policy, size)) from None
    loss, _, needed = passes[0]
    return Probe(
        windows=size,
        lead_steps=batch.y_BLDHW.shape[1],
        loss=loss,
        seconds=min(seconds for _, seconds, _ in passes),
        batch_bytes=needed + _batch_bytes(batch),
        network_bytes=4 * _VALUES_PER_PARAMETER * run.parameters,
    )


def epoch_seconds(run: Run, probed: Probe) -> float:
    """How long an epoch takes about, validation included, without waiting for data."""
    training, validation = (
        math.ceil(len(windows) / run.processes.world_size / probed.windows)
        for windows in (run.training_windows, run.validation_windows)
    )
    passes = 1 if run.learner.network.blend is None else 2  # the first fits the weights of the blend
    return probed.seconds * (training + passes * _FORWARD_SHARE * validation)


@contextmanager
def _undone(run: Run) -> Iterator[None]:
    """Whatever happens inside, the network is as before."""
    network = run.learner.network
    was_training = network.training
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        network.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)
        network.train(was_training)


def _pass(run: Run, batch: TensorBatch) -> tuple[float, float, int]:
    """Loss, seconds, and bytes that were needed, of one forward and backward pass."""
    learner = run.learner
    learner.network.train()
    kept = _Kept(run)
    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        error, points = learner.error(batch, with_noise=True)
    loss = error / points.clamp(min=1)
    (loss * learner.scaler.get_scale()).backward()
    finite = all(bool(torch.isfinite(p.grad).all()) for p in learner.network.parameters() if p.grad is not None)
    seconds = time.perf_counter() - started  # the question above has waited for the device
    # A scaler begins too high on purpose and lowers itself; without one, every gradient must be finite.
    value = float(loss.detach())
    if not math.isfinite(value) or not (finite or run.policy.use_grad_scaler):
        raise TrainingError(_not_finite(run, value))
    return value, seconds, kept.bytes()


class _Kept:
    """The memory that a forward and a backward pass need.

    CUDA's allocator knows its peak; elsewhere it is estimated from the tensors that autograd saves, each counted once.
    """

    def __init__(self, run: Run):
        self.device = run.policy.device
        self.sizes: dict[int, int] = {}
        self.weights = {p.untyped_storage().data_ptr() for p in run.learner.network.parameters()}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)

    def pack(self, tensor: Tensor) -> Tensor:
        """Note what autograd saves; it stays alive, so that its address is its own until the backward pass."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output itself would hold its own graph: for ever, where no backward pass follows

    def bytes(self) -> int:
        """How much it was."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return int((1 + _PASSING_SHARE) * sum(self.sizes.values()))


def _batch_bytes(batch: TensorBatch) -> int:
    tensors = [batch.x_BTCHW, batch.forcing_BSFHW, *batch.upstream, batch.y_BLDHW, batch.valid_BLDHW]
    return sum(tensor.nbytes for tensor in tensors)


def _not_finite(run: Run, loss: float) -> str:
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    amp = " or try --no-amp" if run.policy.amp_dtype is not None else ""
    return f"the first batch fails: {what}; look at the extremes of the data with convlstm-wx inspect{amp}"
