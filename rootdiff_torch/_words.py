"""What the docstrings of the entry points say of PyTorch."""

from __future__ import annotations

WORDS = {
    "imports": "torch, rootdiff_torch as rd",
    "xp": "torch",
    "asarray": "torch.tensor",
    "ox_minimize": ', and "torch:LBFGS"',
    "array": "tensor",
    "residual": """
        It must not change its inputs. Tensors and module parameters that it closes over are found and differentiated;
        passing them through `args` is faster.
    """,
    "cell": "; an `nn.Module` will do",
    "device": ", on one device",
    "args": """
        Parameters, on the device of `y0`. Tensors are differentiated; everything else, numbers too, is passed on as it
        is. Tensors that a dataclass or another object holds are found as those that the residual closes over.
    """,
    "large_squares": ", above 1024 unknowns by products with J",
    "in_axes": "``in_dims`` of `torch.vmap`",
    "batched_args": "It is ignored under a transform of torch.func, too.",
    "fixed_point_options": ", cuda_graph",
    "correct": "What it closes over is not differentiated.",
    "callback": "Under `torch.func.vmap` the tensors of this have the mapped axes in front.",
    "history": "Not under `torch.func.vmap`.",
    "check": ", and not under torch.func",
    "cuda_graph": """
        cuda_graph : bool
            Whether to record a step of the solver, and of an iterative linear solve, as a CUDA graph, and to replay it:
            several times faster where the kernels are short. Python runs the residual only for the first steps then, so
            that it must be a function of tensors alone, and must not wait for the device. Not with `callback`,
            `verbose` or `history`.
    """,
    "solution": "With `y`, which is differentiable, and `status`, `steps` and `residual_norm`, which are not.",
    "steps": """
        `y` is differentiable in `y0`, `t`, `args` and in what `f` closes over: a root on the tape for each step.
    """,
    "raises": """
        TransformError
            If an argument is batched by autograd's own vmap; `torch.func.vmap` works.
    """,
    "orders": ", of any order, in reverse and forward mode",
    "notes": """
        Under autocast the solve runs in the dtype of `y0`, and `args` of lower precision are converted to it; TF32 is
        off for convolutions. It is not for matrix products if you have asked for it,
        ``set_float32_matmul_precision("high")``: then no more than ``rtol=1e-3`` can be reached.
    """,
    "implicit_example": """
        >>> @rd.implicit.wrap(lambda y, a: y**2 - a)
        ... def heron(y, a):
        ...     for _ in range(10):
        ...         y = (y + a / y) / 2
        ...     return y
        >>> torch.func.jacrev(lambda a: heron(torch.ones_like(a), a).y)(torch.tensor([4.0]))
        tensor([[0.2500]])
    """,
    "captured": "Tensors that the residual captures count, too.",
    "concrete": ", or under a transform, where values are not known",
    "root_example": """
        >>> a = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        >>> y = rd.root(lambda y, a: y**2 - a, torch.ones_like(a), a).y
        >>> y.sum().backward()
        >>> a.grad
        tensor([0.3536], dtype=torch.float64)
    """,
}
