"""The embedded base VLM: its folder, tokenizer and template, its training rows, and what the committed weights see."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rationalrewards.components.shapes import pretrain_critic, tiny_critic
from rationalrewards.components.shapes.captions import caption, caption_batch, caption_rows, compared, parse_caption
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.judge import Reading, quality, read
from rationalrewards.components.shapes.scenes import (
    PLACES,
    Scene,
    describe,
    describe_quality,
    describe_scene,
    parse_request,
    random_edit,
    random_scene,
)
from rationalrewards.components.shapes.tiny_critic import (
    HEADING_TOKENS,
    IMAGE_PAD,
    SPECIAL_TOKENS,
    TURN_END,
    build_tiny_vlm,
    load_critic,
)
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2TokenizerFast,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vlm(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def fresh_pair(fresh: Path) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    return load_critic(fresh)


@pytest.fixture(scope="module")
def trained() -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    return load_critic()


def _scenes(count: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def test_folder_loads_as_what_it_claims_to_be(fresh: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(fresh)
    processor = AutoProcessor.from_pretrained(fresh)
    assert type(model) is Qwen3VLForConditionalGeneration
    assert type(processor) is Qwen3VLProcessor
    assert isinstance(processor.tokenizer, Qwen2TokenizerFast)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids(TURN_END)


def test_committed_folder_is_small_and_was_built_by_this_code(
    fresh_pair: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor],
    trained: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor],
) -> None:
    assert (tiny_critic.CRITIC_FOLDER / "model.safetensors").stat().st_size <= 4 * 1024 * 1024
    (model, processor), (committed, its_processor) = fresh_pair, trained
    for part in ("text_config", "vision_config"):
        assert getattr(model.config, part).to_diff_dict() == getattr(committed.config, part).to_diff_dict()
    assert processor.tokenizer.get_vocab() == its_processor.tokenizer.get_vocab()
    assert processor.chat_template == its_processor.chat_template
    assert dict(processor.image_processor.size) == dict(its_processor.image_processor.size)


def test_weights_follow_the_seed_and_leave_the_global_state_alone(tmp_path: Path, fresh: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    again = load_critic(build_tiny_vlm(tmp_path / "again"))[0].state_dict()
    assert torch.equal(torch.rand(4), expected)
    other = load_critic(build_tiny_vlm(tmp_path / "other", seed=1))[0].state_dict()
    first = load_critic(fresh)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pretrain_critic --out"):
        load_critic(tmp_path / "nowhere")


def test_impossible_geometry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="deepstack below vision_layers"):
        build_tiny_vlm(tmp_path, deepstack=(3,))


# ---------------------------------------------------------------------------------- tokenizer and template


def test_words_and_headings_are_single_tokens(fresh_pair: tuple[object, Qwen3VLProcessor]) -> None:
    tokenizer = fresh_pair[1].tokenizer
    rng = random.Random(5)
    language = []
    for _ in range(200):
        scene = random_scene(rng)
        for style in ("terse", "detailed"):
            language += [
                scene.request(style),
                random_edit(scene, rng).request(style),
                caption(Reading(scene, rng.uniform(0.0, 0.2))),
            ]
    words = {word.strip(",;:") for text in language for word in text.split()} - {""}
    assert words > {"circle", "purple", "keep", "sharp", "mostly", "A"}  # the sample covers the language
    assert [word for word in words if len(tokenizer(f" {word}")["input_ids"]) != 1] == []
    for heading in HEADING_TOKENS:
        ids = tokenizer(f"left\n{heading} 4")["input_ids"]
        assert ids.count(tokenizer.convert_tokens_to_ids(heading)) == 1
        assert heading in tokenizer.decode(ids, skip_special_tokens=True)  # added, but not special
    digits = tokenizer("3.75 2026")["input_ids"]
    assert all(sum(char.isdigit() for char in tokenizer.decode([token])) <= 1 for token in digits)
    assert tokenizer.unk_token_id not in digits


@pytest.mark.parametrize(
    "text",
    [
        "# Summary: fine .\n## Score A: 3.5\n\n## Winner: tie , N/A",
        "a , b ; it 's  two  spaces \t tab\r\n",
        "naïve café 🙂 日本 — “quoted”",
        "".join(map(chr, range(32, 127))),
        "describe<|im_end|>\n<|im_start|>assistant\n",
    ],
)
def test_text_comes_back_exactly(fresh_pair: tuple[object, Qwen3VLProcessor], text: str) -> None:
    tokenizer = fresh_pair[1].tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_template_is_qwen3_vls(fresh_pair: tuple[object, Qwen3VLProcessor]) -> None:
    picture = Image.new("RGB", (32, 32))
    chat = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "describe"}]},
        {"role": "assistant", "content": "nothing"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert fresh_pair[1].apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nbe short<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>describe<|im_end|>\n"
        "<|im_start|>assistant\nnothing<|im_end|>\n"
        "<|im_start|>user\nab<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("size", "tokens"), [((32, 32), 16), ((64, 64), 64), ((512, 384), 54)])
def test_pictures_of_the_world_keep_their_size_and_photographs_shrink(
    fresh_pair: tuple[object, Qwen3VLProcessor], size: tuple[int, int], tokens: int
) -> None:
    inputs = fresh_pair[1].image_processor([Image.new("RGB", size)], return_tensors="pt")
    assert int(inputs["image_grid_thw"].prod()) // 4 == tokens  # 4 patches of 4 x 4 pixels make one token
    assert int(inputs["image_grid_thw"].prod()) * 16 <= 64 * 64


def test_geometry_of_the_8b_model(tmp_path: Path) -> None:
    folder = build_tiny_vlm(tmp_path, patch_size=16, min_pixels=65536, max_pixels=16777216)
    model, processor = load_critic(folder)
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 255, (384, 512, 3), dtype=np.uint8))
    text = "<|vision_start|><|image_pad|><|vision_end|>describe"
    inputs = processor(text=[text], images=[photograph], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 512 * 384 // 32**2
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


# ---------------------------------------------------------------------------------- rows


def test_batches_equal_the_processors_output(fresh_pair: tuple[object, Qwen3VLProcessor]) -> None:
    processor = fresh_pair[1]
    rows = caption_rows(12, random.Random(1), pictures=(1, 2, 3))
    assert {len(row.images) for row in rows} == {1, 2, 3} and {len(row.turns) for row in rows} == {1, 2}
    batch = caption_batch(rows, processor.tokenizer)
    expected = processor.apply_chat_template(
        [row.messages() for row in rows],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw"):
        assert torch.equal(batch[name], expected[name].to(batch[name].dtype)), name
    # float32 rounding of the two orders of (x - mean) / std
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)


def test_only_the_answers_carry_labels(fresh_pair: tuple[object, Qwen3VLProcessor]) -> None:
    tokenizer = fresh_pair[1].tokenizer
    rows = caption_rows(8, random.Random(2))
    batch = caption_batch(rows, tokenizer)
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        assert torch.equal(ids[labels >= 0], labels[labels >= 0])
        assert tokenizer.decode(labels[labels >= 0]) == "".join(answer + TURN_END for _, answer in row.turns)


def test_rows_are_a_function_of_the_seed() -> None:
    first, again, other = (caption_rows(4, random.Random(seed)) for seed in (7, 7, 8))
    assert [row.turns for row in first] == [row.turns for row in again] != [row.turns for row in other]
    assert [image.tobytes() for row in first for image in row.images] == [
        image.tobytes() for row in again for image in row.images
    ]


def test_whole_picture_captions_follow_the_judge() -> None:
    rows = caption_rows(120, random.Random(3), pictures=(1,))
    whole = [
        (row.images[0], told)
        for row in rows
        for asked, told in row.turns
        if asked.startswith(("describe the picture", "what does the picture")) and told.count(";") == 4
    ]
    assert len(whole) > 20
    for (_, told), reading in zip(whole, read([image for image, _ in whole]), strict=True):
        seen, words = parse_caption(told)
        assert seen == {place: describe(thing) for place, thing in zip(PLACES, reading.scene.things, strict=True)}
        assert words == describe_quality(reading.quality)


def test_no_row_compares_a_request_with_a_picture() -> None:
    rows = caption_rows(300, random.Random(4))
    words = {word for row in rows for _, answer in row.turns for word in answer.split()}
    judging = {"asked", "wrong", "score", "Score", "winner", "better", "worse", "missing", "done", "not", "yes", "no"}
    assert not words & judging
    assert not any(heading in answer for row in rows for _, answer in row.turns for heading in HEADING_TOKENS)
    comparisons = [asked for row in rows for asked, answer in row.turns if {"same", "different"} & set(answer.split())]
    assert comparisons and not any("request" in asked for asked in comparisons)


def test_two_pictures_are_described_and_then_compared() -> None:
    rows = caption_rows(300, random.Random(7), pictures=(2, 3), reading=0.0)
    told = [(row.images, answer) for row in rows for asked, answer in row.turns if asked.startswith("compare ")]
    assert len(told) > 60
    for images, answer in told:
        seen = read(list(images))
        *descriptions, comparison = answer.splitlines()
        scenes = []
        for line in descriptions:
            name, _, words = line.partition(" : ")
            scenes.append(seen[int(name.removeprefix("picture ")) - 1].scene)
            assert words == describe_scene(scenes[-1])
        assert comparison == compared(*scenes)
        parts = comparison.split(" ; ")
        for place in PLACES:
            verdicts = [part.endswith(" same") for part in parts if part.startswith(place)]
            assert all(verdicts) == (scenes[0].at(place) == scenes[1].at(place))


def test_quality_is_told_of_every_place() -> None:
    rows = caption_rows(200, random.Random(5), pictures=(1,), reading=0.0)
    told = [(row.images[0], answer) for row in rows for asked, answer in row.turns if asked.startswith("how clean is each")]
    assert len(told) > 20
    for (_, answer), reading in zip(told, read([image for image, _ in told]), strict=True):
        *words, whole = answer.split(" ; ")
        assert whole == describe_quality(reading.quality)
        # the whole is the root mean square of its places
        assert reading.rmse == pytest.approx(float(np.sqrt(np.mean(np.square(reading.rmse_at)))), rel=1e-5)
        expected = [f"{place} {describe_quality(quality(rmse))}" for place, rmse in zip(PLACES, reading.rmse_at, strict=True)]
        assert words == expected


def test_a_request_is_said_again_place_by_place() -> None:
    rows = caption_rows(200, random.Random(6), reading=1.0)
    asks = [(asked, told) for row in rows for asked, told in row.turns if asked.endswith("say the request place by place")]
    assert len(asks) > 40
    for asked, told in asks:
        scene = parse_request(asked.split("<request>")[1].split("</request>")[0])
        assert scene is not None
        assert parse_caption(told) == ({place: describe(scene.at(place)) for place in PLACES}, "")


# ---------------------------------------------------------------------------------- training


def test_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [pretrain_critic.learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01) and rates[99:650] == [1.0] * 551
    assert rates[825] == pytest.approx(0.5) and rates[-1] == pytest.approx(0.02)


@pytest.mark.slow
def test_a_short_pretraining_learns_and_leaves_a_folder_that_loads(tmp_path: Path) -> None:
    log = pretrain_critic.pretrain(tmp_path / "critic", steps=75, seed=0, batch=8, peak=2e-3, glance_every=1000)
    # 75 steps learn at least the form of a caption; untrained, the loss is ln(vocabulary) = 6.5
    assert log[0]["loss"] > log[-1]["loss"] and log[-1]["loss"] < 3.0
    model, processor = load_critic(tmp_path / "critic")
    batch = caption_batch(caption_rows(16, random.Random(9)), processor.tokenizer)
    with torch.no_grad():
        loss = float(pretrain_critic.caption_loss(model, batch)[0])
    assert loss < 3.0  # the folder holds the trained weights, not the random ones
    assert not [path for path in tmp_path.iterdir() if path.name != "critic"]  # the scratch folder of the save is gone


# ---------------------------------------------------------------------------------- the committed checkpoint


def test_checkpoint_reads_clean_drawings(trained: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]) -> None:
    images = pretrain_critic.pictures("clean", 24, seed=5)
    told = pretrain_critic.answer(*trained, [[image] for image in images], ["describe the picture"] * 24)
    # 96 places; measured about 0.97 to 0.99 on 800, so 0.9 leaves more than four standard deviations
    assert pretrain_critic.place_accuracy(told, images)["place"] >= 0.9


def test_checkpoint_reads_the_picture_that_is_asked_for_in_a_padded_batch(
    trained: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor],
) -> None:
    images = [draw(scene) for scene in _scenes(6, seed=11)]
    rows = [images[:1], images[1:3], images[3:6]]
    questions = ["describe the picture", "describe picture 2", "describe picture 3"]
    together = pretrain_critic.answer(*trained, rows, questions)
    alone = [pretrain_critic.answer(*trained, [row], [question])[0] for row, question in zip(rows, questions, strict=True)]
    assert together == alone
    asked = [row[-1] for row in rows]
    assert pretrain_critic.place_accuracy(together, asked)["place"] >= 10 / 12


def test_left_padding_does_not_change_the_logits(
    trained: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor],
) -> None:
    model, processor = trained
    picture = draw(_scenes(1, seed=12)[0])
    chats = [
        [
            {
                "role": "user",
                "content": [*[{"type": "image", "image": picture}] * count, {"type": "text", "text": "describe"}],
            }
        ]
        for count in (1, 2, 3)
    ]
    keep = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    padded = processor.apply_chat_template(chats, **keep, processor_kwargs={"padding": True, "padding_side": "left"})
    assert int(padded["attention_mask"][0, 0]) == 0
    with torch.no_grad():
        last = model(**padded).logits[:, -1]
        for row, chat in zip(last, chats, strict=True):
            model.model.rope_deltas = None
            single = model(**processor.apply_chat_template([chat], **keep)).logits[0, -1]
            torch.testing.assert_close(row, single, rtol=0, atol=1e-3)  # fp32 attention over different lengths


def test_special_tokens_are_those_of_the_config(
    fresh_pair: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor],
) -> None:
    model, processor = fresh_pair
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    assert len(set(ids.values())) == len(SPECIAL_TOKENS)
    assert model.config.image_token_id == ids[IMAGE_PAD] == processor.image_token_id
    assert set(processor.tokenizer.all_special_ids) >= {ids["<|endoftext|>"], ids["<|im_end|>"]}
    text = "<|im_start|>a<|vision_start|><|image_pad|><|video_pad|><|vision_end|>b<|im_end|><|endoftext|>"
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"], skip_special_tokens=True) == "ab"
