"""Raw loads, stores and calls for the compiled hooks.

Why it exists: Numba has no pointers made from integers. These few intrinsics are that, so that a hook
can be cached on disk (a function pointer captured as a constant cannot be).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)


@intrinsic
def load64(_context: Any, vaddr: Any) -> Any:
    """Return the signed 64-bit word at host address `vaddr`."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _I64.as_pointer()))

    return types.int64(types.int64), codegen


@intrinsic
def store64(_context: Any, vaddr: Any, value: Any) -> Any:
    """Store a 64-bit word at host address `vaddr`."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _I64.as_pointer()))
        return None

    return types.void(types.int64, types.int64), codegen


@intrinsic
def load32(_context: Any, vaddr: Any) -> Any:
    """Return the unsigned 32-bit word at host address `vaddr`."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.zext(builder.load(builder.inttoptr(args[0], _I32.as_pointer())), _I64)

    return types.int64(types.int64), codegen


@intrinsic
def store32(_context: Any, vaddr: Any, value: Any) -> Any:
    """Store the low 32 bits of `value` at host address `vaddr`."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], _I32), builder.inttoptr(args[0], _I32.as_pointer()))
        return None

    return types.void(types.int64, types.int64), codegen


@intrinsic
def call3(_context: Any, function: Any, first: Any, second: Any, third: Any) -> Any:
    """Call the C function at host address `function` with three integer arguments; return its 64 bits."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64, _I64, _I64])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), list(args[1:]))

    return types.int64(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def call7(_context: Any, arguments: Any) -> Any:
    """Call the C function at the first of eight integers with the other seven; return its 64 bits."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64] * 7)
        values = [builder.extract_value(args[0], number) for number in range(8)]
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])

    return types.int64(types.UniTuple(types.int64, 8)), codegen


@intrinsic
def words_at(_context: Any, vaddr: Any) -> Any:
    """Return host address `vaddr` as an indexable pointer to signed 64-bit words."""
    pointer = types.CPointer(types.int64)

    def codegen(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ctx.get_value_type(pointer))

    return pointer(types.int64), codegen


@intrinsic
def address_of(_context: Any, pointer: Any) -> Any:
    """Return the host address a pointer holds."""
    if not isinstance(pointer, (types.CPointer, types.RawPointer)):
        return None

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], _I64)

    return types.int64(pointer), codegen


__all__ = ["address_of", "call3", "call7", "load32", "load64", "store32", "store64", "words_at"]
