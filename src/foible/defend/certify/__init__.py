"""What is certain of a model: bounds on its scores."""

from foible.defend.certify.intervals import bounds, certified

__all__ = ["bounds", "certified"]
