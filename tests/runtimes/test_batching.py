"""`ContinuousBatch`: whoever joins and leaves, each sequence says what it would say alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.errors import InputError
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import generate, session
from mla_opt.runtimes.onnxruntime.batching import BatchFullError, ContinuousBatch, Sampling
from mla_opt.runtimes.onnxruntime.binding import Binding
from mla_opt.verification.running import RunError
from tests.benchmarks import handmade
from tests.benchmarks.dims import Dims
from tests.runtimes.conftest import VOCABULARY

PROMPTS = [[3, 14, 15, 92, 65, 35], [8, 97], [9, 32, 38, 46], [1], list(range(40, 60))]


@pytest.fixture(scope="module")
def static(models):
    return session(models["static"])


def drain(batch: ContinuousBatch, said: dict[int, list[int]] | None = None) -> dict[int, list[int]]:
    """Step until all have ended; returns what each has said."""
    said = {} if said is None else said
    while batch.running:
        for new in batch.step():
            said.setdefault(new.sequence, []).append(new.token)
    return said


@pytest.mark.parametrize("layout", ["static", "static:64"])
def test_sequences_say_together_what_each_would_alone(models, greedy, layout):
    batch = ContinuousBatch.create(session(models[layout]), sequences=5, rows=64)
    lengths = [12, 3, 1, 20, 7]
    numbers = [batch.add(p, Sampling(n)) for p, n in zip(PROMPTS, lengths)]
    said = drain(batch)
    expected = [greedy(prompt, n) for prompt, n in zip(PROMPTS, lengths)]
    assert [said[number] for number in numbers] == expected


def test_with_the_function_body_too(models, greedy):
    """No kernel: the rows of each are counted by standard operators."""
    batch = ContinuousBatch.create(session(models["static"], kernel=False), sequences=3, rows=32)
    numbers = [batch.add(prompt, Sampling(6)) for prompt in PROMPTS[:3]]
    said = drain(batch)
    assert [said[n] for n in numbers] == [greedy(prompt, 6) for prompt in PROMPTS[:3]]


@pytest.mark.parametrize("cache_type", ["bfloat16", "int8"])
def test_rows_of_fewer_bits(cache_type):
    model = mla_opt.optimize(demo_model(), cache="static", cache_type=cache_type, verify=False)
    opened = session(model.model)
    batch = ContinuousBatch.create(opened, sequences=3, rows=32)
    numbers = [batch.add(prompt, Sampling(6)) for prompt in PROMPTS[:3]]
    said = drain(batch)
    for number, prompt in zip(numbers, PROMPTS):
        alone = ContinuousBatch.create(opened, sequences=1, rows=32)
        alone.add(prompt, Sampling(6))
        assert drain(alone)[0] == said[number]


def test_at_real_head_widths(tmp_path):
    path = tmp_path / "model.onnx"
    handmade.build(Dims(1, 64, 8, mlp=64, vocab=112), "expanded", path)
    opened = session(mla_opt.optimize(path, cache="static", verify=False).model)
    batch = ContinuousBatch.create(opened, sequences=2, rows=256)
    prompts = [list(range(90)) * 2, *PROMPTS[:3]]
    numbers = [batch.add(prompt, Sampling(9)) for prompt in prompts[:2]]
    said: dict[int, list[int]] = {}
    for prompt in prompts[2:]:
        while not batch.free:
            for new in batch.step():
                said.setdefault(new.sequence, []).append(new.token)
        numbers.append(batch.add(prompt, Sampling(9)))
    drain(batch, said)
    for number, prompt in zip(numbers, prompts):
        alone = generate(opened, prompt, max_new_tokens=9)
        assert said[number] == alone.tokens[0].tolist()


def test_sequences_join_and_leave_while_others_decode(static, greedy):
    batch = ContinuousBatch.create(static, sequences=3, rows=64, prompt_tokens=4)
    first, second = (batch.add(prompt, Sampling(30)) for prompt in PROMPTS[:2])
    said: dict[int, list[int]] = {}
    for _ in range(6):
        for new in batch.step():
            said.setdefault(new.sequence, []).append(new.token)
    # A prompt of five steps begins in the slot behind the two, which is another one when one goes.
    long = batch.add(PROMPTS[4], Sampling(8))
    for _ in range(3):
        for new in batch.step():
            said.setdefault(new.sequence, []).append(new.token)
    assert batch.lengths[long] == 12
    batch.drop(first)
    assert first not in batch.running
    late = batch.add(PROMPTS[2], Sampling(8))
    drain(batch, said)
    assert said[first] == greedy(PROMPTS[0], len(said[first]))
    assert said[second] == greedy(PROMPTS[1], 30)
    assert said[long] == greedy(PROMPTS[4], 8)
    assert said[late] == greedy(PROMPTS[2], 8)


def test_64_requests_on_5_places(static):
    """Of all lengths, each with the rows of others before it in its slot."""
    rng = np.random.default_rng(0)
    requests = [
        (
            rng.integers(0, VOCABULARY, rng.integers(1, 40)).tolist(),
            Sampling(int(rng.integers(1, 24))),
        )
        for _ in range(64)
    ]
    alone = ContinuousBatch.create(static, sequences=1, rows=64)
    expected = []
    for request in requests:
        number = alone.add(*request)
        expected.append(drain(alone)[number])
    batch = ContinuousBatch.create(static, sequences=5, rows=64, prompt_tokens=16)
    said: dict[int, list[int]] = {}
    for request in requests:
        while not batch.free:
            for new in batch.step():
                said.setdefault(new.sequence, []).append(new.token)
        batch.add(*request)
    drain(batch, said)
    assert [said[number] for number in range(64)] == expected
    assert len({tuple(tokens) for tokens in expected}) > 32, (
        "all say the same: nothing was compared"
    )


def test_nothing_stays_of_who_has_ended(static):
    """Wherever it was moved, and whether it came to its end or was dropped in its prompt."""
    batch = ContinuousBatch.create(static, sequences=3, rows=64, prompt_tokens=4)
    numbers = [batch.add(prompt, Sampling(9)) for prompt in PROMPTS[:2]]
    for _ in range(4):
        batch.step()
    late = batch.add(PROMPTS[4], Sampling(9))
    batch.step()
    batch.drop(numbers[0])
    batch.step()
    assert batch.lengths[late] == 8
    assert any(view.part.any() for view in batch._slots.view(0, 3))
    batch.drop(late)
    drain(batch)
    assert not any(view.part.any() for view in batch._slots.view(0, 3))


def test_prompts_wait_for_nobody_long(static):
    """A step runs as many tokens of prompts as it may, and one token of each that decodes."""
    batch = ContinuousBatch.create(static, sequences=4, rows=64, prompt_tokens=8)
    running = batch.add([5], Sampling(40))
    batch.step()
    long, short = batch.add(PROMPTS[4], Sampling(5)), batch.add([7, 8], Sampling(5))
    heard = [{new.sequence for new in batch.step()} for _ in range(4)]
    assert heard == [{running}, {running}, {running, long, short}, {running, long, short}]
    assert batch.lengths == {running: 5, long: 21, short: 3}


def test_stop_tokens_and_lengths(static, greedy):
    alone = greedy(PROMPTS[0], 12)
    stop = alone[4]
    batch = ContinuousBatch.create(static, sequences=2, rows=64)
    stopped = batch.add(PROMPTS[0], Sampling(12, stop_tokens=[stop]))
    cut = batch.add(PROMPTS[1], Sampling(3))
    reasons, said = {}, {}
    while batch.running:
        for new in batch.step():
            reasons[new.sequence] = new.finish_reason
            said.setdefault(new.sequence, []).append(new.token)
    assert reasons == {stopped: "stop", cut: "length"}
    assert said[stopped] == alone[: alone.index(stop) + 1]
    assert batch.free == 2
    assert batch.lengths == {}


def test_draws_do_not_depend_on_the_others(static):
    how = Sampling(10, temperature=1.3, top_k=30, top_p=0.95, seed=7)
    alone = ContinuousBatch.create(static, sequences=1, rows=32)
    alone.add(PROMPTS[0], how)
    expected = drain(alone)[0]
    batch = ContinuousBatch.create(static, sequences=3, rows=32)
    numbers = [batch.add(PROMPTS[0], how), batch.add(PROMPTS[1], how), batch.add(PROMPTS[0], how)]
    said = drain(batch)
    assert said[numbers[0]] == said[numbers[2]] == expected
    assert said[numbers[1]] != expected


def test_rows_that_an_ended_sequence_left_do_no_harm(models, greedy):
    """Neither numbers nor NaN, with the kernel or without, wherever the sequence is moved."""
    batch = ContinuousBatch.create(session(models["static"], kernel=False), sequences=2, rows=32)
    broken, fine = batch.add(PROMPTS[0], Sampling(8)), batch.add(PROMPTS[1], Sampling(8))
    said: dict[int, list[int]] = {}
    for new in batch.step():
        said[new.sequence] = [new.token]
    for view in batch._slots.view(0, 1):
        view.part[..., :6, :] = np.nan
    (ended, going) = batch.step()
    assert (ended.sequence, ended.token, ended.finish_reason) == (broken, -1, "error")
    assert "no finite numbers" in ended.error
    said[fine].append(going.token)
    late = batch.add(PROMPTS[2], Sampling(8))
    drain(batch, said)
    assert said[fine] == greedy(PROMPTS[1], 8)
    assert said[late] == greedy(PROMPTS[2], 8)


def test_a_failed_step_can_be_tried_again(static, greedy, monkeypatch):
    batch = ContinuousBatch.create(static, sequences=2, rows=32)
    numbers = [batch.add(prompt, Sampling(6)) for prompt in PROMPTS[:2]]
    said = {new.sequence: [new.token] for new in batch.step()}
    run = Binding.run
    monkeypatch.setattr(Binding, "run", failing)
    with pytest.raises(RunError):
        batch.step()
    # A prompt that fails concerns nobody else.
    batch.drop(numbers[1])
    monkeypatch.setattr(
        Binding, "run", lambda self, *call: (run if call[3] == 1 else failing)(self, *call)
    )
    poor = batch.add(PROMPTS[2], Sampling(6))
    for new in batch.step():
        if new.sequence == poor:
            assert (new.finish_reason, new.error) == ("error", "no memory")
        else:
            said[new.sequence].append(new.token)
    monkeypatch.setattr(Binding, "run", run)
    drain(batch, said)
    assert said[numbers[0]] == greedy(PROMPTS[0], 6)


def failing(self, *call):
    raise RunError("no memory")


def test_full_is_said_clearly_and_changes_nothing(static):
    batch = ContinuousBatch.create(static, sequences=2, rows=16)
    numbers = [batch.add([1, 2], Sampling(4)) for _ in range(2)]
    with pytest.raises(BatchFullError, match="all 2 sequences are taken; wait until one"):
        batch.add([1], Sampling(4))
    assert batch.running == tuple(numbers)
    batch.drop(numbers[0])
    assert batch.free == 1
    assert batch.add([1], Sampling(4)) not in numbers


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([1] * 10, Sampling(8), "10 tokens and 8 new ones take 17 rows, and there are 16"),
        ([], Sampling(1), "no tokens"),
        ([[1], [2]], Sampling(1), "one sequence of one token or more"),
        ([VOCABULARY], Sampling(1), f"the model knows 0 to {VOCABULARY - 1}"),
        ([1], Sampling(0), "max_new_tokens must be at least 1"),
        ([1], Sampling(1, temperature=-1), "temperature"),
        ([1], Sampling(1, stop_tokens=[VOCABULARY]), "token id"),
    ],
)
def test_what_cannot_be_added(static, prompt, sampling, message):
    batch = ContinuousBatch.create(static, sequences=1, rows=16)
    for refuse in (batch.add, batch.check):
        with pytest.raises(InputError, match=message):
            refuse(prompt, sampling)
    assert batch.running == ()
    batch.add([1] * 10, Sampling(7))


def test_who_is_gone_cannot_be_dropped(static):
    batch = ContinuousBatch.create(static, sequences=1, rows=16)
    number = batch.add([1], Sampling(1))
    batch.step()
    for gone in (number, 5):
        with pytest.raises(InputError, match=f"no sequence {gone} is running"):
            batch.drop(gone)


def test_caches_that_grow_are_refused(models):
    for layout in ("keep", "packed"):
        with pytest.raises(InputError, match="rows are not counted for each sequence; optimize"):
            ContinuousBatch.create(session(models[layout]))


def test_arguments_without_a_meaning(static, models):
    with pytest.raises(InputError, match="prompt_tokens must be at least 1"):
        ContinuousBatch.create(static, prompt_tokens=0)
    with pytest.raises(InputError, match="takes 1 sequence or more"):
        ContinuousBatch.create(static, sequences=0)
    with pytest.raises(InputError, match="buffers of 64 rows, not 32"):
        ContinuousBatch.create(session(models["static:64"]), rows=32)


def test_a_window_measured_from_the_longest_past_is_refused(models):
    """What each sees then depends on the others; a window as wide as the rows is none."""
    windowed = ir.from_proto(ir.to_proto(models["static"]))
    add_window(windowed, 12)
    opened = session(windowed)
    assert ContinuousBatch.create(opened, sequences=2, rows=12).rows == 12
    with pytest.raises(InputError, match=r"standard deviations beside one of 64.*a window"):
        ContinuousBatch.create(opened, sequences=2, rows=64)


def add_window(model: ir.Model, width: int) -> None:
    """Of the mask that is handed in, only the last ``width`` columns count."""
    graph = model.graph
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    kind = mask.dtype
    total = ir.node("Shape", [mask], attributes={"start": 1, "end": 2})
    ends = ir.node("Squeeze", total.outputs)
    zero, one, size = (
        scalar(graph, value, name) for value, name in ((0, "zero"), (1, "one"), (width, "width"))
    )
    columns = ir.node("Range", [zero, ends.outputs[0], one])
    first = ir.node("Sub", [ends.outputs[0], size])
    seen = ir.node("GreaterOrEqual", [columns.outputs[0], first.outputs[0]])
    as_mask = ir.node("Cast", seen.outputs, attributes={"to": kind})
    both = ir.node("Mul", [mask, as_mask.outputs[0]])
    made = [total, ends, columns, first, seen, as_mask, both]
    for number, node in enumerate(made):
        node.outputs[0].name = f"window_{number}"
    for node, index in list(mask.uses()):
        if node is not total and node is not both:
            node.replace_input_with(index, both.outputs[0])
    graph.insert_before(graph[0], made)


def scalar(graph: ir.Graph, number: int, name: str) -> ir.Value:
    value = ir.Value(
        name=f"window_{name}", const_value=ir.tensor(np.int64(number), name=f"window_{name}")
    )
    graph.register_initializer(value)
    return value
