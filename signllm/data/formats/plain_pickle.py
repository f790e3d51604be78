"""Reading a pickle of plain values without executing it; CSL-Daily delivers its labels as a pickle.

``pickle.load`` calls whatever a file names, and restrictions of the allowed names have been circumvented
before. Here the file is only parsed (``pickletools``), and an interpreter with a stack and a memo rebuilds
dictionaries, lists, tuples, texts, numbers, booleans and None. Every other instruction is refused, above all
those that import or call something.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

from signllm.errors import UsageError

_MARK = object()
_VALUES = frozenset(
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BININT BININT1 BININT2 INT LONG LONG1 LONG4 "
    "BINFLOAT FLOAT".split()
)
_TEXTS_OF_PYTHON_2 = frozenset(("SHORT_BINSTRING", "BINSTRING", "STRING"))
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(path: Path) -> Any:
    """Return the value of a pickle that contains only plain values.

    Raises:
        UsageError: the file is not a pickle, is damaged, or contains more than plain values.
    """
    machine = _PickleMachine()
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if not machine.step(opcode.name, argument):
                raise UsageError(
                    f"the pickle contains more than plain values ({opcode.name}), which could run code",
                    where=path,
                    remedy="use the file of the release; no code of this file was run",
                )
        (value,) = machine.stack
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"the file is not a pickle, or is damaged: {error}", where=path) from None
    return value


class _PickleMachine:
    """Interpreter of those pickle instructions that build plain values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> bool:
        """Execute one instruction and return True; return False without effect if it is not allowed."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _TEXTS_OF_PYTHON_2:
            self.stack.append(argument.encode("latin-1").decode("utf-8"))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("PROTO", "FRAME", "STOP"):
            pass
        else:
            return self._step_memo(name, argument) or self._step_collection(name)
        return True

    def _step_memo(self, name: str, argument: Any) -> bool:
        """Execute an instruction that writes or reads the memo; return False if it is another one."""
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        else:
            return False
        return True

    def _step_collection(self, name: str) -> bool:
        """Execute an instruction that builds a collection; return False if it is another one."""
        if name == "MARK":
            self.stack.append(_MARK)
        elif name == "APPEND":
            item = self.stack.pop()
            self.stack[-1].append(item)
        elif name == "SETITEM":
            value, key = self.stack.pop(), self.stack.pop()
            self.stack[-1][_plain(key)] = value
        elif name == "APPENDS":
            items = self._pop_to_mark()
            self.stack[-1].extend(items)
        elif name == "SETITEMS":
            items = self._pop_to_mark()
            self.stack[-1].update(zip(map(_plain, items[::2]), items[1::2], strict=True))
        elif name in ("LIST", "TUPLE"):
            items = self._pop_to_mark()
            self.stack.append(items if name == "LIST" else tuple(items))
        elif name == "DICT":
            items = self._pop_to_mark()
            self.stack.append(dict(zip(map(_plain, items[::2]), items[1::2], strict=True)))
        else:
            return False
        return True

    def _pop_to_mark(self) -> list[Any]:
        """Remove and return the values on the stack above the last mark."""
        place = max(place for place, item in enumerate(self.stack) if item is _MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items


def _plain(key: Any) -> Any:
    """Return a key unless it is a tuple: hashing deeply nested tuples overflows Python's own stack."""
    if isinstance(key, tuple):
        raise TypeError("a key is a tuple")
    return key
