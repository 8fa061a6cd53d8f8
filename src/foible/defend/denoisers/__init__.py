"""Denoisers in front of a classifier, and how they are trained."""

from foible.defend.denoisers.guided import Denoised, GuidedDenoiser, denoised, guided_denoiser
from foible.defend.denoisers.unet import UNet

__all__ = ["Denoised", "GuidedDenoiser", "UNet", "denoised", "guided_denoiser"]
