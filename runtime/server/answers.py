"""What refused requests are told: always 422 with a few short words, never the request itself back, never a 500."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ...engines.errors import UserError
from .discretion import printable, shortened

MOST_PROBLEMS = 5  # of a body, that an answer lists
LONGEST = 500  # characters of one message
LONGEST_NAME = 60  # of a field that the body names


def refusals(app: FastAPI) -> None:
    """Install the answers in an application."""

    @app.exception_handler(UserError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": plain(str(error), LONGEST)}, 422)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        found = error.errors()
        problems = [problem(one) for one in found[:MOST_PROBLEMS]]
        if len(found) > MOST_PROBLEMS:
            more = f"and {len(found) - MOST_PROBLEMS} more problems"
            problems.append({"type": "more", "loc": ["body"], "msg": more})
        return JSONResponse({"detail": problems}, 422)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 400 and error.__cause__ is not None:  # a body that no parser takes: too deep, not UTF-8
            one = {"type": "json_invalid", "loc": ["body"], "msg": f"not JSON: {plain(str(error.__cause__), 100)}"}
            return JSONResponse({"detail": [one]}, 422)
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


def problem(error: dict[str, Any]) -> dict[str, Any]:
    """One of pydantic's problems without the value that it found, which may be large, no number or no text."""
    place = [plain(part, LONGEST_NAME) if isinstance(part, str) else part for part in error["loc"]]
    message = plain(error["msg"].removeprefix("Value error, "), LONGEST)
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, str):
        message += f": {plain(reason, LONGEST)}"
    return {"type": error["type"], "loc": place, "msg": message}


def plain(text: str, most: int) -> str:
    """Text for an answer."""
    return shortened(printable(text), most)
