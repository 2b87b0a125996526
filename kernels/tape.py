"""A tape: calls of compiled CPU loops, repeated without Python in between, as a CUDA graph repeats kernels.

A call from Python takes Numba some microseconds to read its arguments, as long as the loops of a small step take to run. Here every
argument is read once, when the call is put on the tape, into the 64-bit words that Numba hands to a loop; what runs the tape loads these
words and jumps. Arguments are arrays, numbers and named tuples of them; an array must stay where it is, its values may change.
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
    """Calls in order: `call` makes one and notes it, `run` repeats them all."""

    def __init__(self):
        self._steps, self._kept = [], []  # functions without arguments; what the addresses on the tape point to
        self._native = []  # (address of the caller, address of the loop, of its arguments) of the latest calls of loops

    def call(self, loop, arguments: tuple):
        """Call a compiled loop."""
        loop(*arguments)
        words = np.array([word for argument in arguments for word in _words(argument)], np.uint64)
        overload = loop.overloads[tuple(map(numba.typeof, arguments))]
        address = overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)
        self._kept.append((loop, arguments, words))
        self._native.append((_caller(overload.fndesc.argtypes), address, words.ctypes.data))

    def apply(self, function, arguments: tuple, how: dict):
        """Call any function; it runs in Python each time."""

        def step():
            function(*arguments, **how)

        step()
        self.close()
        self._steps.append(step)

    def close(self):
        """End a row of calls of loops. Returns the tape."""
        if self._native:
            table = np.array(self._native, np.uint64)
            self._kept.append(table)
            self._steps.append(functools.partial(_run(), table.ctypes.data, len(table)))
            self._native = []
        return self

    def run(self):
        """Repeat all calls. Raises MemoryError where a loop fails, which it only does for want of memory."""
        for step in self._steps:
            if step():
                raise MemoryError("a loop of a recorded step found no memory for its scratch arrays")


def _words(value):
    """The words in which Numba hands over an argument."""
    if isinstance(value, np.ndarray):  # nobody counts who refers to it: the tape keeps it
        return [0, 0, value.size, value.itemsize, value.ctypes.data, *value.shape, *(stride % 2**64 for stride in value.strides)]
    if isinstance(value, tuple):
        return [word for entry in value for word in _words(entry)]
    return [int.from_bytes(np.asarray(value).tobytes(), "little")]


_libraries = []  # compiled code lives as long as its library


@global_compiler_lock
def _compile(kind, write):
    """The address of a new function, whose body is what write(builder, arguments) writes."""
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
    """The address of a function that calls a loop with arguments of these types, which it reads from words."""
    kind = cpu_target.target_context.call_conv.get_function_type(numba.types.none, types)

    def write(builder, arguments):
        loop, words = arguments
        outputs = [builder.alloca(pointer.pointee) for pointer in kind.args[:2]]  # what it returns, and raises
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
    """A function (address of a table, number of calls): whether a call failed, after which it makes none."""

    def write(builder, arguments):
        table, count = arguments
        with cgutils.for_range(builder, count) as loop:
            row = builder.gep(table, [builder.mul(loop.index, _WORD(3))])
            caller, called, words = (builder.load(builder.gep(row, [_WORD(k)])) for k in range(3))
            addresses = builder.inttoptr(called, _LOOP), builder.inttoptr(words, _WORDS)
            failed = builder.call(builder.inttoptr(caller, _CALLER.as_pointer()), addresses)
            with cgutils.if_unlikely(builder, builder.icmp_signed("!=", failed, _STATUS(0))):
                builder.ret(_STATUS(1))
        builder.ret(_STATUS(0))

    return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64)(_compile(ir.FunctionType(_STATUS, [_WORDS, _WORD]), write))
