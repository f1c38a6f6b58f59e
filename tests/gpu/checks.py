"""Checks of what results do not tell of one launch: graphs, streams, and how keys are loaded."""

from __future__ import annotations

from tests.gpu.kernels import Runner
from tests.gpu.oracle import expected
from tests.kernels.cuda.problems import Case, check, operands, problem_of, results


def check_graph(runner: Runner, heads: int, capacity: int = 900) -> None:
    """Capture once, replay with other lengths on the device: what they say is what counts."""
    device, count = runner.device, runner.device.multiprocessors
    case = Case(heads=heads, lengths=(0, 0), capacity=capacity, causal=True)
    arrays = operands(case)
    made = results(case, arrays, expected(case, arrays))
    # Buffers are written in place: by name, an output that is an input is that input's memory.
    memory = {name: device.upload(array) for name, array in (made | arrays).items()}
    homes = {id(array): memory[name].address for name, array in (made | arrays).items()}
    problem = problem_of(case, arrays, made, lambda array: homes[id(array)])
    stream = device.stream()
    size = runner.library.workspace_bytes(problem, count)
    workspace = device.allocate(size)
    # Loads the kernels, which a capture could not.
    runner.library.launch(problem, count, workspace.address, size, stream)
    device.synchronize()
    with device.captured(stream) as graph:
        runner.library.launch(problem, count, workspace.address, size, stream)
    for lengths in ((5, 2 * capacity // 3), (capacity - 1, 0), (33, 32)):
        step = case.but(lengths=lengths, seed=sum(lengths))
        fresh = operands(step)
        wanted = expected(step, fresh)
        for name, array in fresh.items():
            held = device.upload(array)
            device.copy(memory[name].address, held.address, array.nbytes)
            device.synchronize()
        graph.launch(stream)
        device.synchronize()
        got = {
            name: device.download(memory[name.removeprefix("new_")], like)
            for name, like in results(step, fresh, wanted).items()
        }
        check(step, wanted, got)


def check_bulk_loads(runner: Runner) -> None:
    """Code for Hopper loads by the tensor memory accelerator.

    Where the driver would not describe tensors to it, all results would still be right.
    """
    case = Case(heads=128, past=1000)
    arrays = operands(case)
    made = results(case, arrays, {"output": arrays["query"][..., : case.rank]})
    memory = {id(array): runner.device.upload(array) for array in (arrays | made).values()}
    problem = problem_of(case, arrays, made, lambda array: memory[id(array)].address)
    is_hopper = runner.device.architecture == "90" and "90a" in runner.library.architectures
    assert runner.library.loads_in_bulk(problem) == is_hopper


def check_streams(runner: Runner, past: int = 6000, turns: int = 20) -> None:
    """The same problems, each with a workspace of its own, on two streams at once."""
    device = runner.device
    cases = [Case(heads=heads, past=past, seed=heads) for heads in (16, 128)]
    count, kept, started = device.multiprocessors, [], []
    for case in cases:
        arrays = operands(case)
        wanted = expected(case, arrays)
        made = results(case, arrays, wanted)
        memory = {id(array): device.upload(array) for array in [*arrays.values(), *made.values()]}
        problem = problem_of(case, arrays, made, lambda array, m=memory: m[id(array)].address)
        size = runner.library.workspace_bytes(problem, count)
        kept.append((device.allocate(size), memory))
        started.append((case, problem, size, kept[-1][0], device.stream(), wanted, made, memory))
    for _ in range(turns):
        for _, problem, size, workspace, stream, *_ in started:
            runner.library.launch(problem, count, workspace.address, size, stream)
    device.synchronize()
    for case, _, _, _, _, wanted, made, memory in started:
        got = {name: device.download(memory[id(array)], array) for name, array in made.items()}
        check(case, wanted, got)
