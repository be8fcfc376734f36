"""Mixing of sequences against the definition in `gma_hf.reference`: outputs, states, gradients of every input."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from gma_hf.model import torch_routing_gma
from gma_hf.model.additions_gma import log_forget_gate
from gma_hf.model.documents_gma import Documents
from gma_hf.model.equations_gma import Mixture, score_weights
from gma_hf.model.mixing_gma import mix_bidirectional, mix_causal
from gma_hf.model.torch_bidirectional_gma import bidirectional_mix
from gma_hf.model.torch_causal_gma import causal_scan
from gma_hf.reference import reference_mix, reference_responsibilities


BATCH, HEADS, COMPONENTS, ROUTING, WIDTH, EPSILON = 2, 2, 5, 4, 3, 1e-6
LENGTHS = [1, 63, 64, 65]
GATES = ["none", "mild", "closed", "open", "one closed", "mixed"]
MIXTURE = ["means", "variances", "prior_logits", "temperature"]
SEQUENCES = ["queries", "keys", "values", "log_decay"]  # what has a token in its third dimension
EXPONENTS = {"paper": None, "0": 0.0, "0.37": 0.37, "1": 1.0, "learned": "learned"}
EVERYTHING = {"gates": "mild", "with_state": True, "masked": True, "packed": True, "read_exponent": "learned"}
CASES = {
    "plain": {},
    "padding": {"masked": True},
    "gate": {"gates": "mild"},
    "documents": {"packed": True, "with_state": True},
    "exponent": {"read_exponent": "learned"},
    "all": EVERYTHING,
}
exponents = pytest.mark.parametrize("read_exponent", EXPONENTS.values(), ids=EXPONENTS)
both_forms = pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])


def mix(
    is_causal, queries, keys, values, means, variances, prior_logits, temperature=None, chunk_size=16, mask=None,
    document_ids=None, **kwargs,
):  # fmt: skip
    inputs = (queries, keys, values, score_weights(Mixture(means, variances, prior_logits, temperature)), EPSILON)
    documents = Documents(mask, document_ids)
    if is_causal:
        return mix_causal(*inputs, chunk_size, documents, **kwargs)
    return mix_bidirectional(*inputs, documents, **kwargs)


def definition(
    is_causal, queries, keys, values, means, variances, prior_logits, temperature=(None, None), mask=None, **kwargs
):
    query_gamma = reference_responsibilities(queries, means, variances, prior_logits, temperature[0])
    key_gamma = reference_responsibilities(keys, means, variances, prior_logits, temperature[1], mask)
    return reference_mix(query_gamma, key_gamma, values, EPSILON, is_causal, **kwargs)


def definition_by_document(is_causal, document_ids, state, mask=None, **arguments):
    """
    Each document of each row alone. Causal: `state` is what segment 0 has written, and the last state of a row is that
    of its last document. Bidirectional: each document has a state of its own.
    """
    outputs, states = [], []
    for row, numbers in enumerate(document_ids.tolist()):
        parts = []
        for number in sorted(set(numbers)):
            start, stop = numbers.index(number), len(numbers) - numbers[::-1].index(number)
            piece = {
                name: tensor[row : row + 1, :, start:stop] if name in SEQUENCES else tensor
                for name, tensor in arguments.items()
            }
            real = None if mask is None else mask[row : row + 1, start:stop]
            place = row if is_causal else len(states)
            before = None if is_causal and number > 0 else state[place : place + 1]
            output, last = definition(is_causal, **piece, mask=real, state=before)
            parts.append(output)
            if not is_causal or stop == len(numbers):
                states.append(last)
        outputs.append(torch.cat(parts, dim=2))
    return torch.cat(outputs), torch.cat(states)


def exponents_of(read_exponent, heads):
    """Of each head: the same, or, "learned", spread; None for the paper's read."""
    if read_exponent is None:
        return None
    return torch.linspace(0.02, 0.98, heads) if read_exponent == "learned" else torch.full((heads,), read_exponent)


def borders(length):
    """Documents that end at different tokens in either row; row 1 begins with a new one, and skips a number."""
    document_ids = torch.zeros(BATCH, length, dtype=torch.long)
    document_ids[0, (length + 3) // 4 :] = 1
    document_ids[0, (length + 1) // 2 :] = 2
    document_ids[1] = 1
    document_ids[1, -(length // 4) - 1 :] = 3
    return document_ids


@pytest.fixture(scope="session")
def sequence(leaves, log_decay):
    """`sequence(length, gates, with_state, mask, heads, offset, read_exponent)`: what a mix is differentiated by."""

    def make(length, gates="none", with_state=False, mask=None, heads=HEADS, offset=0.0, read_exponent=None):
        torch.manual_seed(length)
        shape = (BATCH, heads, length)
        state = torch.randn(BATCH, heads, COMPONENTS, WIDTH + 1)
        return leaves(
            {
                "queries": torch.randn(*shape, ROUTING) + offset,
                "keys": torch.randn(*shape, ROUTING) + offset,
                "values": torch.randn(*shape, WIDTH),
                "means": torch.randn(heads, COMPONENTS, ROUTING) + offset,
                "variances": torch.rand(heads, COMPONENTS, ROUTING) * 2 + 0.1,
                "prior_logits": torch.randn(heads, COMPONENTS),
                "temperature": torch.rand(2, heads) + 0.2,
                "state": torch.cat([state[..., :-1], state[..., -1:].abs() + 0.1], dim=-1) if with_state else None,
                "log_decay": log_decay(gates, shape, mask),
                "read_exponent": exponents_of(read_exponent, heads),
            }
        )

    return make


@pytest.fixture(scope="session")
def prepare(sequence, padding_mask):
    """`prepare(length, **case)`: what a causal mix may be differentiated by, and what it may not, of a case."""

    def make(length, gates="none", with_state=False, masked=False, packed=False, read_exponent=None):
        fixed = {"mask": padding_mask(length) if masked else None, "document_ids": borders(length) if packed else None}
        return sequence(length, gates, with_state, fixed["mask"], read_exponent=read_exponent), fixed

    return make


@pytest.fixture(scope="session")
def results(gradients):
    """`results(is_causal, arguments, **fixed)`: output, state and gradients of all `arguments`, in one list."""

    def compute(is_causal, arguments, **fixed):
        outputs = mix(is_causal, **arguments, **fixed)
        return [*outputs, *gradients(outputs, list(arguments.values()))]

    return compute


@pytest.fixture(scope="session")
def assert_all_close(assert_close):
    def check(actual, expected, tolerance=1e-9):
        for index, (x, y) in enumerate(zip(actual, expected, strict=True)):
            assert_close(x, y, tolerance, f"result {index}", at_least=1.0)

    return check


@pytest.mark.parametrize("with_state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("length", LENGTHS)
def test_causal_mix_is_the_definition(compare, sequence, length, gates, with_state):
    compare(partial(mix, True, chunk_size=32), partial(definition, True), sequence(length, gates, with_state))


@pytest.mark.parametrize("gates", ["none", "mild", "mixed"])
@pytest.mark.parametrize("length", LENGTHS)
def test_causal_mix_with_padding_is_the_definition(compare, sequence, padding_mask, length, gates):
    mask = padding_mask(length)
    arguments = sequence(length, gates, with_state=True, mask=mask)
    compare(partial(mix, True, mask=mask), partial(definition, True, mask=mask), arguments)


@exponents
@pytest.mark.parametrize("gates", ["none", "mild", "one closed"])
@pytest.mark.parametrize("length", LENGTHS)
def test_causal_mix_with_a_read_exponent_is_the_definition(
    compare, sequence, padding_mask, length, gates, read_exponent
):
    mask = padding_mask(length)
    arguments = sequence(length, gates, with_state=True, mask=mask, read_exponent=read_exponent)
    compare(partial(mix, True, mask=mask), partial(definition, True, mask=mask), arguments)


@exponents
@pytest.mark.parametrize("length", [*LENGTHS, 1000])
def test_bidirectional_mix_with_a_read_exponent_is_the_definition(
    compare, sequence, padding_mask, length, read_exponent
):
    mask, heads = padding_mask(length), 1 if length == 1000 else HEADS
    arguments = sequence(length, with_state=True, mask=mask, heads=heads, read_exponent=read_exponent)
    compare(partial(mix, False, mask=mask), partial(definition, False, mask=mask), arguments)


@both_forms
def test_with_an_exponent_of_one_each_component_answers_with_its_mean(assert_close, is_causal):
    """Component 0 holds what was written often, component 1 one token: a query between them reads half of either."""
    values = torch.tensor([1.0] * 8 + [5.0])[None, None, :, None]
    keys = torch.tensor([-9.0] * 8 + [9.0])[None, None, :, None]
    inputs = (torch.zeros_like(keys), keys, values, torch.tensor([[[-9.0], [9.0]]]), torch.ones(1, 2, 1))
    for exponent, expected in ((0.0, 13 / 9), (1.0, 3.0)):
        output, _ = mix(is_causal, *inputs, torch.zeros(1, 2), read_exponent=torch.tensor([exponent]))
        assert_close(output[0, 0, -1], torch.tensor([expected]), 1e-5)


@pytest.mark.parametrize("gates", ["none", "mixed"])
def test_causal_mix_of_a_thousand_tokens_is_the_definition(compare, sequence, padding_mask, gates):
    mask = padding_mask(1000)
    arguments = sequence(1000, gates, with_state=True, mask=mask, heads=1, read_exponent=0.37)
    compare(partial(mix, True, mask=mask, chunk_size=64), partial(definition, True, mask=mask), arguments)


@pytest.mark.parametrize(("with_state", "masked"), [(False, False), (True, True)], ids=["plain", "state and padding"])
@pytest.mark.parametrize("length", [*LENGTHS, 1000])
def test_bidirectional_mix_is_the_definition(compare, sequence, padding_mask, length, with_state, masked):
    mask = padding_mask(length) if masked else None
    arguments = sequence(length, with_state=with_state, mask=mask, heads=1 if length == 1000 else HEADS)
    compare(partial(mix, False, mask=mask), partial(definition, False, mask=mask), arguments)


@both_forms
@pytest.mark.parametrize("length", [1, 20])
def test_a_mix_without_temperature_is_the_definition(compare, sequence, length, is_causal):
    arguments = sequence(length, with_state=True)
    del arguments["temperature"]
    compare(partial(mix, is_causal), partial(definition, is_causal), arguments)


@both_forms
def test_a_mix_does_not_cancel_far_from_the_origin(compare, sequence, is_causal):
    compare(partial(mix, is_causal), partial(definition, is_causal), sequence(20, offset=300.0))


@pytest.mark.parametrize("index", [0, 1], ids=["output", "state"])
@both_forms
@pytest.mark.parametrize("length", [1, 20])
def test_a_result_may_be_used_alone(compare, sequence, length, is_causal, index):
    arguments = sequence(length, "mild" if is_causal else "none", with_state=True)
    if index == 1:
        del arguments["queries"]  # what is written does not depend on them
    queries = torch.randn(BATCH, HEADS, length, ROUTING, dtype=torch.float64)

    def one_of(function, **kwargs):
        if index == 1:
            kwargs = {"queries": queries.to(kwargs["keys"].dtype), **kwargs}
        return [function(is_causal, **kwargs)[index]]

    compare(partial(one_of, mix), partial(one_of, definition), arguments)


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 33, 64, 65, 66, 1000])
@pytest.mark.parametrize(
    ("gates", "document_ids"),
    [("none", None), ("mild", None), ("mixed", None), ("none", borders(65)), ("mild", borders(65))],
    ids=["none", "mild", "mixed", "document_ids", "mild document_ids"],
)
def test_the_chunk_size_does_not_matter(results, assert_all_close, sequence, document_ids, gates, chunk_size):
    arguments = sequence(65, gates, with_state=True, read_exponent="learned")
    actual, expected = (
        results(True, arguments, document_ids=document_ids, chunk_size=size) for size in (chunk_size, 10)
    )
    assert_all_close(actual, expected)


@pytest.mark.parametrize("cut", [1, 5, 8, 9, 23])
@pytest.mark.parametrize("gates", ["none", "mild", "mixed"])
@pytest.mark.parametrize("read_exponent", [None, "learned"], ids=["paper", "learned"])
def test_a_state_continues_a_sequence(results, gradients, assert_all_close, sequence, gates, cut, read_exponent):
    arguments = sequence(24, gates, with_state=True, read_exponent=read_exponent)
    state, parts = arguments["state"], []
    for part in (slice(0, cut), slice(cut, 24)):
        piece = {name: x[:, :, part] if name in SEQUENCES else x for name, x in arguments.items()}
        output, state = mix(True, **(piece | {"state": state}), chunk_size=8)
        parts.append(output)
    outputs = [torch.cat(parts, dim=2), state]
    actual = [*outputs, *gradients(outputs, list(arguments.values()))]
    assert_all_close(actual, results(True, arguments, chunk_size=8))


# Of the other dimensions, the smallest there are
@both_forms
@pytest.mark.parametrize("length", [1, 9])
def test_one_component_gives_the_running_mean(assert_close, is_causal, length):
    torch.manual_seed(0)
    queries, keys, values, means = (torch.randn(shape) for shape in [(1, 1, length, 1)] * 3 + [(1, 1, 1)])
    output, _ = mix(is_causal, queries, keys, values, means, torch.ones(1, 1, 1), torch.zeros(1, 1), chunk_size=4)
    count = torch.arange(1, length + 1)[:, None]
    expected = values.cumsum(2) / count if is_causal else values.mean(2, keepdim=True).expand_as(values)
    assert_close(output, expected, 1e-5, at_least=1.0)


@pytest.mark.parametrize("length", [1, 9])
@exponents
@both_forms
def test_nothing_to_read_gives_zeros(results, sequence, is_causal, length, read_exponent):
    nothing = torch.zeros(BATCH, length, dtype=torch.bool)
    arguments = sequence(length, read_exponent=read_exponent)
    output, state, *rest = results(is_causal, arguments, mask=nothing, chunk_size=4)
    assert (output == 0).all() and (state == 0).all()
    assert all(gradient.isfinite().all() for gradient in rest)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("length", [1, 9])
@both_forms
def test_half_precision_is_mixed_in_float32(gradients, assert_close, sequence, is_causal, length, autocast, low):
    arguments = sequence(length, "mild" if is_causal else "none", with_state=True, read_exponent="learned")
    halves = ["queries", "keys", "values"]
    inputs = {
        name: tensor.detach().to(low if name in halves else torch.float32).requires_grad_()
        for name, tensor in arguments.items()
    }
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, state = mix(is_causal, **inputs, chunk_size=4)
    assert output.dtype == low and state.dtype == torch.float32
    expected = definition(is_causal, **exact)
    digit = torch.finfo(low).eps
    assert_close(output, expected[0], digit)
    assert_close(state, expected[1], 1e-5)
    pairs = zip(
        gradients((output, state), list(inputs.values())), gradients(expected, list(exact.values())), inputs.items()
    )
    for actual, gradient, (name, tensor) in pairs:
        assert actual.dtype == tensor.dtype
        assert_close(actual, gradient, 4 * digit, f"gradient of {name}", at_least=1.0)


# Documents in one row


@pytest.mark.parametrize("gates", ["none", "mild"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("length", [3, 9, 40])
def test_segments_are_documents_run_one_by_one(compare, sequence, padding_mask, length, masked, gates):
    mask, document_ids = padding_mask(length) if masked else None, borders(length)
    arguments = sequence(length, gates, with_state=True, mask=mask, read_exponent="learned")
    compare(
        partial(mix, True, mask=mask, document_ids=document_ids, chunk_size=8),
        partial(definition_by_document, True, document_ids, mask=mask),
        arguments,
    )


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("length", [1, 3, 40])
def test_bidirectional_segments_are_documents_run_one_by_one(compare, leaves, sequence, padding_mask, length, masked):
    mask, document_ids = padding_mask(length) if masked else None, borders(length)
    documents = sum(len(row.unique()) for row in document_ids)
    states = leaves({"state": torch.rand(documents, HEADS, COMPONENTS, WIDTH + 1)})
    compare(
        partial(mix, False, mask=mask, document_ids=document_ids),
        partial(definition_by_document, False, document_ids, mask=mask),
        {**sequence(length, read_exponent="learned"), **states},
    )


@pytest.mark.parametrize("gates", ["none", "mild"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
def test_segments_are_documents_step_by_step(compare, sequence, padding_mask, masked, gates):
    length = 9
    mask, document_ids = padding_mask(length) if masked else None, borders(length)

    def steps(state, **arguments):
        outputs, before = [], torch.zeros(BATCH, dtype=torch.long)
        for i in range(length):
            here = slice(i, i + 1)
            piece = {name: x[:, :, here] if name in SEQUENCES else x for name, x in arguments.items()}
            real, new = None if mask is None else mask[:, here], (document_ids[:, i] != before)[:, None]
            output, state = mix(True, **piece, mask=real, document_ids=new.long(), state=state)
            outputs.append(output)
            before = document_ids[:, i]
        return torch.cat(outputs, dim=2), state

    arguments = sequence(length, gates, with_state=True, mask=mask, read_exponent="learned")
    compare(steps, partial(definition_by_document, True, document_ids, mask=mask), arguments)


@pytest.mark.parametrize("length", [1, 9])
def test_one_segment_is_none(results, sequence, length):
    arguments = sequence(length, "mild", with_state=True)
    zeros = torch.zeros(BATCH, length, dtype=torch.long)
    for x, y in zip(
        *(results(True, arguments, document_ids=document_ids, chunk_size=4) for document_ids in (zeros, None))
    ):
        assert torch.equal(x, y)


# Blocks and memory


@pytest.mark.parametrize("kept_rows", [0, 40, 10**6], ids=["none kept", "some kept", "all kept"])
@pytest.mark.parametrize("block_rows", [1, 16, 100, 10**6])
@pytest.mark.parametrize("length", [64, 67])
@pytest.mark.parametrize("case", [{}, CASES["documents"], EVERYTHING], ids=["plain", "document_ids", "all"])
def test_blocks_do_not_matter(results, assert_all_close, prepare, monkeypatch, case, length, block_rows, kept_rows):
    arguments, fixed = prepare(length, **case)
    fixed["chunk_size"] = 4
    expected = results(True, arguments, **fixed)
    monkeypatch.setattr(torch_routing_gma, "BLOCK_ROWS_CPU", block_rows)
    monkeypatch.setattr(torch_routing_gma, "KEPT_ROWS", kept_rows)
    assert_all_close(results(True, arguments, **fixed), expected)
    with torch.no_grad():
        assert_all_close(mix(True, **arguments, **fixed), expected[:2])


@pytest.mark.parametrize("case", [{}, EVERYTHING], ids=["plain", "all"])
def test_many_chunks_are_several_blocks(results, assert_all_close, prepare, case):
    """More of them than a block may have."""
    arguments, fixed = prepare(301, **case)
    fine, coarse = (results(True, arguments, **fixed, chunk_size=size) for size in (2, 64))
    assert_all_close(fine, coarse)


@pytest.mark.parametrize("block_rows", [1, 16, 100])
def test_bidirectional_blocks_do_not_matter(
    results, assert_all_close, sequence, padding_mask, monkeypatch, block_rows
):
    arguments, mask = sequence(67, with_state=True, read_exponent="learned"), padding_mask(67)
    expected = results(False, arguments, mask=mask)
    monkeypatch.setattr(torch_routing_gma, "BLOCK_ROWS_CPU", block_rows)
    assert_all_close(results(False, arguments, mask=mask), expected)


@both_forms
def test_results_outlive_later_calls(results, gradients, sequence, is_causal):
    """Buffers are used again from call to call, results are not; a longer call in between needs larger buffers."""
    arguments = sequence(33)
    expected = results(is_causal, arguments)
    outputs = mix(is_causal, **arguments)
    results(is_causal, sequence(50))
    results(is_causal, sequence(33, with_state=True))
    actual = [*outputs, *gradients(outputs, list(arguments.values()))]
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


@both_forms
def test_gradients_may_follow_inference(results, assert_all_close, sequence, is_causal):
    """Also where inference was first to need the buffers: those of a new thread are new."""
    arguments = sequence(33)

    def infer():
        with torch.inference_mode():
            mix(is_causal, **arguments)
        return results(is_causal, arguments)

    with ThreadPoolExecutor(1) as pool:
        assert_all_close(pool.submit(infer).result(), results(is_causal, arguments))


@both_forms
def test_threads_do_not_meet(results, sequence, is_causal):
    many = [sequence(length) for length in (300, 301, 302, 303)]
    expected = [results(is_causal, arguments) for arguments in many]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(partial(results, is_causal), many * 4))
    for x, y in zip(actual, expected * 4):
        assert all(torch.equal(*pair) for pair in zip(x, y))


# Derivatives


def check_gradients(
    is_causal, length, gates="none", with_state=False, masked=False, packed=False, read_exponent=None, heads=1
):
    torch.manual_seed(0)
    batch, components, width = 2, 3, 2
    mask = torch.rand(batch, length) < 0.7 if masked else None
    states = batch  # of the bidirectional form, one for each segment
    if packed and not is_causal:
        states += int((borders(length).diff(dim=1) != 0).sum())
    shapes = {
        "queries": (batch, heads, length, width),
        "keys": (batch, heads, length, width),
        "values": (batch, heads, length, width),
        "means": (heads, components, width),
        "variances": (heads, components, width),
        "prior_logits": (heads, components),
        "temperature": (2, heads),
        "state": (states, heads, components, width + 1) if with_state else None,
        "logits": (batch, length, heads) if gates != "none" else None,
    }
    shapes = {name: shape for name, shape in shapes.items() if shape is not None}
    inputs = [torch.rand(shape, dtype=torch.float64).add(0.3).requires_grad_() for shape in shapes.values()]
    if read_exponent is not None:
        inputs.append(exponents_of(read_exponent, heads).double().requires_grad_())

    def function(*tensors):
        arguments = dict(zip((*shapes, "read_exponent"), tensors))
        if "logits" in arguments:
            arguments["log_decay"] = log_forget_gate(arguments.pop("logits"), mask)
        if packed:
            arguments["document_ids"] = borders(length)
        return mix(is_causal, **arguments, mask=mask, chunk_size=2)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("length", [1, 5])
def test_causal_gradients_are_differences(length, case):
    check_gradients(True, length, **case)


@exponents
@both_forms
def test_gradients_with_a_read_exponent_are_differences(is_causal, read_exponent):
    case = {**EVERYTHING, "gates": "mild" if is_causal else "none", "read_exponent": read_exponent}
    check_gradients(is_causal, 5, **case, heads=2)


@pytest.mark.parametrize(
    ("kept_rows", "case"),
    [(0, EVERYTHING), (6, EVERYTHING), (10**6, EVERYTHING), (6, {})],
    ids=["none kept", "some kept", "all kept", "plain"],
)
def test_causal_gradients_of_several_blocks_are_differences(monkeypatch, case, kept_rows):
    monkeypatch.setattr(torch_routing_gma, "BLOCK_ROWS_CPU", 8)
    monkeypatch.setattr(torch_routing_gma, "KEPT_ROWS", kept_rows)
    check_gradients(True, 5, **case)


@pytest.mark.parametrize(
    "case",
    [{}, {"masked": True, "with_state": True}, {"packed": True}, {**EVERYTHING, "gates": "none"}],
    ids=["plain", "state and padding", "packed", "all"],
)
@pytest.mark.parametrize(("length", "block_rows"), [(1, 16), (5, 16), (5, 4)], ids=["one token", "one block", "many"])
def test_bidirectional_gradients_are_differences(monkeypatch, length, block_rows, case):
    monkeypatch.setattr(torch_routing_gma, "BLOCK_ROWS_CPU", block_rows)
    check_gradients(False, length, **case)


@both_forms
def test_a_second_derivative_is_refused(sequence, is_causal):
    arguments = sequence(9)
    output, _ = mix(is_causal, **arguments)
    (gradient,) = torch.autograd.grad(output.square().sum(), arguments["queries"], create_graph=True)
    with pytest.raises(RuntimeError, match="`create_graph` must be False"):
        torch.autograd.grad(gradient.square().sum(), arguments["queries"])


@both_forms
@pytest.mark.parametrize("length", [1, 20])
def test_the_layout_of_the_inputs_does_not_matter(assert_all_close, prepare, is_causal, length):
    """As the model has them: slices of one projection `[B, N, ...]`, transposed, and gates as `[B, N, H]`."""
    arguments, fixed = prepare(length, **EVERYTHING)
    if not is_causal:
        del arguments["log_decay"], fixed["document_ids"]

    def results(transposed, incoming):
        inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in arguments.items()}
        given = dict(inputs)
        if transposed:
            parts = [inputs[name].transpose(1, 2).flatten(2) for name in SEQUENCES[:3]]
            projected = torch.cat(parts, dim=-1).split([part.shape[-1] for part in parts], dim=-1)
            for name, part in zip(SEQUENCES, projected):
                given[name] = part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            if is_causal:
                given["log_decay"] = inputs["log_decay"].transpose(1, 2).contiguous().transpose(1, 2)
            given["state"] = inputs["state"].mT.contiguous().mT
            given["means"] = inputs["means"].transpose(0, 1).contiguous().transpose(0, 1)
            assert length == 1 or not any(given[name].is_contiguous() for name in (*SEQUENCES[:3], "state"))
        output, state = mix(is_causal, **given, **fixed, chunk_size=8)
        if incoming == "expanded":
            loss = output.sum() + state.sum()
        else:
            loss = (output.transpose(1, 2).flatten(2).cumsum(-1) ** 2).sum() + (state.mT.cumsum(-1) ** 2).sum()
        return [output, state, *torch.autograd.grad(loss, list(inputs.values()))]

    for incoming in ("expanded", "transposed"):
        assert_all_close(results(True, incoming), results(False, incoming))


# Operators and the compiler


def operator_inputs(length, everything, dtype=torch.float32):
    torch.manual_seed(0)
    shape, mixture = (BATCH, HEADS, length), (HEADS, COMPONENTS, ROUTING)
    scores = score_weights(Mixture(torch.randn(mixture), torch.rand(mixture) + 0.3, torch.randn(mixture[:2])))
    tensors = [torch.randn(*shape, width) for width in (ROUTING, ROUTING, WIDTH)]
    tensors += [scores.weights.clone(), scores.constant.clone()]
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    state = torch.rand(BATCH, HEADS, COMPONENTS, WIDTH + 1, requires_grad=True)
    mask = torch.rand(BATCH, length) < 0.7 if everything else None
    log_decay = (-torch.rand(shape)).requires_grad_() if everything else None
    document_ids = borders(length) if everything else None
    exponent = torch.rand(HEADS, requires_grad=True) if everything else None
    return [*tensors, scores.centre, mask], [log_decay, document_ids], [exponent, state]


FORMS = {"causal": (causal_scan, (EPSILON, 8, True)), "bidirectional": (bidirectional_mix, (EPSILON,))}


@pytest.mark.parametrize(("everything", "keep"), [(False, False), (True, True)], ids=["plain", "all"])
def test_the_causal_operator_is_well_formed(everything, keep):
    tensors, forgetting, rest = operator_inputs(21, everything)
    torch.library.opcheck(causal_scan.forward, (*tensors, *forgetting, *rest, EPSILON, 8, keep))


@pytest.mark.parametrize("everything", [False, True], ids=["plain", "padding"])
def test_the_bidirectional_operator_is_well_formed(everything):
    tensors, _, rest = operator_inputs(21, everything)
    torch.library.opcheck(bidirectional_mix.forward, (*tensors, *rest, EPSILON))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [None, torch.ones(2, HEADS)], ids=["one weight", "two sides"])
@pytest.mark.parametrize("read_exponent", [None, "learned"], ids=["paper", "learned"])
def test_the_backward_operators_are_well_formed(sequence, form, temperature, read_exponent):
    """With the weights in the layout in which `score_weights` gives them: Inductor asserts that of each result."""
    operator, settings = FORMS[form]
    x = {name: tensor.detach() for name, tensor in sequence(21, with_state=True).items()}
    scores = score_weights(Mixture(x["means"], x["variances"], x["prior_logits"], temperature))
    forgetting = (None, None) if form == "causal" else ()
    rest = (None, *forgetting, exponents_of(read_exponent, HEADS), x["state"])
    inputs = operator.form.inputs(x["queries"], x["keys"], x["values"], *scores, *rest)
    results = operator(inputs, *settings)
    gradients = (torch.randn_like(results.output), torch.randn_like(results.state))
    arguments = (*gradients, *inputs, *results, *settings)
    torch.library.opcheck(operator.backward, arguments, test_utils=["test_schema", "test_faketensor"])


def test_a_compiled_mix_is_the_eager_one(assert_all_close, gradients, prepare):
    """As one graph, whatever the length."""

    def both(arguments, fixed):
        mixture, tensors = ([arguments[name] for name in names] for names in (MIXTURE, SEQUENCES[:3]))
        inputs, state = (*tensors, score_weights(Mixture(*mixture)), EPSILON), arguments["state"]
        documents, exponent = Documents(fixed["mask"], fixed["document_ids"]), arguments["read_exponent"]
        causal = mix_causal(*inputs, 8, documents, arguments["log_decay"], state, read_exponent=exponent)
        documents = Documents(fixed["mask"])
        return [*causal, *mix_bidirectional(*inputs, documents, state=state, read_exponent=exponent)]

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (21, 50):
        arguments, fixed = prepare(length, **EVERYTHING)
        with torch._dynamo.config.patch(error_on_recompile=True):
            outputs = compiled(arguments, fixed)
        expected = both(arguments, fixed)
        assert_all_close(outputs, expected)
        inputs = list(arguments.values())
        assert_all_close(gradients(outputs, inputs), gradients(expected, inputs))
