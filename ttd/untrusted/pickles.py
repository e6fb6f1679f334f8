"""The opcodes of a pickle (PEP 307, PEP 3154), interpreted by hand over a mapped file: nothing is imported or called."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ttd.untrusted.views import RefusedError, Span, guarded, natural, plain_dtype, view

MAX_STEPS = 2_000_000
"""Opcodes of one pickle. Spampinato's 11,965 trials take 0.6 million; two million empty dictionaries take 130 MB."""
MAX_COPIED = 1 << 26
"""Bytes of text and slots of object arrays that one pickle may fill: what is not a view of the file."""
Unknown = Literal["refuse", "inert"]


class Global(NamedTuple):
    """A class or function that a pickle names; it is never imported."""

    module: str
    name: str


@dataclass
class Inert:
    """Stands for an object of an unknown class: its name and its state, without its behaviour."""

    kind: Global
    arguments: tuple[Any, ...] = ()
    state: Any = None


class Storage(NamedTuple):
    """The flat array behind tensors, as a pickle names it."""

    dtype: str
    key: str
    n: int


TORCH_TYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bf16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1", "ByteStorage": "|u1",
    "BoolStorage": "|b1", "ComplexFloatStorage": "<c8", "ComplexDoubleStorage": "<c16",
}  # fmt: skip


class _Unbuilt:
    """An array or its type between REDUCE and BUILD, and where the memo holds it."""

    def __init__(self, kind: str, text: str = ""):
        self.kind, self.text = kind, text
        self.memo_keys: list[int] = []


_NUMPY = {f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")}


def _meaning(name: Global) -> str | None:
    """The few names that mean data."""
    module, word = name
    if module in _NUMPY and word in ("_reconstruct", "scalar", "_frombuffer"):
        return word
    if module == "torch" and word in TORCH_TYPES:
        return "storage"
    known = {
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): "dtype",
        ("collections", "OrderedDict"): "dict",
        ("_codecs", "encode"): "encode",
        ("torch", "Size"): "tuple",
        ("torch._utils", "_rebuild_tensor"): "tensor",
        ("torch._utils", "_rebuild_tensor_v2"): "tensor",
        ("torch._utils", "_rebuild_parameter"): "parameter",
    }
    return known.get((module, word))


class Pickle:
    """The opcodes of one pickle, protocols 2 to 5, over a mapped file."""

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        start: int,
        stop: int | None = None,
        *,
        unknown: Unknown,
        storage: Callable[[Storage], Span | None] | None = None,
    ):
        self.path, self.data, self.at, self.stop = path, data, start, len(data) if stop is None else stop
        self.unknown, self._span_of = unknown, storage
        self.storages: dict[str, Storage] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = MAX_COPIED

    def run(self) -> Any:
        """Interpret up to STOP; ``at`` is then the byte after it."""
        return guarded(self.path, self._run)

    def _run(self) -> Any:
        for _ in range(MAX_STEPS):
            code = self.take(1)
            if code == b".":
                (value,) = self.stack
                return value
            if code not in _OPCODES:
                raise RefusedError(f"{self.path}: byte {self.at - 1:,} is no opcode of a pickle of data: {code!r}")
            _OPCODES[code](self)
        raise RefusedError(f"{self.path}: its pickle has more than {MAX_STEPS:,} steps")

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        self.at += n
        if n < 0 or self.at > self.stop:
            raise ValueError(f"it ends before byte {self.at:,}")
        return self.data[self.at - n : self.at]

    def number(self, n: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(n), "little", signed=signed)

    def spend(self, n: int) -> None:
        """Account for memory that is no view of the file."""
        self.left -= n
        if self.left < 0:
            raise ValueError(f"its pickle copies more than {MAX_COPIED:,} bytes")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def text(self, n_length: int, encoding: str = "utf-8") -> None:
        n = self.number(n_length)
        self.spend(n)
        self.push(self.take(n).decode(encoding))

    def byte_string(self, n_length: int) -> None:
        """Short ones are read, long ones stay where they are."""
        n = self.number(n_length)
        if n <= 4096:
            self.spend(n)
            self.push(self.take(n))
            return
        if self.at + n > self.stop:
            raise ValueError(f"{n:,} bytes are claimed, {self.stop - self.at:,} are there")
        self.push(Span(self.at, self.at + n))
        self.at += n

    def pop_mark(self) -> list[Any]:
        place = self.marks.pop()
        items, self.stack[place:] = self.stack[place:], []
        return items

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, min(self.stop, self.at + 512))
        if end < 0:
            raise ValueError("a name without end")
        return self.take(end + 1 - self.at)[:-1].decode()

    def remember(self, key: int) -> None:
        value = self.memo[key] = self.stack[-1]
        if isinstance(value, _Unbuilt):
            value.memo_keys.append(key)

    def tuple_of(self, n: int) -> None:
        if len(self.stack) < n:
            raise ValueError("the stack is too short")
        items, self.stack[-n:] = tuple(self.stack[-n:]), []
        self.push(items)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise ValueError(f"items are appended to a {type(target).__name__}")

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            if isinstance(target, Inert):
                return
            raise ValueError(f"keys are set in a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int, float, bool, type(None)):  # a nested tuple's hash can take for ever
                raise ValueError(f"a {type(key).__name__} is the key of a dictionary")
            target[key] = value

    def name(self, module: Any, word: Any) -> None:
        found = Global(str(module)[:200], str(word)[:200])
        if _meaning(found) is None and self.unknown == "refuse":
            raise RefusedError(
                f"{self.path}: refused, nothing was run: it names {found.module}.{found.name}, which is no data"
            )
        self.push(found)

    def stack_name(self) -> None:
        word, module = self.stack.pop(), self.stack.pop()
        self.name(module, word)

    def reduce(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Global) or not isinstance(arguments, tuple):
            raise ValueError(f"a {type(kind).__name__} is called")
        self.push(self.made(kind, arguments))

    def made(self, kind: Global, given: tuple[Any, ...]) -> Any:
        """What the call of a name with arguments stands for."""
        match _meaning(kind):
            case "_reconstruct" if given[0] == Global("numpy", "ndarray"):
                return _Unbuilt("array")
            case "dtype":
                return _Unbuilt("dtype", str(given[0]))
            case "scalar" if isinstance(given[0], np.dtype):
                return view(self.data, given[1], given[0], (1,))[0]
            case "_frombuffer" if isinstance(given[1], np.dtype) and given[3] in ("C", "F"):
                return view(self.data, given[0], given[1], given[2], given[3])
            case "encode" if given[1:] in (("latin1",), ("latin-1",)) and type(given[0]) is str:
                self.spend(len(given[0]))
                return given[0].encode("latin-1")
            case "dict" if not given:
                return {}
            case "tuple" if natural(given[0]):
                return given[0]
            case "parameter":
                return given[0]
            case "tensor":
                return self.tensor(*given[:4])
            case None:
                return Inert(kind, given)
        raise ValueError(f"{kind.module}.{kind.name} has other arguments than data need")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif isinstance(target, _Unbuilt):
            self.stack[-1] = self.dtype(target, state) if target.kind == "dtype" else self.array(state)
            for key in target.memo_keys:
                self.memo[key] = self.stack[-1]
        elif not isinstance(target, dict):  # of an OrderedDict the attributes (_metadata) are no data
            raise ValueError(f"the state of a {type(target).__name__} is set")

    def dtype(self, target: _Unbuilt, state: tuple[Any, ...]) -> np.dtype:
        if target.text == "O8":
            return np.dtype(object)
        if state[3:5] != (None, None) or state[1] not in ("<", ">", "|"):
            raise ValueError("arrays of structures are not read")
        return plain_dtype(str(state[1]) + target.text.lstrip("<>|="))

    def array(self, state: tuple[Any, ...]) -> np.ndarray:
        _, shape, dtype, fortran, held = state
        if not isinstance(dtype, np.dtype):
            raise ValueError("an array without a type")
        order: Literal["C", "F"] = "F" if fortran else "C"
        if not dtype.hasobject:
            if isinstance(held, str):  # protocol 2 holds bytes as text
                self.spend(len(held))
                held = held.encode("latin-1")
            return view(self.data, held, dtype, shape, order)
        if not natural(shape) or not isinstance(held, list) or math.prod(shape) != len(held):
            raise ValueError(f"{str(shape)[:80]} objects are claimed")
        self.spend(8 * len(held))
        flat = np.empty(len(held), object)
        for i, item in enumerate(held):
            flat[i] = item
        return flat.reshape(shape, order=order)

    def persistent(self) -> None:
        word, kind, key, _, n, *rest = self.stack.pop()
        if self._span_of is None or word != "storage" or _meaning(kind) != "storage" or type(n) is not int or n < 0:
            raise ValueError("an object that lies outside the file")
        storage = Storage(TORCH_TYPES[kind.name], str(key), n)
        if self.storages.setdefault(storage.key, storage) != storage or any(rest):
            raise ValueError(f"storage {storage.key} is described twice")
        self.push(storage)

    def tensor(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Any:
        """A view of a storage, which it may not leave."""
        assert self._span_of is not None
        span = self._span_of(storage)
        if span is None:  # the storages' places are not known yet
            return None
        if not (natural((offset,)) and natural(size) and natural(stride) and len(size) == len(stride) <= 32):
            raise ValueError(f"impossible tensor {str(size)[:80]}")
        half = storage.dtype == "bf16"
        flat = view(self.data, span, np.dtype("<u2" if half else storage.dtype), (storage.n,))
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if (numel := math.prod([*size])) > storage.n or (numel and last >= storage.n):
            raise ValueError(f"a tensor {size} leaves its storage of {storage.n:,} values")
        steps = [step * flat.itemsize for step in stride]
        out = np.lib.stride_tricks.as_strided(flat[min(offset, storage.n) :], size, steps, writeable=False)
        if half:
            self.spend(4 * out.size)
            return (out.astype(np.uint32) << 16).view(np.float32)
        return out


def _new_object(machine: Pickle) -> None:
    machine.reduce()
    if not isinstance(machine.stack[-1], Inert | dict):
        raise ValueError("an object of a class that is no data is made")


def _new_object_with_keywords(machine: Pickle) -> None:
    keywords = machine.stack.pop()
    _new_object(machine)
    if isinstance(machine.stack[-1], Inert):
        machine.stack[-1].state = keywords


_OPCODES: dict[bytes, Callable[[Pickle], Any]] = {
    b"\x80": lambda m: m.take(1),
    b"\x95": lambda m: m.take(8),
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": lambda m: m.stack.pop(),
    b"1": lambda m: m.pop_mark(),
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number(4, signed=True)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": lambda m: m.push(m.number(m.number(1), signed=True)),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"X": lambda m: m.text(4),
    b"\x8c": lambda m: m.text(1),
    b"\x8d": lambda m: m.text(8),
    b"T": lambda m: m.text(4, "latin-1"),
    b"U": lambda m: m.text(1, "latin-1"),
    b"B": lambda m: m.byte_string(4),
    b"C": lambda m: m.byte_string(1),
    b"\x8e": lambda m: m.byte_string(8),
    b"\x96": lambda m: m.byte_string(8),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.extend([m.stack.pop()]),
    b"e": lambda m: m.extend(m.pop_mark()),
    b"l": lambda m: m.push(m.pop_mark()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.update([m.stack.pop(-2), m.stack.pop()]),
    b"u": lambda m: m.update(m.pop_mark()),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": lambda m: m.stack_name(),
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
    b"\x81": _new_object,
    b"\x92": _new_object_with_keywords,
    b"Q": lambda m: m.persistent(),
    b"h": lambda m: m.push(m.memo[m.number(1)]),
    b"j": lambda m: m.push(m.memo[m.number(4)]),
    b"q": lambda m: m.remember(m.number(1)),
    b"r": lambda m: m.remember(m.number(4)),
    b"\x94": lambda m: m.remember(len(m.memo)),
}
"""What protocols 2 to 5 write for data. INST, OBJ, EXT, buffers out of band and the text codes of protocol 0 are not read."""
