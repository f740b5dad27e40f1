"""Photographs, generated pictures and prompts that nobody here made, through the stages and the command line.

The critic is a tiny Qwen3-VL with the processor geometry of Qwen3-VL-8B-Instruct, so what it sees of a picture is what the real
one would see. Untrained, it shows what becomes of unusable answers; taught a few answers by heart, what becomes of usable ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rationalrewards.components.chat import ChatRequest, TransformersChat
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.teacher import (
    anchor_messages,
    check_messages,
    mask_comment,
    project_messages,
    refine_messages,
)
from rationalrewards.components.parrot import read_ledgers
from rationalrewards.components.pictures import open_picture
from rationalrewards.components.records import (
    AspectComparison,
    AspectCritique,
    Critique,
    NotApplicable,
    PairCritique,
    Preference,
    Rationale,
    Refinement,
    Task,
    Unscored,
    read_jsonl,
    write_jsonl,
)
from rationalrewards.components.shapes.tiny_critic import build_processor, build_tiny_vlm
from rationalrewards.components.shapes.tiny_generator import PIPELINE_KWARGS
from rationalrewards.datamodules.readers import read_preferences, read_prompts
from rationalrewards.lightning_modules import RationaleDistillModule
from rationalrewards.lightning_modules.distill import Row
from rationalrewards.lightning_modules.schedules import CosineWithWarmup
from tiny import QUIET

from rationalrewards import cli

pytestmark = QUIET

# the image processor of Qwen3-VL-8B-Instruct (its preprocessor_config.json): 16 px patches, 2 x 2 of them are one token
GEOMETRY = {"patch_size": 16, "min_pixels": 65536, "max_pixels": 16777216}
SIDE = 32

# By hand: each side to its nearest multiple of 32, then one token for each 32 x 32 pixels.
TOKENS = {
    "imagereward/1.webp": ((512, 512), 16 * 16),
    "editscore/source.jpg": ((512, 377), 16 * 12),
    "editscore/edited.jpg": ((512, 377), 16 * 12),
    "step1x_edit/0000_source.jpg": ((341, 512), 11 * 16),
    "step1x_edit/0002_edited.jpg": ((320, 512), 10 * 16),
    "step1x_edit/0003_source.jpg": ((358, 512), 11 * 16),
    "step1x_edit/0004_source.jpg": ((333, 512), 10 * 16),
    "step1x_edit/0004_edited.jpg": ((333, 512), 10 * 16),
}


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen3-VL with random weights and the real geometry."""
    return build_tiny_vlm(tmp_path_factory.mktemp("critic") / "untrained", **GEOMETRY)


# -- what the critic sees -----------------------------------------------------------------------------------------------


def seen(chat: TransformersChat, *requests: list[dict[str, Any]]) -> list[tuple[int, list[int]]]:
    """Image tokens of each conversation in one batch, and how they spread over its pictures, in order."""
    inputs = chat.encode([ChatRequest(messages) for messages in requests])
    pad = chat.processor.image_token_id
    counts = (inputs["input_ids"] == pad).sum(dim=1).tolist()
    runs = [[len(list(run)) for token, run in groupby(row) if token == pad] for row in inputs["input_ids"].tolist()]
    # the patches that the vision tower gets are the tokens that the language model gets
    patches = [int(grid.prod()) // 4 for grid in inputs["image_grid_thw"]]
    assert [count for run in runs for count in run] == patches
    return list(zip(counts, runs, strict=True))


@pytest.fixture(scope="module")
def chat(untrained: Path) -> TransformersChat:
    chat = TransformersChat(str(untrained), dtype="float32")
    chat.load()
    return chat


@pytest.mark.parametrize("rubric", ["default", "shapes"])
def test_a_picture_has_the_tokens_that_the_real_critic_would_see(rubric: str, chat: TransformersChat, real: Path) -> None:
    format = CritiqueFormat(rubric)
    for name, (size, tokens) in TOKENS.items():
        picture = open_picture(real / name)
        assert picture.size == size
        assert seen(chat, format.pointwise_messages("t2i", "anything", [], picture)) == [(tokens, [tokens])], name


def test_a_pair_has_both_pictures_in_either_order(chat: TransformersChat, real: Path) -> None:
    format = CritiqueFormat()
    names = ("editscore/source.jpg", "step1x_edit/0004_edited.jpg")
    a, b = (open_picture(real / name) for name in names)
    one, other = (TOKENS[name][1] for name in names)
    assert one != other
    forward = format.pairwise_messages("t2i", "anything", [], (a, b))
    swapped = format.pairwise_messages("t2i", "anything", [], (b, a))
    # in one batch and alone
    expected = [(one + other, [one, other]), (one + other, [other, one])]
    assert seen(chat, forward, swapped) == expected
    assert seen(chat, forward) + seen(chat, swapped) == expected


def test_several_sources_come_before_the_pictures(chat: TransformersChat, real: Path) -> None:
    format = CritiqueFormat()
    names = ("editscore/source.jpg", "step1x_edit/0000_source.jpg", "step1x_edit/0004_edited.jpg", "imagereward/1.webp")
    *sources, a, b = (open_picture(real / name) for name in names)
    counts = [TOKENS[name][1] for name in names]
    pair = format.pairwise_messages("edit", "put the woman into the hall", sources, (a, b))
    point = format.pointwise_messages("edit", "put the woman into the hall", sources, b)
    # requests of different numbers of pictures share a batch
    assert seen(chat, pair, point) == [(sum(counts), counts), (counts[0] + counts[1] + counts[3], [*counts[:2], counts[3]])]


def test_small_and_large_pictures_are_brought_into_range(chat: TransformersChat, real: Path) -> None:
    format = CritiqueFormat()
    photo = open_picture(real / "imagereward/1.webp")

    def tokens(chat: TransformersChat, size: tuple[int, int]) -> int:
        return seen(chat, format.pointwise_messages("t2i", "anything", [], photo.resize(size)))[0][0]

    # 2048 x 1536 is below 16,777,216 pixels, and stays
    assert tokens(chat, (2048, 1536)) == 64 * 48
    # 32 x 32 becomes 256 x 256 = 65,536 pixels; 100 x 60 grows by sqrt(65536 / 6000) = 3.305 to 331 x 198, sides rounded up
    assert tokens(chat, (32, 32)) == 8 * 8
    assert tokens(chat, (100, 60)) == 11 * 7
    # the paper trains with at most 802,816 pixels: 1024 x 1024 shrinks to 896 x 896 there, 784 tokens
    limited = TransformersChat("limited").attach(chat.model, build_processor(patch_size=16, min_pixels=65536, max_pixels=802816))
    assert tokens(limited, (1024, 1024)) == 28 * 28
    assert tokens(limited, (512, 512)) == 16 * 16


def test_a_reply_tells_its_image_tokens(chat: TransformersChat, real: Path) -> None:
    format = CritiqueFormat("shapes")
    names = ("editscore/edited.jpg", "step1x_edit/0004_edited.jpg")
    requests = [
        ChatRequest(format.pointwise_messages("t2i", "a hall", [], open_picture(real / name)), max_tokens=3) for name in names
    ]
    replies = chat.complete(requests)
    assert [reply.image_tokens for reply in replies] == [TOKENS[name][1] for name in names]
    assert all(reply.prompt_tokens > reply.image_tokens for reply in replies)


# -- through the command line -------------------------------------------------------------------------------------------


CUT = "the answer was cut off after 24 tokens"


def unusable(reason: str) -> bool:
    """Whether this is what becomes of an untrained critic's 24 tokens: cut off, or ended early without a critique."""
    return reason in (CUT, "Text Faithfulness is missing")


def run(verb: str, model: dict[str, Any], data: dict[str, Any], callback: str, folder: Path) -> Path:
    """Run a stage from a YAML file; returns what its writer wrote to."""
    out = folder / "out"
    config: dict[str, Any] = {
        "model": model,
        "data": data,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": f"rationalrewards.callbacks.{callback}", "init_args": {"output_dir": str(out)}}],
        },
    }
    if verb == "predict":
        config["return_predictions"] = False
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    cli.run([verb, "-c", str(path)])
    return out


def model_of(folder: Path) -> dict[str, Any]:
    return {
        "class_path": "rationalrewards.components.chat.TransformersChat",
        "init_args": {"path": str(folder), "dtype": "float32", "batch_size": 4},
    }


def critic(folder: Path, rubric: str, max_tokens: int) -> dict[str, Any]:
    """A critic whose written scores count: those that it learned by heart are known, its doubts are not."""
    given = {"chat": model_of(folder), "format": {"rubric": rubric}, "max_tokens": max_tokens, "expected": False}
    return {"class_path": "rationalrewards.components.critic.Critic", "init_args": given}


def critique_reward(folder: Path, rubric: str, max_tokens: int) -> dict[str, Any]:
    return {
        "class_path": "rationalrewards.components.rewards.CritiqueReward",
        "init_args": {"critic": critic(folder, rubric, max_tokens)},
    }


def module(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"rationalrewards.lightning_modules.{name}", "init_args": arguments}


def preferences(*paths: Path, **arguments: Any) -> dict[str, Any]:
    return {
        "class_path": "rationalrewards.datamodules.PreferenceDataModule",
        "init_args": {"paths": [str(path) for path in paths], "batch_size": 4, **arguments},
    }


def prompts(path: Path, **arguments: Any) -> dict[str, Any]:
    return {
        "class_path": "rationalrewards.datamodules.PromptDataModule",
        "init_args": {"predict": str(path), "eval_batch_size": 2, **arguments},
    }


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def real_pairs(real: Path, folder: Path) -> Path:
    """Real pairs as a file of our own records: three of the ranked ones, two edits, and an edit of two sources."""
    pairs = [*read_preferences(real / "ranked_t2i.jsonl")[:3], *read_preferences(real / "edits.jsonl")[2:4]]
    edit = pairs[-1]
    two = (str(real / "editscore/source.jpg"), str(real / "step1x_edit/0000_source.jpg"))
    pairs.append(Preference("two-sources", "edit", "Put the girl into the hall.", edit.candidates, 1.0, two))
    path = folder / "pairs.jsonl"
    write_jsonl(path, pairs)
    found = read_jsonl(path, Preference)[-1].sources
    assert [Path(source).resolve() for source in found] == [Path(source).resolve() for source in two]
    return path


def ledger_of(folder: Path, pairs: Sequence[Preference]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Questions and outcomes, checked to tell the whole story of every pair."""
    with read_ledgers(folder) as ledger:
        outcomes = {outcome["pair"]: outcome for outcome in ledger.outcomes()}
        questions = [call for pair in pairs for call in ledger.calls(pair.id)]
    assert set(outcomes) == {pair.id for pair in pairs}
    per_stage = {"anchor": 1, "check": 1, "project": 2, "refine": 2}
    for pair in pairs:
        outcome = outcomes[pair.id]
        asked = Counter(entry["stage"] for entry in questions if entry["pair"] == pair.id)
        reached = list(per_stage)[: list(per_stage).index(outcome["last_stage"]) + 1]
        assert {stage: asked[stage] for stage in per_stage if asked[stage]} == {s: per_stage[s] for s in reached}
        # kept, or a reason; never both, never neither
        assert outcome["kept"] == (not outcome["reason"])
    for entry in questions:
        # an answer, or why there is none
        assert bool(entry["answer"]) or bool(entry["failure"])
        assert entry["prompt_tokens"] > 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["pairs"] == len(pairs)
    assert summary["kept"] == sum(outcome["kept"] for outcome in outcomes.values()) == len(rows(folder / "rationales.jsonl"))
    assert sum(summary["reasons"].values()) + summary["kept"] == len(pairs)
    return questions, outcomes


@pytest.mark.slow
def test_rationalize_accounts_for_every_real_pair(untrained: Path, real: Path, tmp_path: Path) -> None:
    options = {"max_tokens": 24, "control_share": 0.5, "audit_share": 0.0, "attempts": 1, "seed": 1}
    model = module("RationalizeModule", teacher=model_of(untrained), format={"rubric": "default"}, options=options)
    out = run("predict", model, preferences(path := real_pairs(real, tmp_path)), "RationaleWriter", tmp_path)
    pairs = read_jsonl(path, Preference)
    _, outcomes = ledger_of(out, pairs)
    for outcome in outcomes.values():
        # 24 tokens hold no comparison of three aspects: cut off, or ended early and unreadable
        assert (outcome["kept"], outcome["last_stage"]) == (False, "anchor")
        assert outcome["reason"].startswith((f"no answer: {CUT}", "unreadable: "))
        assert not outcome["wrong_label_passed"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pointwise", "pairwise"])
def test_evaluate_counts_what_is_unscored_as_wrong(way: str, untrained: Path, real: Path, tmp_path: Path) -> None:
    if way == "pointwise":
        model = module("RewardEvaluationModule", reward=critique_reward(untrained, "default", 24))
    else:
        model = module("RewardEvaluationModule", judge=critic(untrained, "default", 24))
    out = run("test", model, preferences(path := real_pairs(real, tmp_path)), "EvaluationWriter", tmp_path)
    judged = rows(out / "judgements.jsonl")
    assert [row["id"] for row in judged] == [pair.id for pair in read_jsonl(path, Preference)]
    for row in judged:
        for verdict in (row["verdict"], row["swapped"]):
            assert unusable(verdict.removeprefix("unscored: ")), verdict
        assert all(score is None for picture in row["scores"] for score in picture.values())
    metrics = json.loads((out / "evaluation.json").read_text())
    assert (metrics["test/n_pairs"], metrics["test/unscored_rate"]) == (6.0, 1.0)
    # in the denominator, not left out
    assert metrics["test/pair_accuracy"] == 0.0


def refine_model(folder: Path, rubric: str, max_tokens: int, **arguments: Any) -> dict[str, Any]:
    generator = {
        "path": "embedded:shapes-generator",
        "steps": 2,
        "source_size": 64,
        "pipeline_kwargs": {**PIPELINE_KWARGS, "text_encoder_out_layers": list(PIPELINE_KWARGS["text_encoder_out_layers"])},
    }
    options = {"images_per_prompt": 2, "threshold": 3.9, "seed": 1}
    return module(
        "RefineLoop",
        generator={"class_path": "rationalrewards.components.generation.FlowGenerator", "init_args": generator},
        critic=critic(folder, rubric, max_tokens),
        options=options,
        sanity=None,  # it has one sentence by heart
        **arguments,
    )


def refinements_of(out: Path, ids: Sequence[str], arms: dict[str, int]) -> list[Refinement]:
    """The refinements, checked to be one for each request and arm, with so many pictures each."""
    found = read_jsonl(out / "refinements.jsonl", Refinement)
    assert Counter((one.id, one.arm) for one in found) == Counter((name, arm) for name in ids for arm in arms)
    gallery = (out / "gallery.html").read_text(encoding="utf-8")
    for one in found:
        assert len(one.candidates) == arms[one.arm]
        assert one.chosen < len(one.candidates)
        # every picture was asked for with the original request first
        assert one.candidates[0].request == one.prompt or one.arm.startswith("blind_rewrite")
        for candidate in one.candidates:
            assert open_picture(candidate.image).size == (32, 32)
            # a number, or why there is none
            assert (candidate.reward is None) == bool(candidate.unscored)
    assert "image/png;base64," in gallery
    return found


@pytest.mark.slow
def test_refine_keeps_the_first_picture_where_none_is_scored(untrained: Path, real: Path, tmp_path: Path) -> None:
    path = real / "prompts" / "geneval.jsonl"
    arms = {"base": 1, "best_of_n": 2, "blind_rewrite_best_of_n": 2, "refine_always_accept": 2, "refine_keep_best": 2}
    model = refine_model(untrained, "default", 24, arms=list(arms))
    out = run("predict", model, prompts(path, limit=2), "RefinementWriter", tmp_path)
    requests = read_prompts(path)[:2]
    assert [request.prompt for request in requests] == ["a photo of a bench", "a photo of a cow"]
    for one in refinements_of(out, [request.id for request in requests], arms):
        assert all(unusable(candidate.unscored) for candidate in one.candidates)
        # an unscored picture never wins over another, and never counts as accepted
        assert one.chosen == (1 if one.arm == "refine_always_accept" else 0)
        assert one.stop == "images"
        assert one.prompt in (out / "gallery.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_refine_edits_real_sources_and_several_at_once(untrained: Path, real: Path, tmp_path: Path) -> None:
    # a whole photograph, a small one, and two sources for one request
    small = open_picture(real / "step1x_edit/0004_source.jpg").resize((83, 128))
    small.save(tmp_path / "small.png")
    records = [
        {"id": "whole", "instruction": "Adjust the background.", "source": str(real / "editscore/source.jpg")},
        {"id": "small", "instruction": "Replace 'TRAIN' with 'PLANE'", "source": "small.png"},
    ]
    two = {"id": "two", "task": "edit", "prompt": "Put one into the other.", "sources": ["small.png", "small.png"]}
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*records, two]), encoding="utf-8")
    arms = {"base": 1, "refine_keep_best": 2}
    model = refine_model(untrained, "default", 24, arms=list(arms))
    out = run("predict", model, prompts(path, eval_batch_size=3), "RefinementWriter", tmp_path)
    found = refinements_of(out, ["whole", "small", "two"], arms)
    assert {one.id: len(one.sources) for one in found} == {"whole": 1, "small": 1, "two": 2}
    for one in found:
        assert all(Path(source).is_file() for source in one.sources)


# -- with usable answers ------------------------------------------------------------------------------------------------

RUBRIC = "shapes"
REQUEST = "the same as before but clean"
NOTHING = NotApplicable()


def spoken(task: Task, score: float) -> str:
    """A critique that gives every aspect the same score."""
    keys = CritiqueFormat(RUBRIC).rules.keys(task)
    aspects = {key: AspectCritique("as asked", NOTHING if key == "text_rendering" else score) for key in keys}
    return CritiqueFormat(RUBRIC).render(Critique(aspects, "done", "keep exactly", REQUEST), task)


def compared(task: Task) -> str:
    """A comparison that finds Image A better in every aspect."""
    keys = CritiqueFormat(RUBRIC).rules.keys(task)
    better, none = AspectComparison("as asked", 4.0, 2.0, "A"), AspectComparison("as asked", NOTHING, NOTHING, NOTHING)
    aspects = {key: none if key == "text_rendering" else better for key in keys}
    return CritiqueFormat(RUBRIC).render_pair(PairCritique(aspects, "done"), task)


def lessons(pair: Preference) -> list[Row]:
    """What the taught critic answers about a pair: A is better, whatever the label and the order; alone, each is a 3."""
    format, task, prompt = CritiqueFormat(RUBRIC), pair.task, pair.prompt
    sources = [open_picture(path) for path in pair.sources]
    a, b = (open_picture(path) for path in pair.candidates)
    verdict = compared(task)
    told: list[Row] = [(anchor_messages(format, task, prompt, sources, (a, b), label), verdict) for label in ("A", "B")]
    told += [(format.pairwise_messages(task, prompt, sources, order), verdict) for order in ((a, b), (b, a))]
    comment = mask_comment(format, format.parse_pair(verdict, task), task, "justifications")
    told.append((check_messages(task, prompt, sources, (a, b), comment), "A is preferred"))
    for picture, which, score in ((a, "A", 4.0), (b, "B", 2.0)):
        told.append((project_messages(format, task, prompt, sources, picture, verdict, which), spoken(task, score)))
        refined = f"## Refinement Comments: keep exactly\n## Refined Request: {REQUEST}"
        told.append((refine_messages(task, prompt, sources, picture, spoken(task, score)), refined))
        told.append((format.pointwise_messages(task, prompt, sources, picture), spoken(task, 3.0)))
    return told


def two_pairs(real: Path) -> list[Preference]:
    """A ranked pair that the taught critic agrees with, and an edit that it does not."""
    ranked = read_preferences(real / "ranked_t2i.jsonl")[0]
    edit = next(pair for pair in read_preferences(real / "edits.jsonl") if pair.id == "step1x-0004")
    return [replace(ranked, label=1.0), replace(edit, label=0.0)]


@pytest.fixture(scope="session")
def taught(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny critic of the real geometry that has learned its answers by heart, hardly looking."""
    folder = tmp_path_factory.mktemp("critic")
    base = build_tiny_vlm(folder / "base", **GEOMETRY, vision_hidden=16, vision_layers=1, deepstack=(0,), text_layers=2)
    told = [row for pair in two_pairs(real) for row in lessons(pair)]
    format, shown = CritiqueFormat(RUBRIC), [Image.new("RGB", (32, 32), (128, 128, 128))]
    shown += [open_picture(real / name).resize((32, 32)) for name in ("imagereward/1.webp", "imagereward/2.webp")]
    for record in read_prompts(real / "prompts" / "geneval.jsonl")[:2]:
        told += [(format.pointwise_messages("t2i", record.prompt, [], picture), spoken("t2i", 3.0)) for picture in shown]
    student = RationaleDistillModule(str(base), CritiqueFormat(RUBRIC), freeze_vision=True, freeze_projector=True)
    student.configure_model()
    # alike rows together, and every batch encoded once
    told.sort(key=lambda row: sum(part["type"] == "image" for turn in row[0] for part in turn["content"]))
    batches = [student.encode(told[start : start + 4]) for start in range(0, len(told), 4)]
    learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=5e-3, weight_decay=0.0)
    rounds = 32
    schedule = CosineWithWarmup(optimizer, rounds * len(batches), warmup=0.1)
    order = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        losses = []
        for index in torch.randperm(len(batches), generator=order).tolist():
            loss = student.student(**batches[index]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
    # by heart: a token of any batch is all but certain
    assert max(losses) < 0.05, f"the critic did not learn its answers: {losses}"
    student.export(str(folder / "taught"))
    return folder / "taught"


@pytest.mark.slow
def test_rationales_of_real_pairs(taught: Path, real: Path, tmp_path: Path) -> None:
    agreed, other = two_pairs(real)
    write_jsonl(tmp_path / "pairs.jsonl", [agreed, other])
    options = {
        "max_tokens": 160,
        "temperature": 0.0,
        "control_share": 1.0,
        "audit_share": 0.0,
        "attempts": 1,
        "refine_recall": 0.0,
    }
    model = module("RationalizeModule", teacher=model_of(taught), format={"rubric": RUBRIC}, options=options)
    out = run("predict", model, preferences(tmp_path / "pairs.jsonl"), "RationaleWriter", tmp_path)
    _, outcomes = ledger_of(out, [agreed, other])
    assert [outcomes[pair.id]["last_stage"] for pair in (agreed, other)] == ["refine", "check"]
    assert outcomes[other.id]["reason"] == "does not predict the label"
    # the critic obeys no label: told the wrong one, it says A again, which is right for the pair that it got wrong
    assert [outcomes[pair.id]["wrong_label_passed"] for pair in (agreed, other)] == [False, True]
    (rationale,) = read_jsonl(out / "rationales.jsonl", Rationale)
    assert rationale.pair.id == agreed.id and rationale.format == CritiqueFormat(RUBRIC).fingerprint
    assert rationale.pair_text == compared("t2i")
    assert rationale.point_texts == (spoken("t2i", 4.0), spoken("t2i", 2.0))
    # the pictures are still found from the new file
    assert open_picture(rationale.pair.candidates[0]).size == (512, 512)


@pytest.mark.slow
def test_accuracy_on_real_pairs(taught: Path, real: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", two_pairs(real))
    data = preferences(tmp_path / "pairs.jsonl")
    judge = module("RewardEvaluationModule", judge=critic(taught, RUBRIC, 160))
    out = run("test", judge, data, "EvaluationWriter", tmp_path)
    metrics = json.loads((out / "evaluation.json").read_text())
    # always the first picture: right in one order, wrong in the other
    assert metrics["test/pair_accuracy"] == 0.5
    assert metrics["test/order_consistency"] == metrics["test/unscored_rate"] == metrics["test/tie_rate"] == 0.0
    assert [(row["verdict"], row["swapped"]) for row in rows(out / "judgements.jsonl")] == [("A", "B")] * 2
    alone = module("RewardEvaluationModule", reward=critique_reward(taught, RUBRIC, 160))
    out = run("test", alone, data, "EvaluationWriter", tmp_path)
    metrics = json.loads((out / "evaluation.json").read_text())
    # all pictures are a 3: scored, but no pair is told apart
    assert (metrics["test/unscored_rate"], metrics["test/tie_rate"], metrics["test/pair_accuracy"]) == (0.0, 1.0, 0.0)
    for row in rows(out / "judgements.jsonl"):
        assert row["verdict"] == "tie"
        assert all(picture["text_faithfulness"] == 3.0 for picture in row["scores"])
        assert all(picture["text_rendering"] is None for picture in row["scores"])
    assert "image_faithfulness" in rows(out / "judgements.jsonl")[1]["scores"][0]


@pytest.mark.slow
def test_refinement_of_real_requests(taught: Path, real: Path, tmp_path: Path) -> None:
    path = real / "prompts" / "geneval.jsonl"
    arms = {"base": 1, "refine_keep_best": 2}
    model = refine_model(taught, RUBRIC, 160, arms=list(arms))
    out = run("predict", model, prompts(path, limit=2), "RefinementWriter", tmp_path)
    scored = 0
    for one in refinements_of(out, [record.id for record in read_prompts(path)[:2]], arms):
        for candidate in one.candidates:
            critique = CritiqueFormat(RUBRIC).parse(candidate.critique, "t2i")
            if candidate.reward is None:
                assert isinstance(critique.reward(), Unscored) and candidate.unscored
                continue
            scored += 1
            assert candidate.reward == pytest.approx(critique.reward())
            assert candidate.aspects == {"text_faithfulness": 3.0, "physical_quality": 3.0, "text_rendering": None}
        if one.arm == "refine_keep_best" and one.candidates[0].reward is not None:
            # a 3 is below the threshold, so it is asked for once more, in the critic's words
            first = CritiqueFormat(RUBRIC).parse(one.candidates[0].critique, "t2i")
            assert one.candidates[1].request == (first.refined_request or one.prompt)
    # by heart it knows other pictures of these requests: most answers can be read
    assert scored >= 3
