"""Rows of one kernel call, against a softmax written out by hand and against torch's own fused kernel."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from seeing import attention
from seeing.attention import AttentionCall, UnreadableAttention, softmax

NEVER = float("-inf")


class Module(torch.nn.Module):
    """What a kernel is called with first: only `is_causal` is read of it."""

    def __init__(self, is_causal: bool = True):
        super().__init__()
        self.is_causal = is_causal


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def draw(seed: int, *, batch=2, heads=4, kv_heads=2, queries=5, keys=5, d=8, d_value=8):
    torch.manual_seed(seed)
    q = torch.randn(batch, heads, queries, d)
    k = torch.randn(batch, kv_heads, keys, d)
    v = torch.randn(batch, kv_heads, keys, d_value)
    return q, k, v


def by_hand(q, k, mask, scaling, softcap=None):
    """Softmax of every row, one number at a time; ``mask[b, h, i, j]`` is added, −inf where not allowed."""
    batch, heads, queries, _ = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    pattern = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                scores = []
                for j in range(keys):
                    score = float(q[b, h, i].double() @ k[b, h // group, j].double()) * scaling
                    if softcap is not None:
                        score = softcap * math.tanh(score / softcap)
                    scores.append(score + float(mask[b, h, i, j]))
                top = max(scores)
                if top == NEVER:
                    continue
                weights = [math.exp(score - top) for score in scores]
                pattern[b, h, i] = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return pattern.float()


def causal(batch, heads, queries, keys, first=0):
    allowed = torch.arange(keys) <= torch.arange(queries)[:, None] + first
    return torch.where(allowed, 0.0, NEVER).expand(batch, heads, queries, keys)


def read(q, k, v, mask=None, is_causal=True, **kwargs):
    return AttentionCall.from_kernel((Module(is_causal), q, k, v, mask), kwargs)


# -- rows --------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.integers(1, 6),
    st.sampled_from([None, 2.0]),
)
def test_rows_are_the_softmax_by_hand(seed, heads, queries, softcap):
    q, k, v = draw(seed, heads=heads[0], kv_heads=heads[1], queries=queries, keys=queries)
    call = read(q, k, v, scaling=0.3, softcap=softcap)
    expected = by_hand(q, k, causal(2, heads[0], queries, queries), 0.3, softcap)
    close(call.pattern(), expected)
    close(softmax(call.scores()), call.pattern())


def test_without_a_scaling_it_is_one_over_the_root_of_the_head_size():
    q, k, v = draw(1, d=16)
    close(read(q, k, v).pattern(), by_hand(q, k, causal(2, 4, 5, 5), 0.25))


@pytest.mark.parametrize("rows", [torch.tensor([4]), torch.tensor([0, 3]), torch.tensor([2, 1])])
@pytest.mark.parametrize("masked", [False, True])
def test_chosen_rows_are_those_of_the_whole_pattern(rows, masked):
    q, k, v = draw(2)
    mask = torch.rand(2, 1, 5, 5) > 0.3 if masked else None
    call = read(q, k, v, mask)
    close(call.pattern(rows), call.pattern()[:, :, rows])
    close(call.scores(rows), call.scores()[:, :, rows])


@pytest.mark.parametrize("mask_batch", [1, 2])
@pytest.mark.parametrize("mask_heads", [1, 4])
@pytest.mark.parametrize("mask_queries", [1, 5])
def test_each_item_may_have_rows_of_its_own(mask_batch, mask_heads, mask_queries):
    """And a mask may be broadcast along batch, heads and queries."""
    q, k, v = draw(3)
    mask = torch.rand(mask_batch, mask_heads, mask_queries, 5) > 0.3
    call = read(q, k, v, mask)
    whole = call.pattern()
    full = torch.where(mask, 0.0, NEVER).expand(2, 4, 5, 5)
    close(whole, by_hand(q, k, full, 8**-0.5))
    close(call.pattern(torch.tensor([1, 4])), whole[:, :, [1, 4]])
    each = call.pattern(torch.tensor([[0, 2], [4, 1]]))
    close(each[0], whole[0][:, [0, 2]])
    close(each[1], whole[1][:, [4, 1]])


def test_each_item_may_have_rows_of_its_own_in_a_causal_call():
    q, k, v = draw(3)
    call = read(q, k, v)
    each = call.pattern(torch.tensor([[0, 2], [4, 1]]))
    close(each[0], call.pattern()[0][:, [0, 2]])
    close(each[1], call.pattern()[1][:, [4, 1]])


def test_an_additive_mask_adds_and_a_boolean_one_allows():
    q, k, v = draw(4)
    allowed = torch.rand(2, 1, 5, 5) > 0.4
    allowed[..., 0] = True
    bias = torch.randn(2, 4, 5, 5)
    expected = by_hand(q, k, torch.where(allowed, 0.0, NEVER).expand(2, 4, 5, 5), 8**-0.5)
    close(read(q, k, v, allowed).pattern(), expected)
    lowest = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    close(read(q, k, v, lowest).pattern(), expected)
    close(read(q, k, v, bias).pattern(), by_hand(q, k, bias, 8**-0.5))


def test_a_mask_longer_than_the_keys_is_cut():
    """A static cache gives a mask over all its slots, of which the call sees the first few."""
    q, k, v = draw(5)
    mask = torch.rand(2, 1, 5, 9) > 0.3
    assert torch.equal(read(q, k, v, mask).pattern(), read(q, k, v, mask[..., :5]).pattern())


def test_a_row_that_may_attend_to_nothing_is_zero():
    q, k, v = draw(6)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, 0, 1] = False
    call = read(q, k, v, mask)
    assert torch.equal(call.pattern()[0, :, 1], torch.zeros(4, 5))
    assert torch.equal(call.z(call.pattern())[0, 1], torch.zeros(4, 8))
    close(call.pattern().sum(-1)[1], torch.ones(4, 5))
    assert call.pattern().isfinite().all()


def test_one_query_behind_a_cache_sees_every_key():
    q, k, v = draw(7, queries=1, keys=6)
    call = read(q, k, v)
    assert (call.first_query, call.n_queries, call.n_keys) == (5, 1, 6)
    close(call.pattern(), by_hand(q, k, torch.zeros(2, 4, 1, 6), 8**-0.5))


@pytest.mark.parametrize(("flag", "module", "expected"), [
    (None, True, True), (None, False, False), (False, True, False), (True, False, True),
])  # fmt: skip
def test_the_call_says_whether_it_is_causal_before_the_module_does(flag, module, expected):
    q, k, v = draw(8)
    call = AttentionCall.from_kernel((Module(module), q, k, v), {"attention_mask": None, "is_causal": flag})
    above = call.pattern()[..., torch.ones(5, 5).triu(1).bool()]
    assert bool((above == 0).all()) == expected


def test_rows_are_computed_in_float32_whatever_the_model_runs_in():
    """bfloat16 numbers are exact in float32, so only the arithmetic may differ: and it must not."""
    q, k, v = (part.bfloat16() for part in draw(9))
    call = read(q, k, v)
    expected = by_hand(q.float(), k.float(), causal(2, 4, 5, 5), 8**-0.5)
    assert call.pattern().dtype == torch.float32
    close(call.pattern(), expected)


# -- write-back --------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([4, 2, 1]))
def test_pattern_times_v_is_what_the_fused_kernel_puts_out(seed, masked, kv_heads):
    q, k, v = draw(seed, kv_heads=kv_heads, d_value=6)
    mask = torch.rand(2, 1, 5, 5) > 0.3 if masked else None
    if masked:
        mask[..., 0] = True
    fused = scaled_dot_product_attention(q, k, v, mask, is_causal=not masked, enable_gqa=True).transpose(1, 2)
    call = read(q, k, v, mask)
    close(call.z(call.pattern()), fused)


def test_writing_replaces_the_rows_written_and_no_other():
    q, k, v = draw(10)
    call = read(q, k, v)
    output = torch.randn(2, 5, 4, 8)
    before = output.clone()
    pattern = torch.rand(2, 4, 2, 5)
    out = call.write(output, torch.tensor([1, 3]), pattern)
    assert torch.equal(output, before), "what was served is not edited in place"
    assert torch.equal(out[:, [0, 2, 4]], before[:, [0, 2, 4]])
    for row, place in enumerate([1, 3]):
        for head in range(4):
            expected = pattern[:, head, row, None] @ v[:, head // 2]
            close(out[:, place, head], expected[:, 0])


def test_each_item_may_have_rows_of_its_own_written():
    q, k, v = draw(11)
    call = read(q, k, v)
    output, pattern = torch.randn(2, 5, 4, 8), torch.rand(2, 4, 2, 5)
    out = call.write(output, torch.tensor([[0, 2], [4, 1]]), pattern)
    z = call.z(pattern)
    assert torch.equal(out[0, [0, 2]], z[0])
    assert torch.equal(out[1, [4, 1]], z[1])
    assert torch.equal(out[0, [1, 3, 4]], output[0, [1, 3, 4]])
    assert torch.equal(out[1, [0, 2, 3]], output[1, [0, 2, 3]])


def test_writing_all_rows_keeps_the_dtype_of_the_output():
    q, k, v = (part.half() for part in draw(12))
    call = read(q, k, v)
    out = call.write(torch.zeros(2, 5, 4, 8, dtype=torch.float16), None, call.pattern())
    assert out.dtype == torch.float16
    close(out, call.z(call.pattern()).half())


@pytest.mark.parametrize("shape", [(2, 4, 1, 5), (2, 4, 2, 4), (2, 2, 2, 5), (1, 4, 2, 5)])
def test_a_pattern_of_another_shape_is_refused(shape, unchecked):
    q, k, v = draw(13)
    call = read(q, k, v)
    with pytest.raises(ValueError, match=r"\(2, 4, 2, 5\)"):
        call.write(torch.zeros(2, 5, 4, 8), torch.tensor([1, 3]), torch.rand(shape))


# -- what can't be read ------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["s_aux", "position_bias", "cache", "sinks"])
def test_an_argument_that_rows_do_not_carry_is_refused_by_name(extra):
    q, k, v = draw(14)
    with pytest.raises(UnreadableAttention, match=extra):
        read(q, k, v, **{extra: torch.ones(4)})


@pytest.mark.parametrize("mask", [torch.ones(2, 5), torch.ones(2, 5, 5), {"full": None}])
def test_a_mask_of_another_kind_is_refused(mask):
    q, k, v = draw(15)
    with pytest.raises(UnreadableAttention, match="mask"):
        read(q, k, v, mask)


@pytest.mark.parametrize("change", [{"heads": 3}, {"keys": 6}])
def test_heads_and_keys_that_do_not_fit_each_other_are_refused(change, unchecked):
    q, k, v = draw(16, **({"heads": 3} if "heads" in change else {}))
    if "keys" in change:
        v = torch.randn(2, 2, 6, 8)
    with pytest.raises(UnreadableAttention, match="inconsistent"):
        read(q, k, v)


# -- cost --------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements any operation made, views of what was there aside."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("rows", [torch.tensor([299]), torch.tensor([[299], [7]])])
@pytest.mark.parametrize("masked", [False, True])
def test_one_row_makes_nothing_of_the_size_of_a_pattern(rows, masked):
    """300 × 300 numbers would be a pattern of one head; the mask that is passed in is there already."""
    q, k, v = draw(17, queries=300, keys=300)
    mask = torch.ones(2, 1, 300, 300).tril().bool() if masked else None
    call = read(q, k, v, mask)
    output = torch.zeros(2, 300, 4, 8)
    with Largest() as largest:
        pattern = call.pattern(rows)
        call.write(output, rows, pattern)
    # The storage of a view of the mask is the mask's; nothing else may come near it.
    allowed = mask.numel() if masked else output.numel()
    assert largest.numel <= allowed < 4 * 300 * 300
    if not masked:
        assert largest.numel < 300 * 300


def test_the_guard_sees_a_whole_pattern():
    q, k, v = draw(18, queries=300, keys=300)
    with Largest() as largest:
        read(q, k, v).pattern()
    assert largest.numel >= 300 * 300


class Sizes(TorchDispatchMode):
    """How many results of at least ``floor`` numbers were made."""

    def __init__(self, floor: int):
        super().__init__()
        self.floor, self.found = floor, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.floor and out._base is None:
            self.found.append(func.__name__)
        return out


@pytest.mark.parametrize("masked", [False, True])
def test_a_whole_pattern_is_computed_in_chunks(monkeypatch, masked):
    """The same numbers, and nothing of the result's size is made beside the result."""
    q, k, v = draw(19, queries=300, keys=300)
    mask = torch.ones(2, 1, 300, 300).tril().bool() if masked else None
    call = read(q, k, v, mask)
    whole = call.pattern(), call.scores()
    monkeypatch.setattr(attention, "CHUNK", 4 * 2 * 300 * 17)
    with Sizes(2 * 4 * 300 * 300) as sizes:
        chunked = call.pattern(), call.scores()
    assert len(set(sizes.found)) == 1, sizes.found
    assert len(sizes.found) == 2
    for found, expected in zip(chunked, whole):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_blocks_see_themselves_only():
    """Two windows in one call, in an order of their own, against two calls."""
    q, k, v = draw(20, heads=2, batch=1, queries=7, keys=7)
    blocks = torch.tensor([0, 1, 1, 0, 0, 1, 0])
    call = AttentionCall(q, k, v, None, 0.3, causal=False, blocks=blocks)
    pattern = call.pattern()
    for block in (0, 1):
        own = (blocks == block).nonzero()[:, 0]
        alone = AttentionCall(q[:, :, own], k[:, :, own], v[:, :, own], None, 0.3, causal=False)
        close(pattern[:, :, own][..., own], alone.pattern())
    assert (pattern[:, :, blocks == 0][..., blocks == 1] == 0).all()
    close(call.pattern(torch.tensor([5])), pattern[:, :, [5]])
