"""Scan the pickles of PyTorch files without executing them, and refuse all but descriptions of dense tensors."""

import dataclasses
import enum
import io
import math
import pickletools
from typing import Any, cast

import ml_dtypes
import numpy as np

STORAGES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch IntStorage": np.dtype("<i4"),
    "torch LongStorage": np.dtype("<i8"),
    "torch BoolStorage": np.dtype("?"),
}
_TENSORS = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_GLOBALS = {*STORAGES, *_TENSORS, _PARAMETER, _ORDERED_DICT}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A storage, the flat array of `count` values that tensors are views of; its name in the file is `key`."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


class _Kind(enum.Enum):
    """Placeholder on the stack for an object that is not examined further."""

    ORDERED_DICT = enum.auto()
    EMPTY_DICT = enum.auto()  # as created, to be filled by the next opcodes; taken from the memo, it is an OBJECT
    OBJECT = enum.auto()


@dataclasses.dataclass
class PickleContent:
    """Storages by key, and all strings in order, that a pickle describes."""

    storages: dict[str, Storage] = dataclasses.field(default_factory=dict)
    strings: list[str] = dataclasses.field(default_factory=list)

    def add_storage(self, persistent_id: object) -> Storage:
        """Return the storage that a persistent id names; ValueError for an id that torch.save does not write."""
        # The older format has a sixth entry, which is None in files of all supported versions.
        match persistent_id:
            case ("storage", _Global(kind), str(key), str(), int(count), *rest) if (
                kind in STORAGES and count >= 0 and rest in ([], [None])
            ):
                storage = Storage(key, STORAGES[kind], count)
                if self.storages.setdefault(key, storage) == storage:
                    return storage
        raise ValueError("its pickle names a storage in a way that torch.save does not")

    def check_call(self, function: object, arguments: object) -> object:
        """Return the placeholder for the result of a call.

        Raises:
            ValueError: torch.save does not write such a call, or a tensor does not fit into its storage.
        """
        match function, arguments:
            case _Global(name), () if name == _ORDERED_DICT:
                return _Kind.ORDERED_DICT
            case _Global(name), (_, _, _) if name == _PARAMETER:
                return _Kind.OBJECT
            case _Global(name), (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if (
                name in _TENSORS
            ):
                self._check_view(storage, offset, shape, strides)
                return _Kind.OBJECT
        raise ValueError("its pickle calls a function in a way that torch.save does not")

    def _check_view(self, storage: Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> None:
        numbers = [offset, *shape, *strides]
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or not len(shape) == len(strides) <= 32:
            raise ValueError(f"a tensor has the shape {str(shape)[:80]} and the strides {str(strides)[:80]}")
        count = math.prod(shape)
        end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
        if count and (end > storage.count or count > storage.count):
            raise ValueError(
                f"a tensor of shape {list(shape)} and strides {list(strides)} from number {offset} on "
                f"does not fit into its storage of {storage.count} numbers"
            )


def scan_pickle(stream: io.BytesIO) -> PickleContent:
    """Interpret the pickle at the position of `stream` abstractly, without building its objects.

    Loading an accepted pickle costs no more than its length: each object is built once, from few others. Refused are
    therefore dicts that are copied repeatedly (they fill the memory) and deeply nested tuples (they fill the stack).

    Raises:
        ValueError: the pickle holds something other than descriptions of dense tensors.
    """
    content = PickleContent()
    stack: list[object] = []
    marked: list[list[object]] = []
    memo: dict[int, object] = {}
    for opcode, argument, _ in cast(Any, pickletools.genops(stream)):
        match opcode.name:
            case "PROTO" if argument in (2, 3):
                pass
            case "MARK":
                marked.append(stack)
                stack = []
            case "GLOBAL" if argument in _GLOBALS:
                stack.append(_Global(argument))
            case "BINUNICODE" | "SHORT_BINSTRING":
                content.strings.append(argument)
                stack.append(argument)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" if abs(argument) < 2**63:
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "BINFLOAT":
                stack.append(None)
            case "EMPTY_DICT":
                stack.append(_Kind.EMPTY_DICT)
            case "EMPTY_LIST":
                stack.append(_Kind.OBJECT)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                first = len(stack) - int(opcode.name[-1])
                stack[first:] = [_tuple(stack[first:])]
            case "TUPLE":
                items, stack = stack, marked.pop()
                stack.append(_tuple(items))
            case "SETITEM":
                del stack[-2:]
            case "SETITEMS" | "APPENDS":
                stack = marked.pop()
            case "APPEND":
                stack.pop()
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = _Kind.OBJECT if stack[-1] is _Kind.EMPTY_DICT else stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPERSID":
                stack.append(content.add_storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(content.check_call(stack.pop(), arguments))
            case "BUILD" if stack[-2:] == [_Kind.ORDERED_DICT, _Kind.EMPTY_DICT]:
                stack.pop()  # versions of modules, which are not used
            case "STOP":
                return content
            case "GLOBAL":
                raise ValueError(f"it holds a {argument.replace(' ', '.')[:200]}; only dicts of dense tensors are read")
            case name:
                raise ValueError(f"its pickle holds {name} {str(argument)[:80]}, which torch.save does not write there")
    raise ValueError("its pickle has no end")


def _tuple(items: list[object]) -> tuple[object, ...]:
    if any(isinstance(inner, tuple) for item in items if isinstance(item, tuple) for inner in item):
        raise ValueError("its pickle nests tuples deeper than torch.save does")
    return tuple(items)
