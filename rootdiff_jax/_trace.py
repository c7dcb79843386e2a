"""The residual as a value: its jaxpr with everything that it closes over hoisted, comparable by structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff_jax._mesh import has_explicit_axes, partition, vary, varying_axes

#: Parameters that hold the derivative rule of a custom_jvp or custom_vjp: functions, made anew by each trace.
_RULES = frozenset({"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees"})
#: Times a residual is differentiated in search of a derivative without such rules, by which to compare it.
_ORDERS = 3


class Traced:
    """A function of arrays as a jaxpr without constants; two that do the same, derivatives included, are equal.

    So a program compiled for one serves the other: a lambda made anew in each call does not compile anew.

    Attributes
    ----------
    reverse_only : bool. Whether a `custom_vjp` is in it, so that it has no forward-mode derivative.
    differentiable : bool. Whether it has a derivative in its first argument: a callback of it has none, without a rule.
    axes : frozenset. The mesh axes of an enclosing ``shard_map`` that its value varies over.
    spec : PartitionSpec. How its value is spread over the explicit axes of a mesh.
    names : frozenset. The axes, of a mesh or named by `jax.vmap`, over which each evaluation communicates.
    indexed : frozenset. Those whose index a function within, such as a jitted one, takes.
    """

    def __init__(self, jaxpr: Any, operands: Sequence[Any]) -> None:
        self._jaxpr = jaxpr
        self.reverse_only = _has_custom_vjp(jaxpr)
        calls_out = any(equation.primitive.name.endswith("callback") for equation in equations(jaxpr, rules=False))
        self.differentiable = not calls_out or _has_derivative(jaxpr, operands)
        (value,) = jaxpr.outvars
        self.axes, self.spec = varying_axes(value.aval), partition(value.aval)
        self._spread = tuple(partition(variable.aval) for variable in jaxpr.invars) if has_explicit_axes() else None
        self.names = frozenset(name for equation in equations(jaxpr) for name in _names(equation))
        indices = (equation for equation in equations(jaxpr) if equation.primitive.name == "axis_index")
        self.indexed = frozenset(equation.params["axis_name"] for equation in indices)
        self._key = _key(jaxpr, operands, _ORDERS)
        self._hash = hash(self._key)

    def __call__(self, *operands: Array) -> Array:
        return self._value(*operands) if self.differentiable else _with_no_derivative(self._value)(*operands)

    def _value(self, *operands: Array) -> Array:
        if self._spread is None or has_explicit_axes():
            return self._evaluated(*operands)
        return jax.sharding.explicit_axes(self._evaluated, in_sharding=self._spread)(*operands)

    def _evaluated(self, *operands: Array) -> Array:
        (value,) = jax.core.eval_jaxpr(self._jaxpr, (), *operands)
        return value

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and self._hash == other._hash and self._key == other._key


def trace(
    function: Callable[..., Array], y: Array, parameters: Sequence[Any], samples: Sequence[bool] | None = None
) -> tuple[Traced, tuple[Any, ...]]:
    """Return `function` as ``traced(y, *operands)``, and the operands: the parameters, then what it closes over.

    `samples` tell which of the parameters stand for others of their type.
    """
    jaxpr, inputs = _opened(jax.make_jaxpr(function)(y, *parameters), (y, *parameters))
    places = [1 + place for place, flag in enumerate(samples or ()) if flag]
    jaxpr, hoisted = _hoist(jaxpr, inputs, frozenset([0, *places]))
    inputs = (*inputs, *hoisted)
    return Traced(jaxpr, inputs), inputs[1:]


def _has_derivative(jaxpr: Any, operands: Sequence[Any]) -> bool:
    """Return whether a function has a derivative in the first of its operands, as far as JAX knows."""
    y, *others = operands
    try:
        jax.eval_shape(lambda y: jax.vjp(lambda y: jax.core.eval_jaxpr(jaxpr, (), y, *others), y)[0], y)
    except ValueError:
        return False
    return True


def _with_no_derivative(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return a function whose derivative says why there is none, whoever asks for it."""

    @jax.custom_jvp
    def known(*operands: Any) -> Array:
        return function(*operands)

    @known.defjvp
    def rule(_: Any, __: Any) -> Any:
        raise ArgumentError(
            "residual: a derivative of it was asked for, by the solver or by that of the root, but it calls out of JAX "
            "(jax.pure_callback or io_callback), where JAX sees none. To find the root use solver='auto', 'df_sane' or "
            "'scipy:hybr', or for a fixed point 'anderson'; for derivatives wrap the call in a function with a rule: "
            "jax.custom_jvp or jax.custom_vjp."
        )

    return known


def of_some(
    function: Callable[..., Any], operands: Sequence[Any], places: Sequence[int]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a function of operands as one of those at `places`, and these; the others stay as they are."""

    def of_places(*values: Any) -> Any:
        chosen = dict(zip(places, values, strict=True))
        return function(*(chosen.get(place, operand) for place, operand in enumerate(operands)))

    return of_places, tuple(operands[place] for place in places)


def _opened(closed: Any, inputs: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return the jaxpr of a traced function with its constants as further inputs, and all inputs."""
    jaxpr = closed.jaxpr
    return jaxpr.replace(constvars=[], invars=[*jaxpr.invars, *jaxpr.constvars]), (*inputs, *closed.consts)


def _hoist(jaxpr: Any, inputs: Sequence[Any], unknown: frozenset[int]) -> tuple[Any, list[Any]]:
    """Return the jaxpr with what it makes of constants alone as further inputs, and the values of these.

    Floating literals always, since a closure over a Python float has it as one, and must not compile anew for each
    value. Where it has to do with the axes of a mesh all else too: constants are typed as varying, and are summed over
    devices, only once. An index along an axis always: only here the axis has its name. Inputs at the `unknown` places
    are no constants.
    """
    mesh = jax.sharding.get_abstract_mesh()
    apart = any(equation.primitive.name == "pvary" or _names(equation) for equation in jaxpr.eqns)
    pairs = enumerate(zip(jaxpr.invars, inputs, strict=True))
    known = {variable: value for place, (variable, value) in pairs if place not in unknown}
    count = len(known)

    def hoist(atom: Any) -> Any:
        if not isinstance(atom, Literal) or not jnp.issubdtype(jnp.result_type(atom.val), jnp.inexact):
            return atom
        kind: Any = atom.aval
        variable = Var(kind)
        known[variable] = np.asarray(atom.val, dtype=kind.dtype)
        return variable

    equations = []
    for equation in jaxpr.eqns:
        constant = apart or equation.primitive.name == "axis_index"
        if constant and all(isinstance(atom, Literal) or atom in known for atom in equation.invars):
            values = [atom.val if isinstance(atom, Literal) else known[atom] for atom in equation.invars]
            known |= zip(equation.outvars, _apply(equation, values), strict=True)
        elif equation.ctx.cur_abstract_mesh == mesh:
            equations.append(equation.replace(invars=list(map(hoist, equation.invars))))
        else:  # within `auto_axes`: inputs are typed for the mesh outside of it
            equations.append(equation)
    further = list(known)[count:]
    return jaxpr.replace(invars=[*jaxpr.invars, *further], eqns=equations), [known[v] for v in further]


def _apply(equation: Any, values: Sequence[Any]) -> Sequence[Any]:
    """Return the outputs of one equation."""
    if equation.primitive.name == "pvary":
        return [vary(value, equation.params["axes"]) for value in values]
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair before JAX 0.10
    found = equation.primitive.bind(*functions, *values, **params)
    return found if equation.primitive.multiple_results else [found]


def equations(jaxpr: Any, rules: bool = True) -> Iterator[Any]:
    """Yield the equations of a jaxpr, and of those in their parameters, but not of a ``shard_map`` within.

    Those of functions with a derivative rule of their own only with `rules`.
    """
    for equation in jaxpr.eqns:
        yield equation
        name = equation.primitive.name
        if name == "shard_map" or (name.startswith("custom_") and not rules):
            continue
        for inner in _jaxprs(tuple(equation.params.values())):
            yield from equations(inner, rules)


def _jaxprs(value: Any) -> Iterator[Any]:
    """Yield the jaxprs among the parameters of an equation."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _jaxprs(item)


def _names(equation: Any) -> list[Any]:
    """Return the named axes that an equation communicates over."""
    if equation.primitive.name in ("pvary", "axis_index"):
        return []
    found: list[Any] = []
    for key in ("axes", "axis_name"):
        axes = equation.params.get(key, ())
        found += axes if isinstance(axes, tuple) else [axes]
    return [name for name in found if not isinstance(name, int)]


def _has_custom_vjp(jaxpr: Any) -> bool:
    return any(equation.primitive.name.startswith("custom_vjp") for equation in equations(jaxpr))


def _key(jaxpr: Any, operands: Sequence[Any], orders: int) -> Any:
    """Return a hashable value that only jaxprs doing the same have.

    Custom derivative rules cannot be compared; but what they do can be, as the jaxpr of the derivative. There a
    custom function may occur again, its rule known by then; a new one is followed to the next derivative.
    """
    custom = _custom_functions(jaxpr)
    if custom and orders > 0:
        try:
            derivative, inputs = _derivative(jaxpr, operands)
        except Exception:  # not differentiable: for those to find out who differentiate it
            return _jaxpr_key(jaxpr, frozenset())
        all_known = _custom_functions(derivative) <= custom
        following = _jaxpr_key(derivative, _RULES) if all_known else _key(derivative, inputs, orders - 1)
        return _jaxpr_key(jaxpr, _RULES), following
    return _jaxpr_key(jaxpr, frozenset())


def _custom_functions(jaxpr: Any) -> set[Any]:
    """Return what stands for each function with a custom derivative: its name and its own jaxpr."""
    return {
        (equation.primitive, equation.params.get("name"), _value_key(equation.params["call_jaxpr"], _RULES))
        for equation in equations(jaxpr)
        if equation.primitive.name.startswith(("custom_jvp", "custom_vjp"))
    }


def _derivative(jaxpr: Any, operands: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Return the jaxpr of the derivative of a jaxpr, without constants, and inputs for it."""
    closed_over = {
        variable
        for equation in jaxpr.eqns
        for variable in equation.invars[: equation.params.get("num_consts", 0)]
        if isinstance(variable, Var)
    }  # by custom functions, which have no derivative in them
    places = [
        place
        for place, (variable, value) in enumerate(zip(jaxpr.invars, operands, strict=True))
        if variable not in closed_over and jnp.issubdtype(jnp.result_type(value), jnp.inexact)
    ]

    floating, primals = of_some(partial(jax.core.eval_jaxpr, jaxpr, ()), operands, places)
    if _has_custom_vjp(jaxpr):
        cotangents = [jnp.zeros_like(value) for value in jax.eval_shape(floating, *primals)]
        closed = jax.make_jaxpr(lambda p, c: jax.vjp(floating, *p)[1](c))(primals, cotangents)
        inputs = (*primals, *cotangents)
    else:
        tangents = tuple(map(jnp.zeros_like, primals))
        closed = jax.make_jaxpr(lambda p, t: jax.jvp(floating, p, t))(primals, tangents)
        inputs = (*primals, *tangents)
    return _opened(closed, inputs)


def _jaxpr_key(jaxpr: Any, ignored: frozenset[str]) -> Any:
    """Return a hashable value with everything in a jaxpr but the `ignored` parameters; variables are numbered."""
    numbers: dict[Any, int] = {}

    def number(variable: Any) -> int:
        return numbers.setdefault(variable, len(numbers))

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return str(atom.aval), np.asarray(atom.val).tobytes()
        return number(atom)

    heads = tuple((number(variable), variable.aval) for variable in (*jaxpr.constvars, *jaxpr.invars))
    equations = tuple(
        (
            equation.primitive,
            tuple(map(read, equation.invars)),
            tuple((name, _value_key(value, ignored)) for name, value in equation.params.items() if name not in ignored),
            tuple((number(variable), variable.aval) for variable in equation.outvars),
            _value_key(equation.ctx, ignored),
        )
        for equation in jaxpr.eqns
    )
    return len(jaxpr.constvars), heads, equations, tuple(map(read, jaxpr.outvars))


def _value_key(value: Any, ignored: frozenset[str]) -> Any:
    """Return a hashable value for a parameter of an equation; of what cannot be compared, its identity."""
    if isinstance(value, ClosedJaxpr):
        return _jaxpr_key(value.jaxpr, ignored), tuple(_value_key(const, ignored) for const in value.consts)
    if isinstance(value, Jaxpr):
        return _jaxpr_key(value, ignored)
    if isinstance(value, tuple | list):
        return type(value), tuple(_value_key(item, ignored) for item in value)
    if isinstance(value, dict):
        return tuple((key, _value_key(item, ignored)) for key, item in value.items())
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return type(value), value


class _Identity:
    """A value compared by identity, and kept alive so that its identity stays its own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value
