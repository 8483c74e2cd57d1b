"""What changes over the run: the learning rate, the lead times, the share of truth; and when to stop early."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convlstm_wx.config import TrainConfig

WARMUP_SHARE = 0.05
MOST_EPOCHS, FEWEST_EPOCHS = 12, 4  # of a run that was not told how many
WINDOWS_ENOUGH = 100_000  # in all epochs together: more of them cost hours on a CPU, and bring little


def epochs_for(windows: int) -> int:
    """How often to go over so many training windows, if nothing else is asked for."""
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(WINDOWS_ENOUGH / windows)))


def learning_rate_at(step: int, *, total_steps: int, warmup_steps: int, peak: float, floor: float = 0.01) -> float:
    """Linear warm-up, then half a cosine down to `floor` times the peak [Loshchilov and Hutter 2017].

    A function of the step alone: a resumed run has nothing to restore.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass
class EarlyStopping:
    """Counts the epochs since the validation loss was at its best.

    Attributes:
        patience: epochs without improvement before the run stops; 0 never stops.
        best: lowest validation loss so far.
        waited: epochs since then.
    """

    patience: int
    best: float = math.inf
    waited: int = 0

    def update(self, loss: float) -> bool:
        """Note an epoch's loss; True if it is the best so far."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return True
        self.waited += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.waited


@dataclass(frozen=True)
class Schedule:
    """What the settings ask for at each optimiser step.

    All of it follows from the number of steps done and the validation losses so far, which a checkpoint has: a resumed
    run has nothing to restore.

    Attributes:
        config: settings.
        steps_per_epoch: optimiser steps.
    """

    config: TrainConfig
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.config.num_epochs

    def learning_rate(self, step: int, validation_losses: Sequence[float]) -> float:
        """After a warm-up down a cosine, or constant until the validation loss rests on a plateau.

        Args:
            step: optimiser steps done.
            validation_losses: of the epochs done.
        """
        config = self.config
        warmup = min(self.steps_per_epoch, max(1, int(WARMUP_SHARE * self.total_steps)))
        if config.schedule == "plateau":
            share = config.plateau_factor ** plateaus(validation_losses, patience=config.plateau_patience)
            return config.learning_rate * min(1.0, (step + 1) / warmup) * share
        return learning_rate_at(step, total_steps=self.total_steps, warmup_steps=warmup, peak=config.learning_rate)

    def lead_steps(self, step: int) -> int:
        """How many lead times are learned: one at first, all of them after the curriculum, evenly in between."""
        most, steps = self.config.lead_steps, self.config.curriculum_epochs * self.steps_per_epoch
        return most if step >= steps else 1 + (most - 1) * step // steps

    def truth_share(self, step: int) -> float:
        """How likely the network is told the truth instead of its own forecast; falls to 0 over the run."""
        return self.config.scheduled_sampling * max(0.0, 1 - step / self.total_steps)


def plateaus(losses: Sequence[float], *, patience: int) -> int:
    """How often `patience` epochs went by without a new lowest loss; after each time the count begins anew."""
    count, waiting = 0, EarlyStopping(patience)
    for loss in losses:
        waiting.update(loss)
        if waiting.should_stop:
            count, waiting.waited = count + 1, 0
    return count
