# SPDX-License-Identifier: Apache-2.0
"""A reader of pickle streams that builds plain data and calls only functions that its owner passes in.

The standard unpickler is unsuitable for foreign files: it looks up methods on the objects that it builds, hashes any
object used as a key, and sizes its memo by numbers in the file. Here each opcode does the obvious thing or fails, and
memory use is bounded by the size of the file.
"""

import pickle
import re
import struct
from collections.abc import Callable
from typing import Any

_BLOB_BYTES = 4096  # longer byte strings remain in the file's buffer, as read-only memory views
_LONGEST_INT_BYTES = 64
_LONGEST_KEY = 16  # members of a tuple used as a key: each use hashes all of them
# Hashes of text and bytes are secret; numbers and tuples can be chosen so that each insertion meets all earlier ones.
_MOST_CHOSEN_HASHES = 4096
_SECRET_HASHES = frozenset([str, bytes])
_MOST_STEPS = 1 << 19  # an object takes a few hundred bytes, the opcode that makes it only one byte of the file
_KEY_TYPES = frozenset([str, int, float, bool, bytes, type(None)])
_NEWLINE = re.compile(rb"\n")


class Builder:
    """Something that a pickle may call, by the name `name`; `function` must cope with any arguments."""

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name = name
        self.function = function


class Unfinished:
    """An object that a later BUILD opcode completes: `build(state)` returns its replacement."""

    def __init__(self) -> None:
        self.memo_keys: list[int] = []

    def build(self, state: Any) -> Any:
        """The finished object."""
        raise NotImplementedError


class Keys:
    """What one file uses as keys of dicts and members of sets, however often it uses them."""

    def __init__(self) -> None:
        self._left = _MOST_CHOSEN_HASHES

    def check(self, key: Any) -> Any:
        """`key`, if it is a plain scalar or a short tuple of scalars; hashing anything else could take forever.

        Raises TypeError for another key, ValueError if too many are numbers or tuples.
        """
        if type(key) in _SECRET_HASHES:
            return key
        if type(key) is tuple:
            plain = len(key) <= _LONGEST_KEY and all(type(member) in _KEY_TYPES for member in key)
        else:
            plain = type(key) in _KEY_TYPES
        if not plain:
            raise TypeError(f"a key of type {type(key).__name__}")
        self._left -= 1
        if self._left < 0:
            raise ValueError("too many keys that are not text")
        return key


class PickleReader:
    """Reads consecutive pickles (protocols 2 to 5) in `data`, one per call of `load`.

    `resolve(module, name)` returns the value or the Builder for a global name, `persistent_load(id)` the value for a
    persistent id; both raise to refuse. Readers of parts of one file share its `keys`. Malformed data raises one of
    Python's own exceptions (ValueError, IndexError, KeyError, TypeError, struct.error, UnicodeError and so on).
    """

    def __init__(
        self,
        data: bytes | memoryview,
        resolve: Callable[[str, str], Any],
        persistent_load: Callable[[Any], Any] | None = None,
        keys: Keys | None = None,
    ):
        self.position = 0
        self._data = memoryview(data).toreadonly()
        self._resolve = resolve
        self._persistent_load = persistent_load
        self._keys = Keys() if keys is None else keys
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The next object."""
        self._stack, self._marks, self._memo = [], [], {}
        stop = pickle.STOP[0]
        for _ in range(_MOST_STEPS):
            opcode = self._data[self.position]
            self.position += 1
            if opcode == stop:
                return self._stack.pop()
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise ValueError(f"unsupported pickle opcode {opcode:#04x}")
            handler(self)
        raise ValueError("too many steps")

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        end = self.position + size
        if size < 0 or end > len(self._data):
            raise ValueError("the data ends too early")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _number(self, layout: str) -> Any:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))[0]

    def _line(self) -> str:
        match = _NEWLINE.search(self._data, self.position)
        if match is None:
            raise ValueError("the data ends too early")
        text = str(self._data[self.position : match.start()], "utf-8")
        self.position = match.end()
        return text

    def _text(self, size: int) -> str:
        return str(self.take(size), "utf-8", "surrogatepass")

    def _bytes(self, size: int) -> bytes | memoryview:
        view = self.take(size)
        return view if size > _BLOB_BYTES else bytes(view)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _proto(self) -> None:
        version = self._number("B")
        if version > 5:
            raise ValueError(f"pickle protocol {version} is unknown")

    def _long(self, size: int) -> None:
        if size > _LONGEST_INT_BYTES:
            raise ValueError("an integer is too long")
        self._push(int.from_bytes(self.take(size), "little", signed=True))

    def _tuple(self, size: int) -> None:
        items = tuple(self._stack[-size:])
        if len(items) != size:
            raise IndexError("the stack is too short")
        self._stack[-size:] = [items]

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("items added to something other than a list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("keys and values added to something other than a dict")
        for key, value in zip(items[::2], items[1::2]):
            target[self._keys.check(key)] = value

    def _add_items(self) -> None:
        items = self._pop_to_mark()
        target = self._stack[-1]
        if type(target) is not set:
            raise TypeError("items added to something other than a set")
        target.update(map(self._keys.check, items))

    def _pop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _put(self, key: int) -> None:
        value = self._stack[-1]
        self._memo[key] = value
        if isinstance(value, Unfinished):
            value.memo_keys.append(key)

    def _get(self, key: int) -> None:
        self._push(self._memo[key])

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a global name that is not text")
        self._push(self._resolve(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._global(module, name)

    def _call(self, with_keywords: bool = False) -> None:
        keywords = self._stack.pop() if with_keywords else {}
        arguments, builder = self._stack.pop(), self._stack.pop()
        if not isinstance(builder, Builder) or type(arguments) is not tuple or keywords != {}:
            raise TypeError("a call of something that is not callable")
        self._push(builder.function(*arguments))

    def _instance(self) -> None:
        # How protocol 0 names and calls at once. No network file contains it, but a refusal should give the name.
        self._resolve(self._line(), self._line())
        raise ValueError("an instance in the format of protocol 0")

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack.pop()
        if not isinstance(target, Unfinished):
            raise TypeError(f"a state for an object without one ({type(target).__name__})")
        finished = target.build(state)
        self._push(finished)
        for key in target.memo_keys:
            self._memo[key] = finished

    def _persistent(self, identifier: Any) -> None:
        if self._persistent_load is None:
            raise ValueError("a reference to data outside the pickle")
        self._push(self._persistent_load(identifier))


_HANDLERS: dict[int, Callable[[PickleReader], None]] = {
    code[0]: handler
    for code, handler in {
        pickle.PROTO: PickleReader._proto,
        pickle.FRAME: lambda r: r.take(8),
        pickle.MARK: PickleReader._mark,
        pickle.POP: PickleReader._pop,
        pickle.POP_MARK: lambda r: r._pop_to_mark(),
        pickle.NONE: lambda r: r._push(None),
        pickle.NEWTRUE: lambda r: r._push(True),
        pickle.NEWFALSE: lambda r: r._push(False),
        pickle.BININT: lambda r: r._push(r._number("i")),
        pickle.BININT1: lambda r: r._push(r._number("B")),
        pickle.BININT2: lambda r: r._push(r._number("H")),
        pickle.LONG1: lambda r: r._long(r._number("B")),
        pickle.LONG4: lambda r: r._long(r._number("I")),
        pickle.BINFLOAT: lambda r: r._push(struct.unpack(">d", r.take(8))[0]),
        pickle.SHORT_BINUNICODE: lambda r: r._push(r._text(r._number("B"))),
        pickle.BINUNICODE: lambda r: r._push(r._text(r._number("I"))),
        pickle.BINUNICODE8: lambda r: r._push(r._text(r._number("Q"))),
        pickle.SHORT_BINBYTES: lambda r: r._push(r._bytes(r._number("B"))),
        pickle.BINBYTES: lambda r: r._push(r._bytes(r._number("I"))),
        pickle.BINBYTES8: lambda r: r._push(r._bytes(r._number("Q"))),
        pickle.SHORT_BINSTRING: lambda r: r._push(r._bytes(r._number("B"))),  # of Python 2, where text was bytes
        pickle.BINSTRING: lambda r: r._push(r._bytes(r._number("I"))),
        pickle.BYTEARRAY8: lambda r: r._push(bytearray(r.take(r._number("Q")))),
        pickle.EMPTY_TUPLE: lambda r: r._push(()),
        pickle.TUPLE: lambda r: r._push(tuple(r._pop_to_mark())),
        pickle.TUPLE1: lambda r: r._tuple(1),
        pickle.TUPLE2: lambda r: r._tuple(2),
        pickle.TUPLE3: lambda r: r._tuple(3),
        pickle.EMPTY_LIST: lambda r: r._push([]),
        pickle.APPEND: lambda r: r._append([r._stack.pop()]),
        pickle.APPENDS: lambda r: r._append(r._pop_to_mark()),
        pickle.EMPTY_DICT: lambda r: r._push({}),
        pickle.SETITEM: lambda r: r._set_items([r._stack.pop(), r._stack.pop()][::-1]),
        pickle.SETITEMS: lambda r: r._set_items(r._pop_to_mark()),
        pickle.EMPTY_SET: lambda r: r._push(set()),
        pickle.ADDITEMS: PickleReader._add_items,
        pickle.FROZENSET: lambda r: r._push(frozenset(map(r._keys.check, r._pop_to_mark()))),
        pickle.BINPUT: lambda r: r._put(r._number("B")),
        pickle.LONG_BINPUT: lambda r: r._put(r._number("I")),
        pickle.MEMOIZE: lambda r: r._put(len(r._memo)),
        pickle.BINGET: lambda r: r._get(r._number("B")),
        pickle.LONG_BINGET: lambda r: r._get(r._number("I")),
        pickle.GLOBAL: lambda r: r._global(r._line(), r._line()),
        pickle.STACK_GLOBAL: PickleReader._stack_global,
        pickle.INST: PickleReader._instance,
        pickle.REDUCE: PickleReader._call,
        pickle.NEWOBJ: PickleReader._call,
        pickle.NEWOBJ_EX: lambda r: r._call(with_keywords=True),
        pickle.BUILD: PickleReader._build,
        pickle.BINPERSID: lambda r: r._persistent(r._stack.pop()),
    }.items()
}
