"""The trainer: data, steps, checkpoints, history."""

from foible.defend.training.history import Epoch
from foible.defend.training.running import train
from foible.defend.training.settings import Settings

__all__ = ["Epoch", "Settings", "train"]
