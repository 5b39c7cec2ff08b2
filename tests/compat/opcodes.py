# SPDX-License-Identifier: Apache-2.0
"""Pickles written opcode by opcode, as other programs write them: names need not be importable."""

import pickle
from typing import Any


class Raw(bytes):
    """Opcodes that leave one object on the pickle machine's stack."""


def op(value: Any) -> Raw:
    """Opcodes for a value: containers may hold Raw ones."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return Raw(b"}(" + b"".join(op(key) + op(item) for key, item in value.items()) + b"u")
    if isinstance(value, list):
        return Raw(b"](" + b"".join(map(op, value)) + b"e")
    if isinstance(value, tuple):
        return Raw(b"(" + b"".join(map(op, value)) + b"t")
    if isinstance(value, bytes):
        return Raw(b"B" + len(value).to_bytes(4, "little") + value)
    return Raw(pickle.dumps(value, 2)[2:-1])


def named(name: str) -> Raw:
    """The object of a dotted name, as a line of text."""
    module, _, attribute = name.rpartition(".")
    return Raw(f"c{module}\n{attribute}\n".encode())


def stack_named(module: str, attribute: str) -> Raw:
    """The object of a name in the form of protocol 4, where both parts may hold dots."""
    return Raw(op(module) + op(attribute) + b"\x93")


def call(function: str | Raw, *args: Any) -> Raw:
    """A call of a dotted name or of the result of other opcodes."""
    return Raw((function if isinstance(function, Raw) else named(function)) + op(args) + b"R")


def new(cls: str, *args: Any) -> Raw:
    """An object made by a class's `__new__`."""
    return Raw(named(cls) + op(args) + b"\x81")


def built(target: Raw, state: Any) -> Raw:
    """`target` with a state."""
    return Raw(target + op(state) + b"b")


def filled(target: Raw, items: dict) -> Raw:
    """`target`, a kind of dict, with items."""
    return Raw(target + b"(" + b"".join(op(key) + op(item) for key, item in items.items()) + b"u")


def pickled(value: Any, protocol: int = 2) -> bytes:
    """A whole pickle. Only its header depends on `protocol`; its opcodes may be of any."""
    return b"\x80" + bytes([protocol]) + op(value) + b"."
