"""Says which stage each kernel of a compiled layer belongs to, by the lines of code that it was made from.

Inside a compiled graph no mark is left. But torch's compiler can keep, for every kernel that it calls, the stack traces
of the operations in it: such a line belongs to the stage whose ``with stage(...)`` it stands in, or was called from.
A kernel made from lines of several stages belongs to none of them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench.profiling.spans import FUSED

_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+)', re.MULTILINE)
_CALLED = re.compile(r"\[Provenance debug handles\] (\S+)")
_CALL = re.compile(r"(?:torch\.ops\.(?P<space>\w+)|extern_kernels)\.(?P<name>\w+)")


class Called(NamedTuple):
    """A kernel that a compiled graph calls: its name as the profiler sees it, and its stages as far as known."""

    name: str
    stages: frozenset[str]

    @property
    def stage(self) -> str:
        """The one stage that it belongs to, or :data:`~bench.profiling.spans.FUSED`."""
        return next(iter(self.stages)) if len(self.stages) == 1 else FUSED


@dataclass(frozen=True)
class Origins:
    """What is known of the graphs that were compiled while this was kept.

    Attributes:
        graphs: kernels in the order of their calls, by the graph's number and whether it is a backward.
    """

    graphs: dict[tuple[int, bool], list[Called]] = field(default_factory=dict)

    def stages_of_call(self, graph: int, names: Iterable[str], *, backward: bool) -> list[str]:
        """The stage of every kernel of one call of a graph; what does not fit what was compiled is fused."""
        wanted = list(names)
        left = {name: [k for k in self.graphs.get((graph, backward), ()) if k.name == name] for name in set(wanted)}
        known = {name for name, kernels in left.items() if len(kernels) == wanted.count(name)}
        return [left[name].pop(0).stage if name in known else FUSED for name in wanted]


@contextmanager
def kept_origins() -> Iterator[Origins]:
    """While this is open, what is compiled is marked for the profiler, and its kernels' origins are kept.

    Every graph is made anew, because one that is found in a cache says nothing of its origins.
    """
    import torch._functorch.config as functorch  # here: they load the compiler, which takes seconds
    import torch._inductor.config as inductor
    from torch._inductor import debug
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    found = Origins()

    def keep(code: str) -> None:
        graph: Any = V.graph  # torch types its module loosely, and its number as one that may be missing
        traces = dict(debug._inductor_kernel_stack_trace)  # noqa: SLF001 - torch has no other place
        traces |= _own_traces(graph.module.graph.nodes, debug)
        # the code names the calls of this graph in their order; what torch keeps may also be of graphs before it
        found.graphs[graph.graph_id, graph.is_backward] = [
            Called(event_name(called), stages_of(traces.get(called, ()))) for called in _CALLED.findall(code)
        ]

    before = GraphLowering.save_output_code
    settings = {
        "cpp.enable_kernel_profile": True,
        "profiler_mark_wrapper_call": True,
        "trace.provenance_tracking_level": 1,
        "fx_graph_cache": False,
    }
    with inductor.patch(settings), functorch.patch(enable_autograd_cache=False):
        GraphLowering.save_output_code = keep
        try:
            yield found
        finally:
            GraphLowering.save_output_code = before


def _own_traces(nodes: Iterable[Any], debug: Any) -> dict[str, list[str]]:
    """Traces of the operation that a call of torch's own kernel was made for, without what only prepares its inputs."""
    by_name = {node.name: node for node in nodes}
    found = {}
    for called, names in debug._inductor_triton_kernel_to_post_grad_node_info.items():  # noqa: SLF001 - the same
        made_for = [by_name[name] for name in names if name in by_name]
        own = [node for node in made_for if str(node.target).split(".")[:2] == event_name(called).split("::")]
        if traces := [node.stack_trace for node in own if node.stack_trace]:
            found[called] = traces
    return found


def event_name(called: str) -> str:
    """How the profiler names what the compiler calls ``extern_kernels.mm:2`` or ``cpp_fused_add_0:1``."""
    match = _CALL.match(called)
    return f"{match['space'] or 'aten'}::{match['name']}" if match else called.rpartition(":")[0]


def stages_of(traces: Iterable[str]) -> frozenset[str]:
    """The stages that lines of code stand in, each given with those that called it, the innermost last."""
    return frozenset(stage for trace in traces if (stage := _stage_of(trace)))


def _stage_of(trace: str) -> str | None:
    frames = [(match["file"], int(match["line"])) for match in _FRAME.finditer(trace)]
    return next((stage for file, line in reversed(frames) if (stage := _stages_by_line(file).get(line))), None)


@cache
def _stages_by_line(file: str) -> Mapping[int, str]:
    """The stage of every line of a file that stands in a ``with stage(...)``; the inner one where two are nested."""
    try:
        tree = ast.parse(Path(file).read_text())
    except (OSError, ValueError, SyntaxError):
        return {}  # no file of code that can be read: nothing is known of its lines
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)]  # outer ones come first
    return {
        line: name
        for block in blocks
        for name in _marks(block)
        for line in range(block.body[0].lineno, (block.end_lineno or block.lineno) + 1)
    }


def _marks(block: ast.With) -> Iterator[str]:
    for item in block.items:
        match item.context_expr:
            case ast.Call(func=ast.Name(id="stage"), args=[ast.Constant(value=str(name)), *_]):
                yield name
