"""Packing, remembered pictures and chunked logits change what is computed and not what comes out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from rationalrewards.components.chat import ChatRequest
from rationalrewards.components.distillation import AnswerLoss, FeatureStore, Row, picture_key
from rationalrewards.components.distillation.answers import CHUNKS, PACKING, PICTURES
from rationalrewards.components.distillation.packing import pack
from rationalrewards.components.distillation.pictures import Features
from rationalrewards.components.measuring import flop_counter
from rationalrewards.lightning_modules import RationaleDistillModule
from torch import Tensor
from torch.nn.functional import cross_entropy

pytestmark = tiny.QUIET

ALL = {PACKING, PICTURES, CHUNKS}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Rows of drawn and edited pairs, without any order: points and pairs, one to three pictures. All begin with a long instruction."""
    data = tiny.distill_data(tiny.rationales(tmp_path_factory.mktemp("rationales"), 24))
    data.setup("fit")
    of_task = {task: [row for row in data.rows if row.rationale.pair.task == task][:4] for task in ("t2i", "edit")}
    loaded = [row.load(data.format) for pair in zip(of_task["t2i"], of_task["edit"], strict=True) for row in pair]
    said = {"type": "text", "text": "judge each aspect against the request and say what is missing . " * 16}
    return [([{**system, "content": [said, *system["content"]]}, *rest], answer) for (system, *rest), answer in loaded]


def made(attention: str = "sdpa", **changes: Any) -> RationaleDistillModule:
    module = tiny.distill_module(attention=attention, max_length=2048, **changes)
    module.configure_model()
    return module


@pytest.fixture
def module() -> RationaleDistillModule:
    return made()


def keys(rows: list[Row]) -> list[bytes]:
    return [picture_key(image) for messages, _ in rows for image in ChatRequest(messages).images()]


def plain(student: Any, encoded: dict[str, Tensor]) -> Tensor:
    """Padded rows, all logits, transformers as it comes."""
    inputs = dict(encoded)
    labels = inputs.pop("labels")
    logits = student(**inputs).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def gradients(student: Any, loss: Tensor) -> dict[str, Tensor]:
    student.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in student.named_parameters() if weight.grad is not None}


def furthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference between two gradients, as a share of the largest entry of each tensor."""
    assert first.keys() == second.keys() and first
    return max(float((first[name] - second[name]).abs().max() / second[name].abs().max()) for name in first)


@pytest.mark.parametrize("frozen", [False, True], ids=["trains", "frozen"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
def test_loss_and_gradients_are_those_of_transformers(frozen: bool, checkpointing: bool, rows: list[Row]) -> None:
    module = made(freeze_vision=frozen, freeze_projector=frozen, gradient_checkpointing=checkpointing)
    student, encoded = module.student, module.encode(rows)
    answers = AnswerLoss(student, picture_bytes=10**8)
    expected = plain(student, encoded)
    theirs = gradients(student, expected)
    for _ in range(2):  # the second time a frozen tower is not asked
        loss = answers(encoded, keys(rows))
        assert answers.ways == ALL
        # float32 sums in another order; a gradient is a sum over 4,000 tokens
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert furthest(gradients(student, loss), theirs) < 1e-5
    assert any("visual" in name for name in theirs) != frozen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("ways", [{PACKING}, {PICTURES}, {CHUNKS}, set()], ids=["packing", "pictures", "chunks", "none"])
def test_each_way_alone_leads_to_the_same_loss(attention: str, ways: set[str], rows: list[Row]) -> None:
    module = made(attention)
    encoded = module.encode(rows)
    answers = AnswerLoss(module.student, picture_bytes=10**8)
    with torch.no_grad():
        answers(encoded, keys(rows))
        assert answers.ways == ALL
        loss = answers._loss(encoded, keys(rows), frozenset(ways))
        assert loss.item() == pytest.approx(plain(module.student, encoded).item(), rel=1e-6)


# -- packing --------------------------------------------------------------------------------------------------------------


def test_a_packed_sequence_holds_each_row_without_padding(module: RationaleDistillModule, rows: list[Row]) -> None:
    encoded = module.encode(rows)
    inputs, labels = pack(module.student.model, encoded, by_rows=False)
    mask = encoded["attention_mask"].bool()
    assert torch.equal(inputs["input_ids"][0], encoded["input_ids"][mask])
    assert torch.equal(labels[0], encoded["labels"][mask])
    start = 0
    for row in range(len(rows)):
        alone = {
            name: tensor[row : row + 1, : int(mask[row].sum())] for name, tensor in encoded.items() if tensor.shape == mask.shape
        }
        grids = encoded["image_grid_thw"][: keys_before(rows, row + 1)][keys_before(rows, row) :]
        expected, _ = module.student.model.get_rope_index(
            alone["input_ids"], alone["mm_token_type_ids"], image_grid_thw=grids, attention_mask=alone["attention_mask"]
        )
        length = expected.shape[-1]
        found = inputs["position_ids"][:, 0, start : start + length]
        assert torch.equal(found[1:], expected[:, 0]) and found[0].tolist() == list(range(length))
        start += length
    assert start == inputs["input_ids"].shape[1]


def keys_before(rows: list[Row], row: int) -> int:
    return len(keys(rows[:row]))


def test_what_rows_begin_with_is_there_once(module: RationaleDistillModule, rows: list[Row]) -> None:
    encoded = module.encode(rows)
    inputs, labels = pack(module.student.model, encoded, by_rows=True)
    spans, ids = inputs["spans"], inputs["input_ids"][0]
    mask = encoded["attention_mask"].bool()
    saved = sum(span.shared[1] - span.shared[0] for span in spans)
    assert saved > 0 and len(ids) == int(mask.sum()) - saved
    for row, span in enumerate(spans):
        whole = torch.cat([ids[slice(*span.shared)], ids[span.start : span.stop]])
        assert torch.equal(whole, encoded["input_ids"][row][mask[row]])
        # neither a picture nor an answer is shared, and the token that predicts the first of the answer is the row's own
        assert not inputs["mm_token_type_ids"][0, slice(*span.shared)].any()
        assert (labels[0, slice(*span.shared)] == -100).all() and int(labels[0, span.start]) == -100


def test_rows_without_pictures_and_rows_that_are_all_alike(module: RationaleDistillModule) -> None:
    said = [{"role": "user", "content": [{"type": "text", "text": "describe the letter . " * 16}]}]
    rows: list[Row] = [(said, "red circle"), (said, "red circle"), (said, "nothing")]
    encoded = module.encode(rows)
    answers = AnswerLoss(module.student)
    loss = answers(encoded)
    assert answers.ways == ALL
    inputs, _ = pack(module.student.model, encoded, by_rows=True)
    assert inputs["input_ids"].shape[1] < 0.7 * int(encoded["attention_mask"].sum())
    # float32 sums in another order
    assert loss.item() == pytest.approx(plain(module.student, encoded).item(), rel=1e-6)


def test_packing_costs_what_rows_cost_one_by_one(module: RationaleDistillModule, rows: list[Row]) -> None:
    student = module.student
    encoded = module.encode(rows)
    answers = AnswerLoss(student)
    answers(encoded, keys(rows))

    def flops(ways: set[str], encoded: dict[str, Tensor], pictures: list[bytes]) -> int:
        with flop_counter() as counter, torch.no_grad():
            answers._loss(encoded, pictures, frozenset(ways))
        return int(counter.get_total_flops())

    alone = sum(flops({CHUNKS}, module.encode([row]), keys([row])) for row in rows)
    packed, padded = flops({PACKING, CHUNKS}, encoded, keys(rows)), flops({CHUNKS}, encoded, keys(rows))
    shared = pack(student.model, encoded, by_rows=True)[0]["input_ids"].shape[1] / int(encoded["attention_mask"].sum())
    # attention of a row is over that row, and not over all of them: nothing on top, and less for common beginnings
    assert shared * alone < packed < alone < 0.85 * padded


# -- pictures -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def looked(module: RationaleDistillModule) -> Iterator[list[int]]:
    """Patches that the vision tower was shown, call by call."""
    seen: list[int] = []
    hook = module.student.model.visual.register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given.get("hidden_states", *args[:1]))), with_kwargs=True
    )
    yield seen
    hook.remove()


PATCHES = 64
"""Of a drawn picture."""


def test_a_frozen_tower_sees_each_picture_once(module: RationaleDistillModule, rows: list[Row], looked: list[int]) -> None:
    for name, weight in module.student.named_parameters():
        weight.requires_grad_("visual" not in name)
    answers = AnswerLoss(module.student, picture_bytes=10**8)
    halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    for half in halves:
        answers(module.encode(half), keys(half))
    looked.clear()
    answers.store.clear()
    for half in halves * 2:
        answers(module.encode(half), keys(half)).backward()
    assert sum(looked) == PATCHES * len(set(keys(rows))) < PATCHES * len(keys(rows))
    assert len(answers.store) == len(set(keys(rows)))
    looked.clear()
    again = list(reversed(rows))
    expected = plain(module.student, module.encode(again))
    assert sum(looked) == PATCHES * len(keys(rows))
    looked.clear()
    loss = answers(module.encode(again), keys(again))
    assert not looked
    # the tower attends within a picture, so that its neighbours change rounding only
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("part", ["visual.blocks.0.", "visual.merger.", "visual.deepstack_merger_list."])
def test_as_long_as_any_part_of_it_trains_pictures_are_looked_at_anew(
    part: str, module: RationaleDistillModule, rows: list[Row], looked: list[int]
) -> None:
    for name, weight in module.student.named_parameters():
        weight.requires_grad_("visual" not in name or part in name)
    answers = AnswerLoss(module.student, picture_bytes=10**8)
    encoded = module.encode(rows)
    answers(encoded, keys(rows))
    for _ in range(2):
        looked.clear()
        module.student.zero_grad()
        answers(encoded, keys(rows)).backward()
        assert sum(looked) == PATCHES * len(set(keys(rows)))  # once, however often it is in the batch
        assert len(answers.store) == 0
    trained = [weight.grad for name, weight in module.student.named_parameters() if part in name]
    assert trained and all(gradient is not None and gradient.abs().max() > 0 for gradient in trained)


def test_memory_for_pictures_is_bounded_and_what_came_first_stays() -> None:
    one = Features(torch.zeros(16, 8), (torch.zeros(16, 8),))
    store = FeatureStore(limit=3 * one.nbytes)
    for name in b"abcde":
        store.put(bytes([name]), one)
    assert (len(store), store.nbytes) == (3, 3 * 2 * 16 * 8 * 4)
    assert [store.get(bytes([name])) is not None for name in b"abcde"] == [True, True, True, False, False]
    assert (store.hits, store.misses) == (3, 2)
    store.put(b"a", one)
    assert store.nbytes == 3 * one.nbytes
    store.clear()
    store.put(b"e", one)
    assert len(store) == 1 and store.nbytes == one.nbytes


def test_features_in_the_store_hold_no_other_memory() -> None:
    batch = torch.zeros(100, 16, 8)
    store = FeatureStore(limit=10**6)
    store.put(b"a", Features(batch[3], (batch[4],)))
    found = store.get(b"a")
    assert found is not None and found.tokens.untyped_storage().nbytes() == found.tokens.nbytes


def test_a_key_is_the_content_of_a_picture() -> None:
    first, second = tiny.drawings(2)
    assert picture_key(first) == picture_key(first.copy()) != picture_key(second)
    wide, high = first.resize((8, 2)), first.resize((2, 8))
    assert len({picture_key(one) for one in (wide, high, first.convert("L"), first)}) == 4


# -- other models -----------------------------------------------------------------------------------------------------------


def text_inputs(vocabulary: int) -> dict[str, Tensor]:
    """Two rows of unequal length."""
    ids = torch.randint(vocabulary, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :20] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_a_llava_bears_all_of_it() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **sizes)
    student = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(vocab_size=100, **sizes),
            image_token_index=99,
            image_seq_length=4,
        )
    )
    student.model.vision_tower.requires_grad_(False)
    student.model.multi_modal_projector.requires_grad_(False)
    encoded = text_inputs(99)
    encoded["input_ids"][:, 2:6] = 99
    encoded["pixel_values"] = torch.randn(1, 3, 16, 16).repeat(2, 1, 1, 1)
    answers = AnswerLoss(student, picture_bytes=10**6)
    expected = plain(student, encoded)
    theirs = gradients(student, expected)
    for _ in range(2):
        loss = answers(encoded, [b"the same", b"the same"])
        assert answers.ways == ALL and len(answers.store) == 1
        # float32 sums in another order
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert furthest(gradients(student, loss), theirs) < 1e-5


def test_what_a_model_does_not_bear_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    # logits are squeezed behind the head: what the head answers is not the loss yet
    config = Gemma2Config(
        vocab_size=100, num_key_value_heads=2, final_logit_softcapping=1.0, attn_implementation="eager", **sizes
    )
    student = Gemma2ForCausalLM(config)
    student.model.embed_tokens.weight.data.mul_(20)  # or there would be nothing to squeeze
    encoded = text_inputs(100)
    answers = AnswerLoss(student)
    with caplog.at_level(logging.WARNING):
        loss = answers(encoded)
    assert answers.ways == {PACKING}
    assert "left out for Gemma2ForCausalLM: logits computed in chunks, as the loss is another" in caplog.text
    # float32 sums in another order
    assert loss.item() == pytest.approx(plain(student, encoded).item(), rel=1e-6)
