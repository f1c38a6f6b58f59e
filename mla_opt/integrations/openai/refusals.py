"""What clients are told when they get no answer."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mla_opt.errors import InputError, MlaOptError
from mla_opt.integrations.openai import shapes
from mla_opt.runtimes.onnxruntime.batching import BatchFullError


def tell_refusals(app: FastAPI) -> None:
    """Let an app tell every error in OpenAI's shape."""
    for kind in (MlaOptError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _refused)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    status, message = _told(error)
    return JSONResponse(shapes.error(message, status), status)


def _told(error: Exception) -> tuple[int, str]:
    """The status of HTTP, and the message."""
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return 400, "; ".join(wrong)
    if isinstance(error, BatchFullError):
        return 429, str(error)
    return 400 if isinstance(error, InputError) else 500, str(error)
