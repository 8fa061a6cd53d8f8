"""A guarded model behind HTTP; needs the extra `serve`."""

from foible.serve.app import Service, service

__all__ = ["Service", "service"]
