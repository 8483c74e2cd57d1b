"""Weather with a known memory, for tests of what is learnt from it."""

import numpy as np


def times(start: str, end: str, step_hours: int = 24) -> np.ndarray:
    """Times from start up to, not including, end."""
    return np.arange(start, end, np.timedelta64(step_hours, "h"), dtype="datetime64[h]").astype("datetime64[ns]")


def autoregressive(n: int, shape: tuple[int, ...], memory: float, seed: int) -> np.ndarray:
    """AR(1) series [n, *shape] with mean 0, variance 1 and lag-one correlation `memory`."""
    noise = np.random.default_rng(seed).standard_normal((n, *shape))
    series = noise.copy()
    for step in range(1, n):
        series[step] = memory * series[step - 1] + np.sqrt(1 - memory**2) * noise[step]
    return series


def travelling_waves(n: int, height: int = 6, width: int = 12, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """Two waves [n, H, W] of random amplitude that travel: each state is turned and damped, pushed by chance."""
    generator = np.random.default_rng(seed)
    columns, rows = np.arange(width), np.arange(height)[:, None]
    fields = np.zeros((n, height, width))
    for number, turn in ((1, 0.5), (2, 0.9)):
        state, course = np.zeros(2), np.zeros((n, 2))
        rotation = 0.95 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        for step in range(n):
            state = rotation @ state + 0.3 * generator.standard_normal(2)
            course[step] = state
        angle = 2 * np.pi * number * columns / width + 0.2 * rows
        fields += course[:, 0, None, None] * np.cos(angle) + course[:, 1, None, None] * np.sin(angle)
    return fields + noise * generator.standard_normal(fields.shape)
