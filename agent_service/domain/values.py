"""Copies of frozen values with some fields changed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    # The one that type checkers know: they check the fields' names and types, of both kinds of value.
    from dataclasses import replace
else:

    def replace(value: Any, /, **changes: Any) -> Any:
        """A copy with these fields changed.

        What is copied often and has many fields is a msgspec Struct, which is copied by compiled code.
        """
        if isinstance(value, msgspec.Struct):
            return msgspec.structs.replace(value, **changes)
        return dataclasses.replace(value, **changes)


__all__ = ["replace"]
