"""What is certain of a model: bounds on its scores, and radii in which its label holds."""

from foible.defend.certify.intervals import bounds, certified
from foible.defend.certify.smoothing import Certified, Smoothed, randomized_smoothing

__all__ = ["Certified", "Smoothed", "bounds", "certified", "randomized_smoothing"]
