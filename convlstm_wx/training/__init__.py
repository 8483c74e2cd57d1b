"""Learning: losses, schedule, weight averaging, one optimiser step, the epochs."""
