"""Arithmetic on text, without `eval`: numbers, + - * / // % **, brackets and a few functions."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

_MAX_CHARACTERS = 200
_MAX_POWER_BITS = 4096

Number = int | float


class CalculationError(ValueError):
    """The text is no arithmetic, or its value cannot be had; says why."""


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        if base.bit_length() * exponent > _MAX_POWER_BITS:
            raise CalculationError("the power is too large")
        return int(base**exponent)
    result = base**exponent
    if isinstance(result, complex):
        raise CalculationError("the result is not a real number")
    return float(result)


_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[[Number], Number]] = {"abs": abs, "round": round, "sqrt": math.sqrt}


def calculate(expression: str) -> str:
    """The value of an expression as text. Raises CalculationError."""
    if len(expression) > _MAX_CHARACTERS:
        raise CalculationError(f"longer than {_MAX_CHARACTERS} characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        if isinstance(value, float) and not math.isfinite(value):
            raise CalculationError("the result is too large, or no number")
        return str(value)
    except SyntaxError:
        raise CalculationError("not an arithmetic expression") from None
    except (ArithmeticError, ValueError) as error:
        raise CalculationError(str(error)) from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_value(argument))
        case _:
            raise CalculationError("only numbers, + - * / // % **, brackets, abs, round and sqrt")
