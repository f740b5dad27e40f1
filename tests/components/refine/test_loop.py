"""``refine()``: the whole loop in one call."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from rationalrewards.components.critic import Critic
from rationalrewards.components.records import Unscored
from rationalrewards.components.refine import RefineOptions, refine
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import Scene, Shape
from rationalrewards.components.shapes.truth import ShapesTruth

PROMPTS = ["red circle top left, blue square top right", "green triangle bottom left", "yellow cross top right"]
SOURCE = Scene((Shape("red", "circle"), None, Shape("blue", "cross"), None))
EDIT = "turn the circle at the top left green"


def test_a_budget_is_spread_over_the_rounds(painter: Any, critic: Critic) -> None:
    work = painter(flaws=(2,))  # never accepted
    traces = refine(work, critic, PROMPTS)
    assert [trace.record.prompt for trace in traces] == PROMPTS
    for trace in traces:
        assert [made.round for made in trace.made] == [0, 1, 1, 2, 2, 3, 3]  # 8 pictures, 3 rounds
        assert trace.stop == "rounds"
        assert trace.best.reward == max(made.reward for made in trace.made if made.reward is not None)
        assert trace.image.size == (32, 32)
        assert trace.request == trace.best.request
        assert trace.gain is not None and trace.gain >= 0
    assert len(work.asked) == 21
    (one,) = refine(painter(flaws=(2,)), critic, PROMPTS[0], rounds=5, budget=4)
    assert [made.round for made in one.made] == [0, 1, 2, 3]


def test_pictures_do_not_depend_on_how_requests_are_batched(painter: Any, critic: Critic) -> None:
    def pictures(batch_size: int) -> list[bytes]:
        return [
            made.image.tobytes() for trace in refine(painter(), critic, PROMPTS, batch_size=batch_size) for made in trace.made
        ]

    assert pictures(1) == pictures(2) == pictures(16)


def test_edits_with_pictures_in_memory_and_on_disk(painter: Any, critic: Critic, tmp_path: Path) -> None:
    image = draw(SOURCE)
    image.save(tmp_path / "source.png")
    (memory,) = refine(painter(), critic, EDIT, image)
    (disk,) = refine(painter(), critic, EDIT, tmp_path / "source.png")
    (several,) = refine(painter(), critic, EDIT, [image])
    assert memory.record.task == "edit"
    assert [made.image.tobytes() for made in memory.made] == [made.image.tobytes() for made in disk.made]
    assert [made.image.tobytes() for made in memory.made] == [made.image.tobytes() for made in several.made]
    mixed = refine(painter(), critic, [EDIT, PROMPTS[0], EDIT], [image, None, [image]])
    assert [trace.record.task for trace in mixed] == ["edit", "t2i", "edit"]
    assert all(trace.best.reward is not None for trace in mixed)
    with pytest.raises(ValueError, match="3 requests but source pictures for 2; give one entry per request, None for none"):
        refine(painter(), critic, [EDIT] * 3, [image, image])


def test_any_function_and_a_judge_and_another_reward(critic: Critic) -> None:
    def paint(prompts: Any, sources: Any, seeds: Any) -> list[Image.Image]:
        return [draw(SOURCE) if random.Random(seed).random() < 0.5 else draw(Scene((None,) * 4)) for seed in seeds]

    (trace,) = refine(paint, critic, "red circle top left, blue cross bottom left", judge=ShapesTruth(), budget=6)
    assert trace.stop == "accepted"
    assert trace.image.tobytes() == draw(SOURCE).tobytes()
    assert [made.held_out for made in trace.made] == [
        pytest.approx(made.reward) for made in trace.made
    ]  # a critic that sees is the truth

    class Other(ShapesTruth):
        def score(self, requests: Any) -> Any:
            rewards = super().score(requests)
            rewards.total = -rewards.total
            return rewards

    options = RefineOptions(images_per_prompt=6, threshold=4.0, patience=6)
    (trace,) = refine(paint, critic, "red circle top left, blue square top right", options=options, reward=Other())
    assert trace.best.judged == max(made.judged for made in trace.made if isinstance(made.judged, float))


def test_a_folder_keeps_what_was_made(painter: Any, seeing: Any, tmp_path: Path) -> None:
    def run(work: Any, chat: Any, prompts: list[str]) -> list[list[bytes]]:
        traces = refine(work, Critic(chat, chat.format, reasks=0), prompts, folder=tmp_path)
        return [[made.image.tobytes() for made in trace.made] for trace in traces]

    first = run(work := painter(), chat := seeing(), PROMPTS[:2])
    assert 0 < len(work.asked) <= len(chat.prompts)  # rewrites are asked for, too
    again, more = painter(), seeing()
    assert run(again, more, PROMPTS[:2]) == first
    assert not again.asked and not more.prompts
    assert run(again, more, PROMPTS)[:2] == first
    assert {prompt for prompt in more.prompts} == {PROMPTS[2]}
    # of another generator nothing is taken
    other = painter(flaws=(1,))
    run(other, more, PROMPTS[:2])
    assert other.asked


def test_what_failed_is_tried_again_with_the_folder(painter: Any, seeing: Any, tmp_path: Path) -> None:
    options = RefineOptions(images_per_prompt=4, threshold=4.0, max_failures=9)
    chat = seeing()
    work = painter(flaws=(2,), fails=0.5)
    (trace,) = refine(work, Critic(chat, chat.format), PROMPTS[0], options=options, folder=tmp_path)
    failed = [made.copy for made in trace.made if isinstance(made.picture, Unscored)]
    assert 0 < len(failed) < 4
    better = painter(flaws=(2,))
    (trace,) = refine(better, Critic(chat, chat.format), PROMPTS[0], options=options, folder=tmp_path)
    assert not any(isinstance(made.picture, Unscored) for made in trace.made)
    assert len(better.asked) >= len(failed)


def test_with_a_real_pipeline(critic: Critic) -> None:
    """The embedded Flux.2 pipeline, handed over as diffusers loaded it."""
    generator = tiny.generator()
    generator.load()
    arguments = {"num_inference_steps": 2, **generator.pipeline_kwargs}
    options = RefineOptions(images_per_prompt=2, threshold=4.0)  # two steps leave a picture too rough for that
    traces = refine(generator.pipe, critic, PROMPTS[:2], options=options, **arguments)
    assert [len(trace.made) for trace in traces] == [2, 2]
    assert all(made.image.size == (32, 32) for trace in traces for made in trace.made)
    assert traces[0].made[0].image.tobytes() != traces[0].made[1].image.tobytes()
