"""Every random number is a function of its key, and of nothing else."""

from __future__ import annotations

import hashlib
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rationalrewards.components.generation.noise import generator_for, normal, seed_for

_keys = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=8)), max_size=5).map(tuple)


@settings(max_examples=200, deadline=None)
@given(_keys)
def test_a_seed_is_the_hash_of_its_key(key: tuple[int | str, ...]) -> None:
    """Python's own hash of a text differs from process to process; this one may not."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).hexdigest()
    assert seed_for(*key) == int(digest, 16) // 2 < 2**63


@settings(max_examples=200, deadline=None)
@given(_keys, _keys)
def test_other_keys_have_other_seeds(first: tuple[int | str, ...], second: tuple[int | str, ...]) -> None:
    assert (seed_for(*first) == seed_for(*second)) == (first == second)


def test_keys_do_not_run_together() -> None:
    keys = [(1, 23), (12, 3), (123,), ("1", 23), ("1, 23",), (1, "23"), ("a", "b"), ("ab",), ()]
    assert len({seed_for(*key) for key in keys}) == len(keys)


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    keys: list[tuple[int | str, ...]] = [(0, 3, "group", copy, "train noise", 7) for copy in range(5)]
    together = normal(torch.empty(5, 3, 4), keys)
    for order in ([4, 2, 0, 1, 3], [2], [1, 1, 3]):
        part = normal(torch.empty(len(order), 3, 4), [keys[index] for index in order])
        assert torch.equal(part, together[order])
    assert len({tuple(row.flatten().tolist()) for row in together}) == 5


def test_noise_neither_reads_nor_moves_the_global_state() -> None:
    torch.manual_seed(1)
    first = normal(torch.empty(1, 8), [("k",)])
    following = torch.rand(3)
    torch.manual_seed(2)
    assert torch.equal(normal(torch.empty(1, 8), [("k",)]), first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), following)
    assert torch.equal(torch.randn(8, generator=generator_for("k")), first[0])


def test_noise_is_standard_normal_in_single_precision() -> None:
    noise = normal(torch.empty(200, 500, dtype=torch.bfloat16), [(index,) for index in range(200)])
    assert noise.dtype == torch.float32
    n = noise.numel()
    # five standard errors of mean, variance and of the correlation of neighbouring keys
    assert abs(float(noise.mean())) < 5 / math.sqrt(n)
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((noise[:-1] * noise[1:]).mean())) < 5 / math.sqrt(n)
