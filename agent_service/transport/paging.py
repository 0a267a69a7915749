"""Page sizes and page tokens. A token is opaque to callers; it holds the name of the list and the last row's place."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import Message

from agent_service.domain.registry import Page
from agent_service.engine.limits import Limits
from agent_service.transport.requests import Problems

DEFAULT_PAGE = 100
"""Rows of a page that names no size."""
_ROW_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

Row = TypeVar("Row", bound=Message)
Key = tuple[int, str]


def page_size(problems: Problems, limits: Limits, size: int) -> int:
    """The number of rows asked for."""
    if not 0 <= size <= limits.max_page_size:
        problems.add("page_size", f"{size} is not 1 to {limits.max_page_size}, or 0 for {DEFAULT_PAGE}")
    return size or DEFAULT_PAGE


def read_token(problems: Problems, listed: str, token: str) -> Key:
    """The place in a token of this list; (0, "") for none."""
    if not token:
        return 0, ""
    try:
        of, time, row_id = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        of = time = row_id = None
    is_place = type(time) is int and 0 <= time < 2**63 and isinstance(row_id, str) and _ROW_ID.fullmatch(row_id)
    if of != listed or not is_place:
        problems.add("page_token", "is not one this list gave; send next_page_token of the answer before")
        return 0, ""
    return time, row_id


def write_token(listed: str, time: int, row_id: str) -> str:
    """A token for the rows of this list after this one."""
    return base64.urlsafe_b64encode(json.dumps([listed, time, row_id]).encode()).decode()


def read_page(problems: Problems, limits: Limits, listed: str, size: int, token: str, *, descending: bool) -> Page:
    """One row more than asked for, so that the answer knows whether more follow."""
    time, row_id = read_token(problems, listed, token)
    return Page(page_size(problems, limits, size) + 1, descending, time, row_id)


def bounded_page(rows: Iterable[Row], most: int, max_bytes: int) -> list[Row]:
    """At most `most` rows, fewer if they would be too large together; at least one if there is one."""
    page: list[Row] = []
    size = 0
    for row in rows:
        size += row.ByteSize() + 8
        if len(page) == most or (page and size > max_bytes):
            break
        page.append(row)
    return page
