"""Attention mass on pairs against a softmax over every key, in float64 NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynamo_probe.anatomy.attention import AttentionCall, attend
from dynamo_probe.functional import attention_mass
from dynamo_probe.functional.attention_mass import allowed, keys_allowed, pair_mass
from tests.attention_models import soft


def call_of(
    *,
    batch: int = 2,
    heads: int = 4,
    groups: int = 4,
    length: int = 9,
    size: int = 8,
    causal: bool = True,
    mask: Tensor | None = None,
    sharpness: float = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> AttentionCall:
    """Make a call as the tap does, with the kernel's log-sum-exp where there is one."""
    torch.manual_seed(seed)
    query = torch.randn(batch, heads, length, size, dtype=dtype) * sharpness
    key, value = torch.randn(2, batch, groups, length, size, dtype=dtype).unbind()
    arguments = {"query": query, "key": key, "value": value, "attn_mask": mask}
    with torch.no_grad():
        output, logsumexp = attend(arguments | {"is_causal": causal, "enable_gqa": groups < heads})
    return AttentionCall(
        "layer",
        "sdpa",
        output,
        value,
        query=query,
        key=key,
        mask=mask,
        causal=causal,
        scale=size**-0.5,
        logsumexp=logsumexp,
    )


def reference(call: AttentionCall) -> np.ndarray:
    """Return the whole pattern, `[batch, heads, queries, keys]`."""
    assert call.query is not None and call.key is not None
    query, key = call.query.double().numpy(), call.key.double().numpy()
    batch, heads, length, _ = query.shape
    found = np.zeros((batch, heads, length, key.shape[2]))
    bias = np.zeros((1, 1, 1, 1))
    if call.mask is not None:
        given_mask = call.mask.numpy()
        bias = np.where(given_mask, 0.0, -np.inf) if given_mask.dtype == bool else given_mask
    bias = np.broadcast_to(bias.astype(np.float64), found.shape)
    for b in range(batch):
        for head in range(heads):
            group = head * key.shape[1] // heads
            for q in range(length):
                products = [float(query[b, head, q] @ k) * call.scale for k in key[b, group]]
                row = np.array(products) + bias[b, head, q]
                if call.causal:
                    row[q + 1 :] = -np.inf
                found[b, head, q] = soft(row)
    return found


def every_pair(length: int, keys: int | None = None) -> tuple[Tensor, Tensor]:
    pairs = torch.cartesian_prod(torch.arange(length), torch.arange(keys or length))
    return pairs[:, 0], pairs[:, 1]


def whole(call: AttentionCall, sequence: int) -> np.ndarray:
    """Return the masses of all pairs as a pattern, `[heads, queries, keys]`."""
    queries, keys = call.positions
    mass = pair_mass(call, sequence, *every_pair(queries, keys))
    return mass.T.reshape(-1, queries, keys).double().numpy()


SETTINGS = {
    "causal": {},
    "free": {"causal": False},
    "grouped": {"groups": 2},
    "one key head": {"groups": 1},
    "float64": {"dtype": torch.float64},
    "one head": {"heads": 1, "groups": 1},
    "bool": {"causal": False, "mask": torch.rand(2, 1, 9, 9) < 0.8},
    "by head": {"causal": False, "mask": torch.rand(4, 9, 9) < 0.8},
    "additive": {"causal": False, "mask": torch.randn(1, 4, 9, 9)},
    "by key": {"causal": False, "mask": torch.rand(2, 1, 1, 9) < 0.8},
    "two axes": {"causal": False, "mask": torch.rand(9, 9) < 0.8},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kernel", [True, False])
def test_masses_of_all_pairs_are_the_softmax(name: str, kernel: bool):
    call = call_of(**SETTINGS[name])
    assert (call.logsumexp is not None) or "mask" in SETTINGS[name]
    call = call if kernel else replace(call, logsumexp=None)
    want = reference(call)
    tolerance = 1e-14 if call.output.dtype == torch.float64 else 5e-7
    for sequence in range(2):
        np.testing.assert_allclose(whole(call, sequence), want[sequence], rtol=0, atol=tolerance)


def test_the_cpu_kernel_gives_its_log_sum_exp_and_the_same_output_to_the_bit():
    for mask in (None, torch.rand(2, 1, 9, 9) < 0.8, torch.randn(2, 4, 9, 9)):
        query, key, value = torch.randn(3, 2, 4, 9, 8).unbind()
        arguments = {"query": query, "key": key, "value": value, "attn_mask": mask}
        with torch.no_grad():
            output, logsumexp = attend(arguments)
            assert torch.equal(output, F.scaled_dot_product_attention(**arguments))
        assert logsumexp is not None
        products = query @ key.mT / math.sqrt(8)
        if mask is not None:
            bias = mask if mask.dtype != torch.bool else torch.where(mask, 0.0, -torch.inf)
            products = products + bias
        finite = products.logsumexp(-1).isfinite()
        torch.testing.assert_close(logsumexp[finite], products.logsumexp(-1)[finite])


def test_gradients_and_dropout_go_past_the_kernel_that_has_none():
    query, key, value = torch.randn(3, 2, 4, 9, 8).unbind()
    arguments = {"query": query, "key": key, "value": value}
    assert attend(arguments)[1] is None  # gradients are on
    with torch.no_grad():
        assert attend(arguments | {"dropout_p": 0.5})[1] is None


@pytest.mark.parametrize("sharpness", [30.0, 300.0, 3000.0])
@pytest.mark.parametrize("kernel", [True, False])
def test_of_large_products_the_error_is_float32s_own(sharpness: float, kernel: bool):
    call = call_of(sharpness=sharpness, length=33)
    assert call.query is not None and call.key is not None
    largest = float((call.query @ call.key.mT).abs().max()) * call.scale
    assert largest > sharpness
    call = call if kernel else replace(call, logsumexp=None)
    want = reference(call)
    # 8 products and their sum are each right to half a unit in 24 bits; a weight moves at most by
    # a quarter of what the difference of two products does.
    np.testing.assert_allclose(whole(call, 0), want[0], rtol=0, atol=largest * 4 * 2.0**-24)
    sums = whole(call, 0).sum(-1)
    np.testing.assert_allclose(sums, 1.0, rtol=0, atol=2e-6)


def test_only_rows_that_are_too_coarse_are_computed(monkeypatch: pytest.MonkeyPatch):
    call = call_of(length=33)
    seen: list[tuple[list[int], list[int]]] = []
    plain = attention_mass._from_rows

    def spy(call: AttentionCall, sequence: int, heads: Tensor, queries: Tensor, keys: Tensor):
        seen.append((heads.tolist(), sorted(set(queries.tolist()))))
        return plain(call, sequence, heads, queries, keys)

    monkeypatch.setattr(attention_mass, "_from_rows", spy)
    assert call.query is not None and call.logsumexp is not None
    call.query[0, 2, 17] *= 100  # one query of one head
    with torch.no_grad():
        products = (call.query @ call.key.mT * call.scale).masked_fill(
            torch.ones(33, 33, dtype=torch.bool).triu(1), -torch.inf
        )
    call = replace(call, logsumexp=products.logsumexp(-1))
    np.testing.assert_allclose(whole(call, 0), reference(call)[0], rtol=0, atol=5e-6)
    assert len(seen) == 1 and 2 in seen[0][0] and 17 in seen[0][1] and len(seen[0][1]) < 10


def test_the_kernels_log_sum_exp_alone_is_too_coarse_for_large_products():
    call = call_of(sharpness=300.0, length=33)
    queries, keys = every_pair(33)
    mass, error = attention_mass._from_kernel(call, 0, queries, keys)
    assert float(error.max()) > attention_mass.TOLERANCE
    sums = mass.reshape(33, 33, -1).sum(1)
    assert float((sums - 1).abs().max()) > 2e-6  # which is why rows are computed instead


@pytest.mark.parametrize("off", [0.01, -0.01, 1.0, float("nan"), float("inf")])
def test_a_log_sum_exp_that_is_something_else_is_not_believed(off: float):
    call = call_of()
    assert call.logsumexp is not None
    wrong = replace(call, logsumexp=call.logsumexp + off)
    np.testing.assert_allclose(whole(wrong, 1), reference(call)[1], rtol=0, atol=5e-7)
    in_base_two = replace(call, logsumexp=call.logsumexp / math.log(2))
    np.testing.assert_allclose(whole(in_base_two, 1), reference(call)[1], rtol=0, atol=5e-7)


def test_bfloat16_queries_are_scored_in_float32():
    call = call_of(dtype=torch.bfloat16)
    mass = pair_mass(call, 0, *every_pair(9))
    assert mass.dtype == torch.float32
    np.testing.assert_allclose(whole(call, 0), reference(call)[0], rtol=0, atol=5e-7)


def test_autocast_does_not_round_the_products():
    call = call_of()
    plain = pair_mass(call, 0, *every_pair(9))
    for one in (call, replace(call, logsumexp=None)):
        with torch.autocast("cpu", torch.bfloat16):
            found = pair_mass(one, 0, *every_pair(9))
        torch.testing.assert_close(found, plain, rtol=0, atol=5e-7)
    arguments = {"query": call.query, "key": call.key, "value": call.value, "is_causal": True}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output, logsumexp = attend(arguments)
        assert torch.equal(output, F.scaled_dot_product_attention(**arguments))
    assert output.dtype == torch.bfloat16 and logsumexp is None


@pytest.mark.parametrize("chunk", [1, 50, 333, 2000])
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("sharpness", [1.0, 8.0])
def test_chunks_make_no_difference(
    chunk: int, kernel: bool, sharpness: float, monkeypatch: pytest.MonkeyPatch
):
    # Sharper heads have some rows computed and take the others from the kernel's log-sum-exp.
    call = call_of(length=21, groups=2, sharpness=sharpness)
    call = call if kernel else replace(call, logsumexp=None)
    queries, keys = every_pair(21)
    some = torch.randperm(441)[:200].sort().values
    plain = pair_mass(call, 0, queries[some], keys[some])
    monkeypatch.setattr(attention_mass, "CHUNK", chunk)
    found = pair_mass(call, 0, queries[some], keys[some])
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-6)
    want = reference(call)[0].reshape(4, -1).T[some]
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-6)
    masked = replace(call, mask=torch.rand(2, 4, 21, 21) < 0.7, logsumexp=None)
    one = keys_allowed(masked, 1)
    monkeypatch.undo()
    assert torch.equal(one, keys_allowed(masked, 1))


def test_queries_that_attend_to_nothing_have_mass_zero():
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[[0, 4]] = False
    for given_mask in (mask, torch.where(mask, 0.0, -torch.inf)):
        call = call_of(causal=False, mask=given_mask)
        for one in (call, replace(call, logsumexp=None)):
            pattern = whole(one, 0)
            assert (pattern[:, [0, 4]] == 0).all()
            np.testing.assert_allclose(pattern, reference(call)[0], rtol=0, atol=5e-7)


def test_a_mask_of_the_lowest_number_is_a_mask():
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    for lowest in (torch.finfo(torch.float32).min, -1e9, -1e4, -torch.inf):
        call = call_of(causal=False, mask=torch.where(mask, 0.0, lowest))
        np.testing.assert_allclose(whole(call, 0), reference(call_of())[0], rtol=0, atol=5e-7)
        assert keys_allowed(call, 0)[:, 0].tolist() == list(range(1, 10))


@pytest.mark.parametrize("place", ["query", "key"])
def test_what_is_not_finite_is_nan_and_never_zero(place: str):
    call = call_of(causal=False)
    getattr(call, place)[0, 1, 3, 0] = float("nan")
    for one in (call, replace(call, logsumexp=None)):
        pattern = whole(one, 0)
        assert np.isnan(pattern[1, 3] if place == "query" else pattern[1]).all()
        assert not np.isnan(pattern[0]).any()


def test_no_pairs_give_no_rows():
    none = torch.zeros(0, dtype=torch.long)
    call = call_of()
    assert pair_mass(call, 0, none, none).shape == (0, 4)
    assert pair_mass(replace(call, logsumexp=None), 0, none, none).shape == (0, 4)


@given(st.data())
def test_masses_of_a_query_sum_to_one_and_equal_the_softmax(data: st.DataObject):
    groups = data.draw(st.integers(1, 3))
    length = data.draw(st.integers(1, 12))
    causal = data.draw(st.booleans())
    mask = None
    if not causal and data.draw(st.booleans()):
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        shape = [data.draw(st.sampled_from([1, n])) for n in (2, 3 * groups, length)] + [length]
        mask = torch.rand(*shape, generator=generator) < 0.6
    call = call_of(
        heads=3 * groups,
        groups=groups,
        length=length,
        causal=causal,
        mask=mask,
        sharpness=data.draw(st.sampled_from([0.0, 1.0, 10.0])),
        seed=data.draw(st.integers(0, 99)),
    )
    want = reference(call)
    for sequence in range(2):
        pattern = whole(call, sequence)
        np.testing.assert_allclose(pattern, want[sequence], rtol=0, atol=1e-5)
        assert (pattern >= 0).all() and (pattern <= 1 + 1e-6).all()
        total = pattern.sum(-1)
        assert (np.isclose(total, 1, atol=2e-6) | (total == 0)).all()
        # What is free, and how much of it there is, against the reference's zeros.
        queries, keys = every_pair(length)
        free = np.ones((length, length), bool) if mask is None else None
        if mask is None and causal:
            free = np.tril(free)
        if mask is not None:
            free = np.broadcast_to(mask.numpy(), (2, 3 * groups, length, length))[sequence]
        found = allowed(call, sequence, queries, keys).expand(-1, 3 * groups).T
        count = keys_allowed(call, sequence).expand(-1, 3 * groups).T
        free = np.broadcast_to(free, (3 * groups, length, length))
        assert (found.reshape(-1, length, length).numpy() == free).all()
        assert (count.numpy() == free.sum(-1)).all()


# --- one call, with its batch and heads apart ---


@pytest.mark.parametrize("leading", [(8,), (2, 4), (4, 2), ()])
def test_one_sequence_has_the_heads_that_all_axes_make(leading: tuple[int, ...]):
    query, key, value = torch.randn(3, *leading, 5, 6).unbind()
    output = F.scaled_dot_product_attention(query, key, value)
    call = AttentionCall("a", "sdpa", output, value, query=query, key=key, scale=6**-0.5)
    split = call.by_head(1)
    assert split.leading == (1, math.prod(leading))
    want = (query @ key.mT / math.sqrt(6)).softmax(-1).reshape(-1, 5, 5)
    mass = pair_mass(split, 0, *every_pair(5))
    torch.testing.assert_close(mass.T.reshape(-1, 5, 5), want, rtol=0, atol=5e-7)


def test_a_first_axis_that_is_not_the_batch_cannot_be_split():
    x = torch.randn(6, 5, 4)
    call = AttentionCall("a", "sdpa", x, x, query=x, key=x)
    with pytest.raises(ValueError, match="one sequence at a time"):
        call.by_head(3)


@pytest.mark.parametrize("part", ["query", "key", "mask"])
def test_what_is_shared_by_the_batch_is_the_same_for_each_of_it(part: str):
    tensors = dict(zip(("query", "key", "value"), torch.randn(3, 2, 4, 5, 6), strict=True))
    mask = torch.randn(2, 4, 5, 5)
    if part == "mask":
        mask = mask[:1]
    else:
        tensors[part] = tensors[part][:1]
    output = F.scaled_dot_product_attention(**tensors, attn_mask=mask)
    call = AttentionCall(
        "a", "sdpa", output, tensors["value"],
        query=tensors["query"], key=tensors["key"], mask=mask, scale=6**-0.5,
    ).by_head(2)  # fmt: skip
    want = (tensors["query"] @ tensors["key"].mT / math.sqrt(6) + mask).softmax(-1)
    for sequence in range(2):
        mass = pair_mass(call, sequence, *every_pair(5)).T.reshape(4, 5, 5)
        torch.testing.assert_close(mass, want.expand(2, -1, -1, -1)[sequence], rtol=0, atol=5e-7)
