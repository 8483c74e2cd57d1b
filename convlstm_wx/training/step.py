"""One optimiser step, and a validation pass: the only places where the network meets its loss.

Shapes: B batch, T input times, L lead times, C input channels, D target channels, H lat, W lon.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from convlstm_wx.config import TrainConfig
from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.device import DevicePolicy
from convlstm_wx.distributed import Processes
from convlstm_wx.models.network import Network
from convlstm_wx.training.averaging import AveragedWeights
from convlstm_wx.training.blending import BlendFit
from convlstm_wx.training.losses import WeightedLoss, lead_weights, mean_loss, persistence
from convlstm_wx.training.memory import fitting

Watch = Callable[[Tensor, TensorBatch], None]  # is shown each forecast [B, L, D, H, W] of a pass with its batch


def unwatched(forecast_BLDHW: Tensor, batch: TensorBatch) -> None:
    """Nobody looks."""


def make_optimizer(network: nn.Module, config: TrainConfig, policy: DevicePolicy) -> torch.optim.AdamW:
    """AdamW [Loshchilov and Hutter 2019] that decays convolution kernels, not biases."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    biases = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    fused = policy.fused_optimizer and not policy.use_grad_scaler
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=fused or None)


def forecast_told_the_truth(network: Network, x_BTCHW: Tensor, batch: TensorBatch, truth_share: float) -> Tensor:
    """The forecast [B, L, D, H, W] of a network that is now and then told what became of the lead before.

    Scheduled sampling [Bengio et al. 2015]: at each lead time but the first, each window goes on from the true fields
    with probability `truth_share`, else from its own forecast; from its own also where the truth is missing.
    """
    times, forcing_BSFHW = x_BTCHW.shape[1], batch.forcing_BSFHW
    state = network.encode(x_BTCHW, forcing_BSFHW[:, :times], batch.upstream)
    forecast = []
    for lead, forcing_BFHW in enumerate(forcing_BSFHW[:, times:].unbind(1)):
        if lead:
            y_BDHW, valid_BDHW = batch.y_BLDHW[:, lead - 1], batch.valid_BLDHW[:, lead - 1]
            is_told_B111 = torch.rand(len(y_BDHW), 1, 1, 1, device=y_BDHW.device) < truth_share
            fields_BDHW = torch.where(is_told_B111 & (valid_BDHW > 0), y_BDHW, state.fields_BDHW)
            state = state._replace(fields_BDHW=fields_BDHW)
        state = network.advance(state, forcing_BFHW)
        forecast.append(state.fields_BDHW)
    return torch.stack(forecast, dim=1)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout, noise and told truth of an optimiser step: decided by these numbers alone, on all devices.

    A resumed or repeated step draws what it drew before, and no two processes draw the same.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


@dataclass
class Learner:
    """A network and all that changes with it.

    Attributes:
        noise_C11: standard deviation of the noise that training adds to each input channel (0 for masks).
        lead_power: of :func:`~convlstm_wx.training.losses.lead_weights`, for training alone.
        gradient_norm: of the newest step, before it was clipped.
    """

    network: Network
    loss: WeightedLoss
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    averaged: AveragedWeights
    policy: DevicePolicy
    processes: Processes
    noise_C11: Tensor
    clip_norm: float
    lead_power: float = 0.0
    gradient_norm: float = math.nan

    def learn(
        self, batches: Iterable[TensorBatch], learning_rate: float, *, truth_share: float = 0.0
    ) -> tuple[float, float] | None:
        """One optimiser step from this process's micro-batches.

        The loss is divided by the valid points of the whole step, over all micro-batches and processes: four
        micro-batches of 2 teach the same as one batch of 8.

        Args:
            batches: of one or more windows, with as many lead times as are to be learned.
            learning_rate: of this step.
            truth_share: see :func:`forecast_told_the_truth`.

        Returns:
            The sums of loss and of weights over the step, or None if loss or gradient were not finite and the step
            was skipped.

        Raises:
            DoesNotFitError: if the micro-batches are too large; nothing has changed then but gradients, which are to be
                thrown away.
        """
        self.network.train()
        total, points, divisor = 0.0, 0.0, 0
        with fitting(self.processes):
            for batch in batches:  # one at a time on the device
                error, weight = self.error(batch, with_noise=True, truth_share=truth_share)
                # How many points a step has is known at its end; until then any divisor does that float16 can bear.
                divisor = divisor or batch.y_BLDHW.numel()
                self.scaler.scale(error / divisor).backward()
                total, points = total + float(error.detach()), points + float(weight)
        all_error, all_points = self.processes.sum(total, points)
        if all_points == 0:
            self.forget_gradients()
            return 0.0, 0.0
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(divisor / all_points)
        return (all_error, all_points) if self._descend(learning_rate, all_error) else None

    def forget_gradients(self) -> None:
        """Those of a step that is not to be taken."""
        self.optimizer.zero_grad(set_to_none=True)

    def use_float32(self) -> None:
        """No half precision from now on."""
        self.policy = self.policy.in_float32()
        self.scaler = self.policy.make_scaler()

    def error(self, batch: TensorBatch, *, with_noise: bool, truth_share: float = 0.0) -> tuple[Tensor, Tensor]:
        """Sums of the loss, lead times weighted, and of its weights over a batch."""
        x = batch.x_BTCHW
        if with_noise:
            x = x + self.noise_C11 * torch.randn_like(x)
        with self.policy.autocast():
            if truth_share:
                forecast = forecast_told_the_truth(self.network, x, batch, truth_share)
            else:
                forecast = self.network(x, batch.forcing_BSFHW, batch.upstream)
        emphasis = lead_weights(forecast.shape[1], self.lead_power).to(batch.y_BLDHW)
        if batch.emphasis_BLDHW is not None:
            emphasis = emphasis * batch.emphasis_BLDHW
        return self.loss(forecast, batch.y_BLDHW, batch.valid_BLDHW, emphasis)

    def _descend(self, learning_rate: float, loss: float) -> bool:
        """Clip and step; False if the loss or the gradient is not finite: then nothing changes."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.processes.sum_gradients(parameters)  # still scaled: all processes then unscale, or skip, alike
        self.scaler.unscale_(self.optimizer)
        self.gradient_norm = float(nn.utils.clip_grad_norm_(parameters, self.clip_norm or torch.inf))
        is_finite = math.isfinite(loss) and math.isfinite(self.gradient_norm)
        if is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.scaler.step(self.optimizer)
            self.averaged.update()
        self.scaler.update()
        self.forget_gradients()
        return is_finite

    @torch.no_grad()
    def fit_blend(self, batches: Iterable[TensorBatch]) -> None:
        """Find how much the averaged weights' forecasts count beside the linear model's."""
        blend = self.network.blend
        if blend is None:
            return
        self.network.eval()
        fit = BlendFit(self.loss.area_H1, *blend.weights_2LD.shape[1:])
        with self.averaged.applied(), fitting(self.processes):
            for batch in batches:
                with self.policy.autocast():
                    alone = torch.stack(list(self.network.alone(batch.x_BTCHW, batch.forcing_BSFHW, batch.upstream)), 1)
                linear = torch.stack(list(blend.linear(batch.x_BTCHW, batch.upstream, batch.y_BLDHW.shape[1])), 1)
                fit.add(alone, linear, batch)
        blend.weights_2LD.copy_(fit.weights(self.processes))

    @torch.no_grad()
    def validate(self, batches: Iterable[TensorBatch], watch: Watch = unwatched) -> float:
        """Mean loss of the averaged weights."""
        self.network.eval()

        def forecast(batch: TensorBatch) -> Tensor:
            with self.policy.autocast():
                return self.network(batch.x_BTCHW, batch.forcing_BSFHW, batch.upstream)

        with self.averaged.applied():
            return self._mean(batches, forecast, watch)

    @torch.no_grad()
    def persistence_loss(
        self, batches: Iterable[TensorBatch], target_indices: list[int], watch: Watch = unwatched
    ) -> float:
        """The same for persistence, to compare with."""

        def forecast(batch: TensorBatch) -> Tensor:
            return persistence(batch.x_BTCHW, target_indices, batch.y_BLDHW.shape[1])

        return self._mean(batches, forecast, watch)

    def _mean(self, batches: Iterable[TensorBatch], forecast: Callable[[TensorBatch], Tensor], watch: Watch) -> float:
        """Mean loss over all batches of all processes, from each batch's sums of error and of weights."""
        total, points = 0.0, 0.0
        with fitting(self.processes):
            for batch in batches:
                forecast_BLDHW = forecast(batch)
                watch(forecast_BLDHW, batch)
                sums = self.loss(forecast_BLDHW, batch.y_BLDHW, batch.valid_BLDHW, batch.emphasis_BLDHW)
                total, points = total + float(sums[0]), points + float(sums[1])
        return mean_loss(*self.processes.sum(total, points))
