"""How the API says no: an HTTP status and a message, in one of the two formats that Kaggle's servers use."""

from __future__ import annotations

from typing import Any, Literal

ErrorFormat = Literal["nested", "flat"]

_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}


class ApiError(Exception):
    """A refusal that travels as an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def denied(permission: str) -> ApiError:
    """What Kaggle answers for what is not yours and for what does not exist: it does not tell them apart."""
    return ApiError(403, f"Permission '{permission}' was denied")


def error_body(status: int, message: str, error_format: ErrorFormat) -> dict[str, Any]:
    """`nested` is what api.kaggle.com sends (the official client cannot read it), `flat` what www.kaggle.com/api sends."""
    if error_format == "flat":
        return {"code": status, "message": message}
    return {"error": {"code": status, "message": message, "status": _NAMES.get(status, "UNKNOWN")}}
