"""A copy of the residual as it is at its solve, for a derivative that may be taken much later.

By then a loop variable that a lambda reads has its last value. So functions are copied with the values that their
cells, defaults and global names have now.
"""

from __future__ import annotations

import dis
import functools
import types
from dataclasses import dataclass, field
from typing import Any

#: Packages whose functions are left as they are.
LIBRARIES = ("torch", "numpy", "numba", "jax", "jaxlib", "builtins", "functools", "optree")
#: Packages whose global names do not change.
OURS = ("rootdiff", "rootdiff_torch")
#: Where the functions stand that `torch.func.grad` and its like return; they close over the function that they are of.
_TRANSFORMS = "torch._functorch.apis"
#: Functions that use these look names up in ways that cannot be seen.
_OPAQUE = {"globals", "eval", "exec", "vars", "locals"}
#: What the interpreter looks up among the global names.
_DUNDERS = {"__builtins__", "__name__", "__package__", "__spec__", "__file__"}
_WRITES = bytes((dis.opmap["STORE_DEREF"], dis.opmap["STORE_GLOBAL"]))


@dataclass
class Freezer:
    """Copies functions with the values that they close over; copies share the variables that the originals share.

    A variable that the function itself assigns (`nonlocal`, `global`), a counter say, is not copied.
    """

    made: dict[int, Any] = field(default_factory=dict)
    cells: dict[int, types.CellType] = field(default_factory=dict)

    def freeze(self, value: Any) -> Any:
        """Return `value`, a callable, as it is now; anything else is returned itself."""
        if isinstance(value, types.FunctionType):
            return self.made.get(id(value)) or self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self.freeze(value.__func__), value.__self__)
        if type(value) is functools.partial:
            keywords = {name: self.freeze(part) for name, part in value.keywords.items()}
            return functools.partial(self.freeze(value.func), *map(self.freeze, value.args), **keywords)
        return value

    def _function(self, function: types.FunctionType) -> Any:
        package = package_of(function)
        transformed = function.__globals__.get("__name__") == _TRANSFORMS
        if (package in LIBRARIES and not transformed) or hasattr(function, "_torchdynamo_orig_callable"):
            return function
        code = function.__code__
        assigned = _assigned(code)
        names = names_in(code)
        values: dict[str, Any] = function.__globals__
        if package not in (*OURS, *LIBRARIES) and not (names & _OPAQUE or assigned & names):
            values = {name: values[name] for name in names | _DUNDERS if name in values}
        pairs = [*zip(code.co_freevars, function.__closure__ or (), strict=True)]
        closure = tuple(cell if name in assigned else self._cell(cell) for name, cell in pairs)
        frozen = types.FunctionType(code, values, function.__name__, None, closure)
        self.made[id(function)] = frozen
        if values is not function.__globals__:
            values |= {name: self._global(value, function) for name, value in values.items()}
        frozen.__defaults__ = function.__defaults__ and tuple(map(self.freeze, function.__defaults__))
        if function.__kwdefaults__:
            frozen.__kwdefaults__ = {name: self.freeze(value) for name, value in function.__kwdefaults__.items()}
        frozen.__dict__.update(function.__dict__)
        frozen.__module__, frozen.__qualname__ = function.__module__, function.__qualname__
        return frozen

    def _cell(self, cell: types.CellType) -> types.CellType:
        if id(cell) in self.cells:
            return self.cells[id(cell)]
        try:
            content = cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            return cell
        frozen = self.cells[id(cell)] = types.CellType()
        frozen.cell_contents = self.freeze(content)
        return frozen

    def _global(self, value: Any, function: types.FunctionType) -> Any:
        """Return what a global name holds; a function of another file is not looked into."""
        foreign = isinstance(value, types.FunctionType) and value.__globals__ is not function.__globals__
        return value if foreign else self.freeze(value)


def package_of(function: types.FunctionType) -> str:
    """Return the name of the package that a function stands in."""
    return str(function.__globals__.get("__name__", "")).partition(".")[0]


def names_in(code: types.CodeType) -> set[str]:
    """Return the global names that a function, and those inside it, may look up."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(names_in, inner))


def _assigned(code: types.CodeType) -> set[str]:
    """Return the variables from outside that a function, or one inside it, assigns."""
    found: set[str] = set()
    if any(write in code.co_code[::2] for write in _WRITES):
        for step in dis.get_instructions(code):
            if step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in code.co_freevars):
                found.add(step.argval)
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            found |= _assigned(part) - {*code.co_cellvars}
    return found
