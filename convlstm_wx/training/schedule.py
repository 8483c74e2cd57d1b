"""The learning rate over the run, and when to stop early."""

import math
from dataclasses import dataclass


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
