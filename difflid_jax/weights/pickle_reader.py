"""Reads pickles of plain data by interpreting their opcodes; nothing they name is imported or called.

A pickle is a program for a small stack machine. This interpreter knows the opcodes that build numbers,
strings, bytes, tuples, lists and dicts. A name of a Python object resolves only to its entry in the caller's
table, and a "call" reaches only functions of that table. All other opcodes (INST, OBJ, EXT, ...) and names
are refused. Memory stays within a small multiple of the bytes read.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

# An opcode takes at least one byte and makes at most one object of about 100 bytes. A checkpoint of 1,000
# tensors with its optimizer takes about 100,000 opcodes.
_MAX_OPCODES = 2_000_000
_MAX_INTEGER_BYTES = 16
_MAX_NAME_BYTES = 500
_MAX_PROTOCOL = 5

# opcode → struct format of the argument that follows
_FIXED = {
    b"K": "<B",  # BININT1
    b"M": "<H",  # BININT2
    b"J": "<i",  # BININT
    b"G": ">d",  # BINFLOAT
}
# opcode → (struct format of a length, how that many bytes are read)
_COUNTED = {
    b"\x8a": ("<B", "integer"),  # LONG1
    b"\x8b": ("<i", "integer"),  # LONG4
    b"U": ("<B", "latin1"),  # SHORT_BINSTRING, as Python 2 wrote strings
    b"T": ("<i", "latin1"),  # BINSTRING
    b"\x8c": ("<B", "utf8"),  # SHORT_BINUNICODE
    b"X": ("<I", "utf8"),  # BINUNICODE
    b"\x8d": ("<Q", "utf8"),  # BINUNICODE8
    b"C": ("<B", "bytes"),  # SHORT_BINBYTES
    b"B": ("<I", "bytes"),  # BINBYTES
    b"\x8e": ("<Q", "bytes"),  # BINBYTES8
    b"\x96": ("<Q", "bytes"),  # BYTEARRAY8
}
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}


@dataclass(frozen=True)
class Function:
    """An entry of the caller's table that the pickle may call: our own `run`, not the function named."""

    name: str
    run: Callable[..., Any]


@dataclass
class Unfinished:
    """An object that a BUILD opcode completes: it is replaced by the value of `finish(state)`."""

    finish: Callable[[Any], Any]
    memo_keys: list[int] = field(default_factory=list)


def read_pickle(
    data: bytes | memoryview,
    names: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
    start: int = 0,
) -> tuple[Any, int]:
    """The object pickled in `data[start:]` and the position after its end.

    names: the table, from "module name" to a constant, type or `Function`. persistent: resolves persistent
    ids. Raises ValueError for anything but a complete pickle of plain data.
    """
    return _Machine(data, names, persistent, start).run()


class _Machine:
    def __init__(self, data, names, persistent, start):
        self.data = memoryview(data)
        self.at = start
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        for _ in range(_MAX_OPCODES):
            code = bytes(self.take(1))
            if code == b".":
                if len(self.stack) != 1 or self.marks:
                    raise ValueError("the pickle does not end with exactly one object")
                return self.stack[0], self.at
            self.step(code)
        raise ValueError(f"the pickle takes more than {_MAX_OPCODES:,} steps")

    def step(self, code: bytes) -> None:
        stack = self.stack
        if code in _FIXED:
            stack.append(self.number(_FIXED[code]))
        elif code in _COUNTED:
            stack.append(self.counted(*_COUNTED[code]))
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code == b"(":  # MARK
            self.marks.append(stack)
            self.stack = []
        elif code == b"]":
            stack.append([])
        elif code == b"}":
            stack.append({})
        elif code == b"t":  # TUPLE
            items = self.to_mark()
            self.stack.append(tuple(items))
        elif code in b"\x85\x86\x87":  # TUPLE1 to TUPLE3
            stack.append(tuple(self.pop(code[0] - 0x84)))
        elif code == b"a":  # APPEND
            (item,) = self.pop(1)
            self.top(list).append(item)
        elif code == b"e":  # APPENDS
            items = self.to_mark()
            self.top(list).extend(items)
        elif code == b"s":  # SETITEM
            self.set_items(self.pop(2))
        elif code == b"u":  # SETITEMS
            self.set_items(self.to_mark())
        elif code == b"q":  # BINPUT
            self.remember(self.number("<B"))
        elif code == b"r":  # LONG_BINPUT
            self.remember(self.number("<I"))
        elif code == b"\x94":  # MEMOIZE
            self.remember(len(self.memo))
        elif code == b"h":  # BINGET
            stack.append(self.recall(self.number("<B")))
        elif code == b"j":  # LONG_BINGET
            stack.append(self.recall(self.number("<I")))
        elif code == b"c":  # GLOBAL
            module, name = self.line(), self.line()
            stack.append(self.named(module, name))
        elif code == b"\x93":  # STACK_GLOBAL
            stack.append(self.named(*self.pop(2)))
        elif code in (b"R", b"\x81"):  # REDUCE, NEWOBJ
            stack.append(self.call(*self.pop(2)))
        elif code == b"b":  # BUILD
            self.build(*self.pop(2))
        elif code == b"Q":  # BINPERSID
            if self.persistent is None:
                raise ValueError("the pickle refers to data outside itself")
            stack.append(self.persistent(self.pop(1)[0]))
        elif code == b"0":  # POP
            self.pop(1)
        elif code == b"1":  # POP_MARK
            self.to_mark()
        elif code == b"\x80":  # PROTO
            protocol = self.number("<B")
            if protocol > _MAX_PROTOCOL:
                raise ValueError(f"pickle protocol {protocol} is not known (up to {_MAX_PROTOCOL} are)")
        elif code == b"\x95":  # FRAME
            self.take(8)
        else:
            self.refuse(code)

    def refuse(self, code: bytes) -> NoReturn:
        known = pickletools.code2op.get(code.decode("latin1"))
        what = f"the opcode {known.name}" if known else f"the byte 0x{code[0]:02x}, which is no opcode,"
        raise ValueError(f"the pickle uses {what} at byte {self.at - 1:,}; no file of plain tensors does")

    # Arguments that follow an opcode

    def take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self.data) - self.at:
            raise ValueError(
                f"the pickle asks for {count:,} bytes, of which {len(self.data) - self.at:,} are left"
            )
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def counted(self, form: str, kind: str) -> Any:
        content = self.take(self.number(form))
        if kind == "bytes":
            return bytes(content)
        if kind == "integer":
            if len(content) > _MAX_INTEGER_BYTES:
                raise ValueError(f"the pickle holds an integer of {len(content):,} bytes")
            return int.from_bytes(content, "little", signed=True)
        return str(content, kind)

    def line(self) -> str:
        window = bytes(self.data[self.at : self.at + _MAX_NAME_BYTES])
        end = window.find(b"\n")
        if end < 0:
            raise ValueError(f"the pickle holds an unterminated name at byte {self.at:,}")
        self.at += end + 1
        return window[:end].decode()

    # The stack

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError(f"the pickle pops from an empty stack at byte {self.at:,}")
        popped = self.stack[-count:]
        del self.stack[-count:]
        return popped

    def to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError(f"the pickle pops to a missing mark at byte {self.at:,}")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"the pickle fills an object that is not a {kind.__name__} at byte {self.at:,}")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise ValueError(f"the pickle gives a key without a value at byte {self.at:,}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only keys that hash fast and seldom collide: nested tuples can be built so that hashing them
            # never ends, and long integers so that all have one hash.
            short = not isinstance(key, int) or -(1 << 63) <= key < 1 << 63
            if not isinstance(key, (str, int, float, bytes, type(None))) or not short:
                raise ValueError(f"the pickle uses a {type(key).__name__} as a key that no tensor file uses")
            target[key] = value

    def remember(self, key: int) -> None:
        value = self.top(object)
        if isinstance(value, Unfinished):
            value.memo_keys.append(key)
        self.memo[key] = value

    def recall(self, key: int) -> Any:
        if key not in self.memo:
            raise ValueError(f"the pickle recalls object {key:,}, which it never stored")
        return self.memo[key]

    # Names, and opcodes that would call them

    def named(self, module: Any, name: Any) -> Any:
        path = f"{_brief(module)} {_brief(name)}"
        if path not in self.names:
            raise ValueError(
                f"the pickle refers to {path.replace(' ', '.')}, which no file of plain tensors needs; "
                "nothing of it was executed. If you trust the file, save its tensors alone with PyTorch: "
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
            )
        return self.names[path]

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise ValueError(f"the pickle calls a {type(function).__name__} at byte {self.at:,}")
        try:
            return function.run(*arguments)
        except (TypeError, AttributeError, LookupError, OverflowError) as error:
            raise ValueError(f"the pickle gives unsuitable arguments to {function.name}") from error

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, Unfinished):
            try:
                finished = target.finish(state)
            except (TypeError, AttributeError, LookupError, OverflowError) as error:
                raise ValueError(f"the pickle sets an unsuitable state at byte {self.at:,}") from error
            for key in target.memo_keys:
                self.memo[key] = finished
            self.stack.append(finished)
        elif isinstance(target, np.dtype):
            # (version, byte order, ...): the rest describes structured types, which are refused by name.
            if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
                raise ValueError("the pickle holds an array that is not little-endian")
            self.stack.append(target)
        elif isinstance(target, dict) and isinstance(state, dict):
            # Attributes of an OrderedDict, such as the version notes of a PyTorch state dict.
            self.stack.append(target)
        else:
            raise ValueError(f"the pickle sets the state of a {type(target).__name__} at byte {self.at:,}")


def _brief(part: Any) -> str:
    """Text from the file for a message: short, and without terminal control characters."""
    if not isinstance(part, str):
        return f"({type(part).__name__})"
    return "".join(character if character.isprintable() else "?" for character in part[:100])
