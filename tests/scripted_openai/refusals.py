"""The error answers of the endpoint."""

import json
from typing import Any, NoReturn


class RefusedError(Exception):
    """The request breaks a rule of the API; carries what the error answer says."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        status: int = 400,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


def error_body(message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None) -> str:
    """The JSON of an error, in the shape that OpenAI documents."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}, ensure_ascii=False)


def need(condition: bool, message: str, param: str | None = None, code: str | None = None) -> None:
    """Raises RefusedError unless the condition holds."""
    if not condition:
        raise RefusedError(message, param, code)


def need_only(value: dict[str, Any], allowed: frozenset[str], path: str) -> None:
    """Raises RefusedError for the first key that the API does not know."""
    for key in value:
        if key not in allowed:
            where = f"{path}.{key}"
            raise RefusedError(f"Unknown parameter: '{where}'.", where, "unknown_parameter")


def wrong_type(path: str, expected: str, value: object) -> NoReturn:
    """Raises RefusedError in the words that the API uses for a value of the wrong type."""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    got = "null" if value is None else kinds.get(type(value), "a number")
    message = f"Invalid type for '{path}': expected {expected}, but got {got} instead."
    raise RefusedError(message, path, "invalid_type")
