"""Every error that foible raises on purpose.

    FoibleError
     +- InputError (ValueError)      a value that cannot be used: NaN, out of bounds, wrong labels
     +- KindError (TypeError)        a thing of the wrong kind where a part was expected
     +- AccessError                  a part asks a model for more than the model gives
     +- ModelError                   the model itself misbehaves: NaN scores, a wrong shape
     +- MissingExtra (ImportError)   an optional package is not installed
     +- LogError                     a run folder cannot be read or written

Each message says what was found, why it is refused and what to change.
"""

from __future__ import annotations


class FoibleError(Exception):
    """The root: catch this to catch everything that foible raises on purpose."""


class InputError(FoibleError, ValueError):
    """A value that cannot be used; the message carries the value."""


class KindError(FoibleError, TypeError):
    """A thing of the wrong type where a part, a model or a tensor was expected."""


class AccessError(FoibleError):
    """A part asks for more of a model than the model gives (labels < scores < gradients)."""


class ModelError(FoibleError):
    """The model misbehaves: NaN scores or gradients, a wrong shape, an output of no known kind."""


class MissingExtra(FoibleError, ImportError):
    """An optional package is missing; the message holds the install command."""


class LogError(FoibleError):
    """A run folder cannot be read or written."""
