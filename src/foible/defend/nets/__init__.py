"""Defences that change a network: each gives a copy, and leaves the net that it got as it was."""

from foible.defend.nets.denoising import DenoisingBlock, denoising_blocks
from foible.defend.nets.dropping import InfoDrop, infodrop, plain_again
from foible.defend.nets.kernels import high_frequency_share, kernel_smoothing
from foible.defend.nets.norms import TwinNorm, main_norms, split_norms, through_auxiliary
from foible.defend.nets.softened import Softened, softplus

__all__ = [
    "DenoisingBlock",
    "InfoDrop",
    "Softened",
    "TwinNorm",
    "denoising_blocks",
    "high_frequency_share",
    "infodrop",
    "kernel_smoothing",
    "main_norms",
    "plain_again",
    "softplus",
    "split_norms",
    "through_auxiliary",
]
