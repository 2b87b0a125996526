"""The compiler of CPU loops. The machine code of a loop is self-contained: it calls no function in the machine code of another loop.

Numba's own compiler exports the functions that a loop calls, and the body of a parallel loop, as symbols. A process has one table of
symbols. For a function that several object files contain, the first definition wins, and this caused two defects:

- A process that compiled a loop ran the functions as they were compiled alone. A process that loaded the loop from the disk cache ran the
  copies in its object file, which LLVM had optimised a second time, together with the loop. The two can fuse another product of a sum into
  a multiply-add, so the results differed in the last bits.
- A symbol ends in a count of the functions that its process has compiled. Two processes may give one symbol to two loops of a factory, for
  example for two kinds of neurons. A process that loaded both could run one in place of the other.

Here only the entry points of a loop are exported, and their symbols are unique across processes.
"""

import uuid

from llvmlite.binding import Linkage
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class LoopCompiler(Compiler):
    """Numba's compiler, for `numba.njit(pipeline_class=LoopCompiler)`."""

    def _compile_bytecode(self):
        function = self.state.func_id
        function.unique_id = uuid.uuid4().hex  # the count in the symbols of the entry points
        self.state.library = _Library(self.state.targetctx.codegen(), function.func_qualname)
        self.state.library.enable_object_caching()
        return super()._compile_bytecode()


class _Library(JITCodeLibrary):
    def _finalize_final_module(self):
        """Make functions private, except the entry points: `external` are the loop itself and its wrappers for Python and C."""
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage != Linkage.external:
                function.linkage = Linkage.internal
        super()._finalize_final_module()
