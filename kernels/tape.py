"""A tape records calls of compiled CPU loops and replays them without Python in between, as a CUDA graph replays kernels.

At a call from Python, Numba takes some microseconds to unpack the arguments, as long as the loops of a small step run. The tape unpacks
each argument once, when it records the call, into the 64-bit words of Numba's calling convention. A small compiled function loads these
words and calls the loop. Arguments are arrays, numbers and named tuples of them. An array must stay at its address; its values may change.
"""

import ctypes
import functools

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.core.callconv import RETCODE_NONE, RETCODE_OK
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

_WORD, _STATUS = ir.IntType(64), ir.IntType(32)
_WORDS, _LOOP = _WORD.as_pointer(), ir.IntType(8).as_pointer()
_CALLER = ir.FunctionType(_STATUS, [_LOOP, _WORDS])


class Tape:
    """Calls in order: `call` makes a call and records it, `run` replays all of them."""

    def __init__(self):
        self._steps, self._alive = [], []  # functions without arguments; objects whose addresses are on the tape
        self._native = []  # (address of the caller, of the loop, of its arguments) of the latest calls of loops

    def call(self, loop, arguments: tuple):
        """Call a compiled loop."""
        loop(*arguments)
        words = np.array([word for argument in arguments for word in _words(argument)], np.uint64)
        overload = loop.overloads[tuple(map(numba.typeof, arguments))]
        address = overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)
        self._alive.append((loop, arguments, words))
        self._native.append((_caller(overload.fndesc.argtypes), address, words.ctypes.data))

    def apply(self, function, arguments: tuple, how: dict):
        """Call any function and record it; it runs in Python at each replay."""

        def step():
            function(*arguments, **how)

        step()
        self.close()
        self._steps.append(step)

    def close(self):
        """End a sequence of calls of loops. Returns the tape."""
        if self._native:
            table = np.array(self._native, np.uint64)
            self._alive.append(table)
            self._steps.append(functools.partial(_run(), table.ctypes.data, len(table)))
            self._native = []
        return self

    def run(self):
        """Replay all calls. Raises MemoryError if a loop fails: its only possible failure is the allocation of scratch arrays."""
        for step in self._steps:
            if step():
                raise MemoryError("a loop of a recorded step found no memory for its scratch arrays")


def _words(value):
    """The 64-bit words in which Numba passes an argument."""
    if isinstance(value, np.ndarray):  # no reference counting (0): the tape holds a reference
        return [0, 0, value.size, value.itemsize, value.ctypes.data, *value.shape, *(stride % 2**64 for stride in value.strides)]
    if isinstance(value, tuple):
        return [word for entry in value for word in _words(entry)]
    return [int.from_bytes(np.asarray(value).tobytes(), "little")]


_libraries = []  # references: machine code is freed with its library


@global_compiler_lock
def _compile(kind, write):
    """Compile a function whose body write(builder, arguments) emits. Returns its address."""
    name = f"tape_{len(_libraries)}"
    library = cpu_target.target_context.codegen().create_library(name)
    module = library.create_ir_module(name)
    function = ir.Function(module, kind, name)
    write(ir.IRBuilder(function.append_basic_block()), function.args)
    library.add_ir_module(module)
    library.finalize()
    _libraries.append(library)
    return library.get_pointer_to_function(name)


@functools.cache
def _caller(types):
    """The address of a function that reads arguments of these types from words and calls a loop with them."""
    kind = cpu_target.target_context.call_conv.get_function_type(numba.types.none, types)

    def write(builder, arguments):
        loop, words = arguments
        outputs = [builder.alloca(pointer.pointee) for pointer in kind.args[:2]]  # return value and exception
        inputs = []
        for i, of in enumerate(kind.args[2:]):
            word = builder.load(builder.gep(words, [_WORD(i)]))
            if isinstance(of, ir.PointerType):
                word = builder.inttoptr(word, of)
            elif isinstance(of, ir.FloatType):
                word = builder.bitcast(builder.trunc(word, ir.IntType(32)), of)
            elif of != _WORD:
                word = builder.bitcast(word, of) if isinstance(of, ir.DoubleType) else builder.trunc(word, of)
            inputs.append(word)
        status = builder.call(builder.bitcast(loop, kind.as_pointer()), [*outputs, *inputs])
        good = builder.or_(builder.icmp_signed("==", status, RETCODE_OK), builder.icmp_signed("==", status, RETCODE_NONE))
        builder.ret(builder.zext(builder.not_(good), _STATUS))

    return _compile(_CALLER, write)


@functools.cache
def _run():
    """A function (address of a table, number of calls) -> whether a call failed; it stops at the first failure."""

    def write(builder, arguments):
        table, count = arguments
        with cgutils.for_range(builder, count) as loop:
            row = builder.gep(table, [builder.mul(loop.index, _WORD(3))])
            caller, loop_address, words = (builder.load(builder.gep(row, [_WORD(k)])) for k in range(3))
            addresses = builder.inttoptr(loop_address, _LOOP), builder.inttoptr(words, _WORDS)
            failed = builder.call(builder.inttoptr(caller, _CALLER.as_pointer()), addresses)
            with cgutils.if_unlikely(builder, builder.icmp_signed("!=", failed, _STATUS(0))):
                builder.ret(_STATUS(1))
        builder.ret(_STATUS(0))

    return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64)(_compile(ir.FunctionType(_STATUS, [_WORDS, _WORD]), write))
