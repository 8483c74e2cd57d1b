"""One optimiser step, and a validation pass: the only places where the network meets its loss.

Shapes: B batch, T input times, L lead times, C input channels, D target channels, H lat, W lon.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convlstm_wx.config import TrainConfig
from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.device import DevicePolicy
from convlstm_wx.distributed import Processes
from convlstm_wx.training.averaging import AveragedWeights
from convlstm_wx.training.losses import WeightedSquaredError, mean_loss, persistence


def make_optimizer(network: nn.Module, config: TrainConfig, policy: DevicePolicy) -> torch.optim.AdamW:
    """AdamW [Loshchilov and Hutter 2019] that decays convolution kernels, not biases."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    biases = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    fused = policy.fused_optimizer and not policy.use_grad_scaler
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=fused or None)


@dataclass
class Learner:
    """A network and all that changes with it.

    Attributes:
        noise_C11: standard deviation of the noise that training adds to each input channel (0 for masks).
    """

    network: nn.Module
    loss: WeightedSquaredError
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    averaged: AveragedWeights
    policy: DevicePolicy
    processes: Processes
    noise_C11: Tensor
    clip_norm: float

    def learn(self, batches: Sequence[TensorBatch], learning_rate: float) -> tuple[float, float] | None:
        """One optimiser step from this process's micro-batches.

        The loss is divided by the valid points of the whole step, over all micro-batches and processes: four
        micro-batches of 2 teach the same as one batch of 8.

        Returns:
            The sums of loss and of weights over the step, or None if the gradient was not finite and the step skipped.
        """
        self.network.train()
        points = math.fsum(float((batch.valid_BLDHW * self.loss.area_H1).sum()) for batch in batches)
        (all_points,) = self.processes.sum(points)
        if all_points == 0:
            return 0.0, 0.0
        total = 0.0
        for batch in batches:
            error, _ = self.error(batch, with_noise=True)
            self.scaler.scale(error / all_points).backward()
            total += float(error.detach())
        (all_error,) = self.processes.sum(total)
        return (all_error, all_points) if self._descend(learning_rate) else None

    def error(self, batch: TensorBatch, *, with_noise: bool) -> tuple[Tensor, Tensor]:
        """Sums of the loss and of its weights over a batch."""
        x = batch.x_BTCHW
        if with_noise:
            x = x + self.noise_C11 * torch.randn_like(x)
        with self.policy.autocast():
            forecast = self.network(x, batch.forcing_BSFHW, batch.upstream)
        return self.loss(forecast, batch.y_BLDHW, batch.valid_BLDHW)

    def _descend(self, learning_rate: float) -> bool:
        """Clip and step; False if the gradient is not finite."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.processes.sum_gradients(parameters)  # still scaled: all processes then unscale, or skip, alike
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm or torch.inf)
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.scaler.step(self.optimizer)
            self.averaged.update()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return is_finite

    @torch.no_grad()
    def validate(self, batches: Iterable[TensorBatch]) -> float:
        """Mean loss of the averaged weights."""
        self.network.eval()
        with self.averaged.applied():
            return self._mean(batches, lambda batch: self.error(batch, with_noise=False))

    @torch.no_grad()
    def persistence_loss(self, batches: Iterable[TensorBatch], target_indices: list[int]) -> float:
        """The same for persistence, to compare with."""

        def error(batch: TensorBatch) -> tuple[Tensor, Tensor]:
            guess = persistence(batch.x_BTCHW, target_indices, batch.y_BLDHW.shape[1])
            return self.loss(guess, batch.y_BLDHW, batch.valid_BLDHW)

        return self._mean(batches, error)

    def _mean(self, batches: Iterable[TensorBatch], error: Callable[[TensorBatch], tuple[Tensor, Tensor]]) -> float:
        """Mean loss over all batches of all processes, from each batch's sums of error and of weights."""
        total, points = 0.0, 0.0
        for batch in batches:
            sums = error(batch)
            total, points = total + float(sums[0]), points + float(sums[1])
        return mean_loss(*self.processes.sum(total, points))
