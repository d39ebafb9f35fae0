"""Which part of a training step takes the time: forward and backward, by torch's own profiler.

A part is a submodule or a method whose calls are marked. The profiler numbers every operator that
makes a node of the graph, and gives the node's backward the same number; so the time of backward
goes to the part that made the node. What no mark covers, adding up gradients included, is "rest".
Within a marked call other marks do not count: encoders called by a contrast belong to the contrast.
The profiler slows a step down; how much is told beside the shares.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

__all__ = ["mark_recommender", "step_parts"]

PART = "part: "
BACKWARD = "backward of the step"
NODE = "autograd::engine::evaluate_function: "


def mark(owner: Any, method: str, part: str) -> None:
    """Let every call of a method, ``forward`` of a module for one, count as a part."""
    call = getattr(owner, method)

    def marked(*arguments: Any, **named: Any) -> Any:
        with record_function(PART + part):
            return call(*arguments, **named)

    setattr(owner, method, marked)


def step_parts(
    loss: Callable[[Any], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Any],
    steps: int,
) -> dict[str, Any]:
    """Shares of some steps by part, after one that warms up and as many without the profiler."""

    def step() -> None:
        with record_function(PART + "batches"):
            batch = next(batches)
        optimizer.zero_grad()
        value = loss(batch)
        with record_function(BACKWARD):
            value.backward()
        with record_function(PART + "optimizer"):
            optimizer.step()

    step()
    plain, processor = _seconds(step, steps)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        profiled, profiled_processor = _seconds(step, steps)
    parts = _attribute(profiler.events() or [])
    total = 1e6 * profiled
    parts["rest"] = {
        "forward": total - sum(sum(part.values()) for part in parts.values()),
        "backward": parts.pop("rest", {"backward": 0.0})["backward"],
    }
    parts["rest"]["forward"] -= parts["rest"]["backward"]
    return {
        "steps": steps,
        "seconds_a_step": plain / steps,
        "processor_seconds_a_step": processor / steps,
        "profiled_to_plain": profiled_processor / processor,
        "share": {
            name: {way: microseconds / total for way, microseconds in ways.items()}
            for name, ways in parts.items()
        },
    }


def _seconds(step: Callable[[], None], steps: int) -> tuple[float, float]:
    """On the clock, and of the processor."""
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return time.perf_counter() - start, time.process_time() - processor


def _attribute(events: list[FunctionEvent]) -> dict[str, dict[str, float]]:
    """Microseconds of every part, forward and backward."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    made_by: dict[int, str] = {}  # the number of a node -> the part
    nodes: list[FunctionEvent] = []
    for event in sorted(events, key=lambda event: event.time_range.start):
        names = list(_path(event))
        marks = [name.removeprefix(PART) for name in names if name.startswith(PART)]
        if BACKWARD in names:
            if event.name.startswith(NODE) and not any(n.startswith(NODE) for n in names[1:]):
                nodes.append(event)  # a node's own backward pass is counted within it
        elif event.sequence_nr >= 0:  # the last operator with a number is the one that made it
            made_by[event.sequence_nr] = marks[-1] if marks else "rest"
        if event.name.startswith(PART) and len(marks) == 1 and BACKWARD not in names:
            found[marks[0]]["forward"] += event.cpu_time_total
    for event in nodes:
        found[made_by.get(event.sequence_nr, "rest")]["backward"] += event.cpu_time_total
    return dict(found)


def _path(event: FunctionEvent | None) -> Iterator[str]:
    """The names of an event and of all that it happened in, the innermost first."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def mark_recommender(model: nn.Module, objective: nn.Module) -> None:
    """The parts of CAMMSR and HM4SR that their papers name."""
    mark(model.get_submodule("items"), "forward", "projection")
    for name in ("enrichment", "interactive", "time_code", "temporal"):
        block = getattr(model, name, None)
        if block is not None:
            mark(block, "forward", "experts")
    for encoder in model.get_submodule("encoders").children():
        mark(encoder, "forward", "encoders")
    for name in ("_id_contrast", "_placeholder_contrast"):
        if hasattr(model, name):
            mark(model, name, "contrast")
    if hasattr(model, "_category"):
        mark(model, "_category", "category loss")
    mark(objective, "contrast", "contrast")
    mark(objective, "_next_item", "softmax and loss")
