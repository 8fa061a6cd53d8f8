"""The application: predict, health, metrics. One model, one lock, every answer accounted for."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, KindError, MissingExtra, ModelError
from foible.detect import Guard
from foible.explain import smoothgrad
from foible.figures.maps import is_picture, shared_scale, signed_pixels
from foible.figures.svg import png_uri
from foible.serve.bodies import Refused, Wanted, from_json, from_picture

MEGABYTE = 2**20
PICTURES = ("image/png", "image/jpeg")


@dataclass
class Service:
    """A guard as a service; `answer` is all that a request does, without HTTP.

    shape: of one input. classes: names, "" for none. most: inputs a request. maps: how many
    refusals of a request get a map.
    """

    guard: Guard
    shape: tuple[int, ...]
    classes: Sequence[str] = ()
    most: int = 256
    maps: int = 4
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def wanted(self) -> Wanted:
        """What a body has to hold."""
        return Wanted(self.shape, tuple(self.guard.model.bounds), self.most)

    def read(self, body: bytes, kind: str) -> Tensor:
        """Return the inputs of a body; Refused where it holds none."""
        kind = kind.split(";")[0].strip().lower()
        if kind in PICTURES:
            return from_picture(body, self.wanted)
        if kind in ("application/json", ""):
            return from_json(body, self.wanted)
        raise Refused(
            415, f"content type {kind[:60]!r}: send application/json, {' or '.join(PICTURES)}"
        )

    def answer(self, body: bytes, kind: str) -> dict[str, Any]:
        """Return the answers of a body: one for each input, in order."""
        x = self.read(body, kind)
        # A session holds the model in evaluation mode and hooks its layers: one at a time.
        with self._lock:
            found = self.guard(x)
            if not bool(torch.isfinite(found.scores).all()):
                raise ModelError("the model failed: its scores are NaN or infinite")
            refused = found.abstained.nonzero().squeeze(1)[: self.maps]
            if self.guard.model.access < Access.GRADIENTS:
                refused = refused[:0]  # a model without a gradient has no map
            maps = self._maps(x[refused], found.predicted[refused]) if len(refused) else []
        pictures = dict(zip(refused.tolist(), maps, strict=True))
        chances = found.scores.softmax(1)
        answers = []
        for i in range(len(x)):
            predicted = int(found.predicted[i])
            one: dict[str, Any] = {
                "label": None if found.abstained[i] else predicted,
                "abstained": bool(found.abstained[i]),
                "suspicion": {n: _number(s[i]) for n, s in found.suspicion.items()},
            }
            if found.abstained[i]:
                levels = self.guard.levels
                one["reasons"] = [
                    f"{name}: suspicion {float(found.suspicion[name][i]):.4g} is above its level "
                    f"{levels[name]:.4g}"
                    for name in found.reasons[i]
                ]
                if i in pictures:
                    one["map"] = pictures[i]
            else:
                one["name"] = self._name(predicted)
                one["confidence"] = float(chances[i, predicted])
            answers.append(one)
        return {"answers": answers, "seconds": found.seconds}

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)

    def _maps(self, x: Tensor, labels: Tensor) -> list[Any]:
        """Return SmoothGrad of the predicted class: a PNG of a picture, numbers of a table."""
        maps = smoothgrad()(self.guard.model, x, labels).detach()
        if not is_picture(self.shape):
            return [one.tolist() for one in maps]
        return [png_uri(signed_pixels(one.numpy(), shared_scale(one.numpy()))) for one in maps]


def _number(value: Tensor) -> float | None:
    """Return a number as JSON has it: NaN and infinity are none to it."""
    return float(value) if bool(torch.isfinite(value)) else None


def service(made: Service, most_bytes: int = 4 * MEGABYTE) -> Any:
    """Return the FastAPI application of a service.

    POST /predict takes {"inputs": ...} as JSON, or a PNG or JPEG as the body, and answers with a
    label, or abstains with reasons and a map. GET /health says whether the model answers; GET
    /metrics is for Prometheus. most_bytes: of a body; a longer one gets 413 and is not read on.

    Bodies that cannot be answered get a 4xx with {"error": sentence}; none of them stops the
    server, and neither does a model that fails, which is a 500 with the sentence.

    Raises MissingExtra without FastAPI.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from fastapi.responses import JSONResponse
        from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtra(
            "a server is FastAPI, uvicorn and prometheus-client: pip install 'foible[serve]'"
        ) from error

    registry = CollectorRegistry()
    requests = Counter("foible_requests", "Requests by status", ["status"], registry=registry)
    inputs = Counter("foible_inputs", "Inputs that were judged", registry=registry)
    refusals = Counter("foible_refusals", "Inputs refused", ["detector"], registry=registry)
    seconds = Histogram("foible_seconds", "Seconds of an answered request", registry=registry)

    async def body_of(request: Request) -> bytes:
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > most_bytes:
            raise Refused(413, f"the body has {told} bytes, at most {most_bytes} are read")
        held = bytearray()
        async for part in request.stream():
            held += part
            if len(held) > most_bytes:
                raise Refused(413, f"the body is longer than {most_bytes} bytes")
        return bytes(held)

    async def predict(request: Request) -> JSONResponse:
        start = time.perf_counter()
        status = 200
        try:
            body = await body_of(request)
            kind = request.headers.get("content-type", "")
            content = await run_in_threadpool(made.answer, body, kind)
            inputs.inc(len(content["answers"]))
            for one in content["answers"]:
                for reason in one.get("reasons", ()):
                    refusals.labels(reason.split(":")[0]).inc()
            seconds.observe(time.perf_counter() - start)
        except Refused as error:
            status, content = error.status, {"error": error.said}
        except (InputError, KindError) as error:
            status, content = 422, {"error": str(error)}
        except ClientDisconnect:
            status, content = 400, {"error": "the body was not sent to its end"}
        except ModelError as error:
            status, content = 500, {"error": str(error)}
        except Exception as error:
            status, content = 500, {"error": f"the model failed: {type(error).__name__}"}
        requests.labels(str(status)).inc()
        return JSONResponse(content, status_code=status)

    async def health(request: Request) -> JSONResponse:
        low = made.guard.model.bounds[0]
        start = low if low > float("-inf") else 0.0
        probe = torch.full((1, *made.shape), float(start))
        try:
            await run_in_threadpool(_probe, made, probe)
        except Exception as error:
            return JSONResponse({"status": f"failing: {type(error).__name__}"}, status_code=503)
        return JSONResponse({
            "status": "ok", "asked": made.guard.asked, "refused": made.guard.refused,
            "detectors": dict(made.guard.levels), "shape": list(made.shape),
        })  # fmt: skip

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    routes: list[Any] = [
        Route("/predict", predict, methods=["POST"]), Route("/health", health),
        Route("/metrics", metrics),
    ]  # fmt: skip
    return FastAPI(title="foible", routes=routes, docs_url=None, redoc_url=None, openapi_url=None)


def _probe(made: Service, x: Tensor) -> None:
    with made._lock, made.guard.model.session(), torch.no_grad():
        made.guard.model.scores(x)
