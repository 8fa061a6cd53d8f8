"""The trainer: data, steps, checkpoints, history."""
