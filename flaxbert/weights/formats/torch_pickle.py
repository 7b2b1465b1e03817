"""The pickles in PyTorch's files, followed without building anything: only what describes dense tensors passes."""

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
    """The bytes that tensors are views of."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


class _Kind(enum.Enum):
    """What stands for an object that is not followed any further."""

    ORDERED = enum.auto()  # an OrderedDict
    DICT = enum.auto()  # a dict that only what follows it can fill
    OBJECT = enum.auto()


@dataclasses.dataclass
class Followed:
    """What a pickle describes: its storages and its strings."""

    storages: dict[str, Storage] = dataclasses.field(default_factory=dict)
    texts: list[str] = dataclasses.field(default_factory=list)

    def stored(self, place: Any) -> Storage:
        """The storage that a persistent id names."""
        # The old format has a sixth entry: None since views are not stored as storages any more.
        match place:
            case ("storage", _Global(kind), str(key), str(), int(count), *rest) if (
                kind in STORAGES and count >= 0 and rest in ([], [None])
            ):
                storage = Storage(key, STORAGES[kind], count)
                if self.storages.setdefault(key, storage) == storage:
                    return storage
        raise ValueError("its pickle names a storage in a way that torch.save does not")

    def called(self, function: Any, arguments: Any) -> object:
        """What stands for the result of a call, which must be one that torch.save writes."""
        match function, arguments:
            case _Global(name), () if name == _ORDERED_DICT:
                return _Kind.ORDERED
            case _Global(name), (_, _, _) if name == _PARAMETER:
                return _Kind.OBJECT
            case _Global(name), (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if (
                name in _TENSORS
            ):
                self._view(storage, offset, shape, strides)
                return _Kind.OBJECT
        raise ValueError("its pickle calls a function in a way that torch.save does not")

    def _view(self, storage: Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> None:
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


def follow(stream: io.BytesIO) -> Followed:
    """Goes through the pickle that begins here without building anything.

    What it lets pass costs no more than it is long: each object is made once, from few others. (One dict copied over
    and over would fill the memory, and a tuple in a tuple in a tuple and so on, as a key, the stack.)
    """
    found = Followed()
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in cast(Any, pickletools.genops(stream)):
        match opcode.name:
            case "PROTO" if argument == 2:
                pass
            case "MARK":
                marked.append(stack)
                stack = []
            case "GLOBAL" if argument in _GLOBALS:
                stack.append(_Global(argument))
            case "BINUNICODE" | "SHORT_BINSTRING":
                found.texts.append(argument)
                stack.append(argument)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" if abs(argument) < 2**63:
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "BINFLOAT":
                stack.append(None)
            case "EMPTY_DICT":
                stack.append(_Kind.DICT)
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
                memo[argument] = _Kind.OBJECT if stack[-1] is _Kind.DICT else stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPERSID":
                stack.append(found.stored(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(found.called(stack.pop(), arguments))
            case "BUILD" if stack[-2:] == [_Kind.ORDERED, _Kind.DICT]:  # the versions of modules, which none reads
                stack.pop()
            case "STOP":
                return found
            case "GLOBAL":
                raise ValueError(f"it holds a {argument.replace(' ', '.')[:200]}; read are only dicts of dense tensors")
            case name:
                raise ValueError(f"its pickle holds {name} {str(argument)[:80]}, which torch.save does not write there")
    raise ValueError("its pickle has no end")


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    if any(isinstance(inner, tuple) for item in items if isinstance(item, tuple) for inner in item):
        raise ValueError("its pickle nests tuples deeper than torch.save does")
    return tuple(items)
