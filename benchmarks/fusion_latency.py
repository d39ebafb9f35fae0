"""What does a fusion cost?

Time, parameters and memory of every fusion of mmfuse, forward and forward + backward, eager and
compiled, beside the same fusions of other libraries (``fusion_peers.py``). All fusions of a setting
are timed in turn, A B C A B C ..., so that a drift of the machine touches all; what counts is the
ratio within a round: of every fusion to ``concat``, and of ours to a peer. Dropout is off. On one
thread the clock is that of the process, which does not run while other programs do.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import Any, NamedTuple

import torch
from fusion_peers import PEERS, Ours, ours, unregistered
from measuring import write_result
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

WAYS = ("forward", "forward_backward")
FEW = 32  # rows of the step that says how much memory a setting would take
COMPILED = ["concat", "gated", "low_rank", "mlb", "block", "attention_pooling", "transformer"]
LIBRARIES = ("torchmultimodal-nightly", "pykale", "block.bootstrap.pytorch", "aecf")


class Contender(NamedTuple):
    """A fusion, its inputs, and the gradient that it is given back."""

    run: Callable[..., Tensor]
    module: nn.Module
    inputs: tuple[Tensor, ...]
    gradient: Tensor
    leaves: tuple[Tensor, ...]  # whose gradients a step starts without


def step(contender: Contender, backward: bool) -> None:
    if not backward:
        with torch.no_grad():
            contender.run(*contender.inputs)
        return
    for leaf in contender.leaves:
        leaf.grad = None
    contender.run(*contender.inputs).backward(contender.gradient)


def seconds(contender: Contender, backward: bool, repeats: int = 1) -> float:
    """Of one step."""
    cuda = contender.inputs[0].is_cuda
    clock = time.perf_counter if cuda or torch.get_num_threads() > 1 else time.process_time
    start = clock()
    for _ in range(repeats):
        step(contender, backward)
    if cuda:
        torch.cuda.synchronize()
    return (clock() - start) / repeats


def of_mmfuse(name: str) -> str:
    """The fusion of ours that one is, or does the same as."""
    return PEERS[name].ours if name in PEERS else name


# -- contenders --------------------------------------------------------------------------------


def contender(
    name: str, dim: int, num_modalities: int, rows: int, arguments: argparse.Namespace
) -> Contender | None:
    """One of ours or of the peers; ``None`` where there is none for this setting."""
    torch.manual_seed(0)
    draw = partial(torch.randn, device=arguments.device, requires_grad=True)
    if name in PEERS:
        module = PEERS[name].build(dim, num_modalities)
        inputs = tuple(draw(rows, dim) for _ in range(num_modalities))
    else:
        module = Ours(name, dim, num_modalities)
        length = min(arguments.length, rows)
        lead = (rows // length, length) if arguments.ours[name] else (rows,)
        inputs = (draw(*lead, num_modalities, dim),)
    if module is None:
        return None
    module = module.to(arguments.device).eval()
    gradient = torch.randn_like(module(*inputs))
    leaves = (*inputs, *module.parameters(), *unregistered(module))
    return Contender(module, module, inputs, gradient, leaves)


def contenders(
    dim: int, num_modalities: int, rows: int, arguments: argparse.Namespace
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that fit, and why others are left out."""
    there, left_out = {}, {}
    for name in arguments.fusions:
        try:
            small = contender(name, dim, num_modalities, FEW, arguments)
            if small is None:
                continue
            fixed = sum(4 * p.numel() for p in small.module.parameters()) / 2**20  # gradients
            needs = fixed + (peak_mib(small) - fixed) * rows / FEW
            if needs > 1024 * arguments.largest_gib:
                left_out[name] = f"would need about {needs / 1024:.1f} GiB"
                continue
            full = contender(name, dim, num_modalities, rows, arguments)
        except (ValueError, RuntimeError) as error:
            left_out[name] = str(error)
            continue
        assert full is not None
        there[name] = full
    return there, left_out


def peak_mib(contender: Contender) -> float:
    """Most memory that a step holds at once, beyond inputs and parameters."""
    if contender.inputs[0].is_cuda:
        step(contender, True)  # the libraries' own room is taken once, at the first use
    for leaf in contender.leaves:
        leaf.grad = None
    if contender.inputs[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(contender, True)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step(contender, True)
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(live, default=0) / 2**20


def size(contender: Contender) -> dict[str, Any]:
    trained = sum(p.numel() for p in contender.module.parameters())
    hidden = sum(p.numel() for p in unregistered(contender.module))
    found: dict[str, Any] = {"parameters": trained, "peak_mib": peak_mib(contender)}
    return found | ({"parameters_that_no_optimizer_finds": hidden} if hidden else {})


# -- compilation -------------------------------------------------------------------------------


def compiler(arguments: argparse.Namespace) -> str:
    if arguments.backend:
        return arguments.backend
    there = arguments.device != "cpu" or any(map(shutil.which, ("c++", "g++", "clang++")))
    return "inductor" if there else "aot_eager"


def compiled(
    name: str, eager: Contender, arguments: argparse.Namespace
) -> tuple[Contender | None, dict[str, Any]]:
    """The contender, compiled, and how many seconds its first steps took."""

    def run(*inputs: Tensor) -> Tensor:
        return eager.module(*inputs)

    # A code object of its own: compiled functions of one code object check each other's guards.
    code = run.__code__.replace(co_name=f"run_{abs(hash(name))}")
    own = FunctionType(code, globals(), code.co_name, None, run.__closure__)
    ready = eager._replace(run=torch.compile(own, backend=compiler(arguments), dynamic=False))
    try:
        found = {}
        for way in arguments.ways:
            start = time.perf_counter()
            step(ready, way != "forward")
            found[way] = time.perf_counter() - start
        return ready, found
    except Exception as error:  # a peer's: said in the results
        return None, {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


# -- timing ------------------------------------------------------------------------------------


def in_turn(there: dict[str, Contender], backward: bool, arguments: argparse.Namespace) -> Any:
    """Medians, quartiles, and ratios round by round; a slow one is not timed again."""
    first = {n: seconds(one, backward) for n, one in there.items()}
    for name, one in there.items():
        if first[name] < arguments.slow or name == "concat":
            first[name] = min(first[name], *(seconds(one, backward) for _ in range(2)))
    slow = {n for n, taken in first.items() if taken > arguments.slow and n != "concat"}
    quick = {n: c for n, c in there.items() if n not in slow}
    repeats = {n: max(1, round(arguments.slice / first[n])) for n in quick}
    times: dict[str, list[float]] = {n: [] for n in quick}
    for _ in range(arguments.rounds):
        for name, one in quick.items():
            times[name].append(seconds(one, backward, repeats[name]))
    found: dict[str, Any] = {}
    for name in there:
        if name in slow:
            found[name] = {"first_ms": 1e3 * first[name]}
            found[name]["ratio_to_concat"] = first[name] / first["concat"]
            continue
        found[name] = {
            "median_ms": 1e3 * statistics.median(times[name]),
            "fastest_ms": 1e3 * min(times[name]),
            "quartiles_ms": [1e3 * q for q in quartiles(times[name])],
            **ratio("to_concat", times[name], times["concat"]),
        }
        if name in PEERS and of_mmfuse(name) in times:
            found[name] |= ratio("of_mmfuse", times[of_mmfuse(name)], times[name])
    return found


def ratio(name: str, own: list[float], other: list[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    return {
        f"ratio_{name}": statistics.median(ratios),
        f"ratio_{name}_quartiles": quartiles(ratios),
    }


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4)[::2]


def measure(dim: int, num_modalities: int, rows: int, arguments: argparse.Namespace) -> Any:
    there, left_out = contenders(dim, num_modalities, rows, arguments)
    row: dict[str, Any] = {"D": dim, "M": num_modalities, "rows": rows, "left_out": left_out}
    row["size"] = {name: size(one) for name, one in there.items()}
    row["eager"] = {way: in_turn(there, way != "forward", arguments) for way in arguments.ways}
    if arguments.compile == "none":
        return row
    ready, row["compile_seconds"] = {}, {}
    for name, eager in there.items():
        if of_mmfuse(name) not in arguments.compiled:
            continue
        one, row["compile_seconds"][name] = compiled(name, eager, arguments)
        if one is not None:
            ready[name] = one
    row["compiled"] = {way: in_turn(ready, way != "forward", arguments) for way in arguments.ways}
    torch.compiler.reset()
    return row


# -- tables ------------------------------------------------------------------------------------


def show(row: dict[str, Any]) -> None:
    print(f"\nD {row['D']}, M {row['M']}, {row['rows']} rows")
    for kind, way in itertools.product(("eager", "compiled"), WAYS):
        table = row.get(kind, {}).get(way, {})
        if table:
            print(f"{kind + ', ' + way:42}     ms   to concat   parameters       MiB   of mmfuse")
        for name, own in sorted(table.items(), key=lambda item: item[1]["ratio_to_concat"]):
            taken, size = own.get("median_ms", own.get("first_ms")), row["size"][name]
            line = f"{name:42} {taken:6.2f} {own['ratio_to_concat']:11.2f} "
            line += f"{size['parameters']:12,} {size['peak_mib']:9.2f} "
            if "ratio_of_mmfuse" in own:
                low, high = own["ratio_of_mmfuse_quartiles"]
                line += f"{own['ratio_of_mmfuse']:6.2f} ({low:.2f} to {high:.2f})"
            print(line)
    for name, why in row["left_out"].items():
        print(f"{name:42} left out: {why}", flush=True)


def rounded(value: Any) -> Any:
    """Four digits tell what a clock knows."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--modalities", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--length", type=int, default=16, help="of a sequence: rows are B * L")
    parser.add_argument("--fusions", nargs="+", choices=[*ours(), *PEERS], help="all by default")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--compile", choices=["none", "first", "all"], default="first", help="in which settings"
    )
    parser.add_argument(
        "--compiled", nargs="+", choices=ours(), default=COMPILED, help="with peers"
    )
    parser.add_argument("--backend", help="of torch.compile; inductor if there is a C++ compiler")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slice", type=float, default=0.002, help="least seconds of a measurement")
    parser.add_argument("--slow", type=float, default=0.1, help="seconds: one step is timed only")
    parser.add_argument("--largest-gib", type=float, default=2.0, help="leave larger ones out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="fusion_latency", help="name of the JSON file")
    arguments = parser.parse_args()
    arguments.ours = ours()
    chosen = arguments.fusions or [*arguments.ours, *PEERS]
    # Next to each other in a round: a fusion and its peers.
    chosen = sorted({"concat", *chosen}, key=lambda name: (of_mmfuse(name), name in PEERS, name))
    arguments.fusions, arguments.compiled = chosen, {"concat", *arguments.compiled}
    return arguments


def settings(arguments: argparse.Namespace) -> Iterator[tuple[int, int, int]]:
    for dim, num_modalities in itertools.product(arguments.dims, arguments.modalities):
        for rows in arguments.rows:
            yield dim, num_modalities, rows - rows % arguments.length or arguments.length


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch._inductor.config.force_disable_caches = True  # else the second run compiles in no time
    wanted, rows = arguments.compile, []
    for number, setting in enumerate(settings(arguments)):
        if wanted == "first" and number:
            arguments.compile = "none"
        rows.append(rounded(measure(*setting, arguments)))
        show(rows[-1])
        about = {"device": arguments.device, "backend": compiler(arguments), "peers": versions()}
        notes = {name: peer._asdict() for name, peer in PEERS.items()}
        for note in notes.values():
            del note["build"]
        options = {name: getattr(arguments, name) for name in ("length", "rounds", "slice", "slow")}
        write_result(arguments.output, {**about, **options, "notes": notes, "settings": rows})


if __name__ == "__main__":
    main()
