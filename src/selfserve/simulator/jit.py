"""The decorators of compiled kernels and how they reach memory: structs and integers at an address.

The simulated world is plain memory, as in C: numpy arrays made in Python hold it, records of 64-bit fields hold the
addresses of other arrays, and kernels get one address. So a call costs next to nothing however large the world is,
nothing counts references (in a loop of nanoseconds numba's counting costs up to 200 ns a request; ``_nrt=False``), no
stride is multiplied and no index is checked for wrap-around. Nothing checks bounds either: room is made in Python
before a kernel runs. Everything that is unsafe about this is in this module. Kernels let other threads run: a world is
one caller's, and a controller that replays its past must not hold up its decisions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.extending import intrinsic

_options = {"cache": True, "_nrt": False, "error_model": "numpy", "nogil": True}
kernel: Callable[..., Any] = njit(**_options, forceinline=True)
"""Compiled into its callers: for what is short or called once."""
routine: Callable[..., Any] = njit(**_options, forceinline=False)
"""Compiled once: for what is long and rare (a callee would inherit ``forceinline``, and all be compiled many times)."""


def record(names: str, **others: Any) -> np.dtype:
    """Return a struct of int64 fields and of ``others``, name = numpy type or (type, shape)."""
    fields = [(name, "i8") for name in names.split()]
    return np.dtype([*fields, *((n, *(t if isinstance(t, tuple) else (t,))) for n, t in others.items())], align=True)


if config.DISABLE_JIT:  # the same for the interpreter, so that a test can count its steps

    def item(address: Any, index: Any, dtype: Any) -> Any:
        """Return struct ``index`` of an array of structs, by reference."""
        memory: Any = (ctypes.c_char * dtype.itemsize).from_address(int(address + index * dtype.itemsize))
        return np.frombuffer(memory, dtype).view(np.recarray)[0]

    def _pointer(kind: Any) -> Any:
        return lambda address: ctypes.cast(int(address), ctypes.POINTER(kind))

    ints, shorts, naturals, floats = map(_pointer, (ctypes.c_int64, ctypes.c_int32, ctypes.c_uint64, ctypes.c_double))
else:

    @intrinsic
    def _item(context: Any, address: Any, index: Any, dtype: Any) -> Any:
        """Return struct ``index`` of an array of structs, by reference."""

        def generate(codegen: Any, builder: Any, signature: Any, args: Any) -> Any:
            at = codegen.cast(builder, args[1], signature.args[1], types.int64)
            at = builder.mul(at, codegen.get_constant(types.int64, dtype.dtype.size))
            return builder.inttoptr(builder.add(args[0], at), codegen.get_value_type(dtype.dtype))

        return dtype.dtype(address, index, dtype), generate

    item = _item

    def _pointer(kind: Any) -> Any:
        @intrinsic
        def at(context: Any, address: Any) -> Any:
            def generate(codegen: Any, builder: Any, signature: Any, args: Any) -> Any:
                return builder.inttoptr(args[0], codegen.get_value_type(signature.return_type))

            return types.CPointer(kind)(address), generate

        return at

    ints, shorts, naturals, floats = map(_pointer, (types.int64, types.int32, types.uint64, types.float64))
