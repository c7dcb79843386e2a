"""The entry points of one package: those of all, with an adapter, a signature and a docstring of their own."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping
from string import Template
from typing import Concatenate, ParamSpec, TypeVar

from rootdiff._adapter import Adapter
from rootdiff._errors import ArgumentTypeError, RootdiffError
from rootdiff._names import BACKENDS

P = ParamSpec("P")
T = TypeVar("T")
#: The options that one package alone takes.
_OWN = dict.fromkeys(("jac", "jvp", "vjp", "derivatives", "diff_step", "max_evaluations"), "rootdiff") | {
    "cuda_graph": "rootdiff_torch"
}
#: What the docstrings say of a framework that has no words of its own for it.
SHARED = {
    "aux": ", and has its whole derivative, through the root too",
    "differentiable": "differentiable in `args` and in what the residual closes over",
    "errors": """
        ArgumentError, ArgumentTypeError
            If an argument cannot be used; the message names it.
        ConvergenceError
            If a system fails and ``on_failure="raise"``$untraced.
        $raises
    """,
    "large": "NewtonKrylov",
    "sparse_squares": """
        jac_sparsity : sparse array or Pattern, (m, n), optional
            Where dr/dy of one system may have entries: as for `root`, with a row for each number that the residual
            returns. Steps are then those of sparse factors of J^T J, derivatives those of factors of the Hessian; where
            an unknown stands in very many rows these are dense: leave it out, and take ``adjoint="cg"``.
    """,
}


def bound(function: Callable[Concatenate[Adapter, P], T], adapter: Adapter) -> Callable[P, T]:
    """Return an entry point for one framework, with signature and docstring of its own.

    An option that another framework alone has is refused by its name; an error calls the arguments as the entry does.
    """
    BACKENDS.setdefault(adapter.backend().name)
    signature = inspect.signature(function, eval_str=True)
    _, *parameters = signature.parameters.values()  # all but the adapter
    first, start = (p.name for p in parameters[:2])
    foreign = {p.name for p in parameters if _OWN.get(p.name, adapter.package) != adapter.package}

    def entry(*args: P.args, **options: P.kwargs) -> T:
        for name in foreign.intersection(options):
            raise ArgumentTypeError(
                f"{name}: {adapter.package}.{function.__name__} has no such option; only {_OWN[name]} takes it. Leave "
                f"it out, or call {_OWN[name]}.{function.__name__}."
            )
        try:
            return function(adapter, *args, **options)
        except RootdiffError as error:
            if not error.named:
                message = re.sub(r"\by0\b", start if start in ("z0", "z", "y") else "y0", str(error))
                message = re.sub("^residual:", "objective:", message) if first == "objective" else message
                error.args, error.named = (message,), True
            raise

    entered = adapter.entered(entry)
    vars(entered).pop("__wrapped__", None)  # or tools for documentation take it for that of `function`
    signature = signature.replace(parameters=[p for p in parameters if p.name not in foreign])
    entered.__signature__ = signature  # type: ignore[attr-defined]
    entered.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    entered.__annotations__["return"] = signature.return_annotation
    entered.__doc__ = filled(function.__doc__, adapter.words)
    entered.__name__ = entered.__qualname__ = function.__name__
    entered.__module__ = adapter.package
    return entered


def filled(doc: str | None, words: Mapping[str, str]) -> str:
    """Return a docstring with words in place of ``$name``; a line of such a name alone takes a block, or goes."""
    words, lines = defaultdict(str, SHARED | dict(words)), list[str]()
    for line in inspect.cleandoc(doc or "").splitlines():
        name = line.strip().removeprefix("$")
        if line.endswith(f"${name}") and name.isidentifier():
            block = filled(words[name], words)
            lines += [textwrap.indent(block, line.partition("$")[0])] if block else []
        elif line or lines[-1:] != [""]:
            lines.append(Template(line).substitute(words))
    return "\n".join(lines)
