"""Kept answers: equal to fresh ones, found by all that they depend on, and never a failure among them."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rationalrewards.components.chat import CachedChat, ChatModel, ChatReply, ChatRequest, OpenAIChat, Place, TransformersChat
from rationalrewards.components.checkpoints import resolve
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.formats import save_fingerprint
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene
from safetensors.torch import load_file, save_file

EMBEDDED = "embedded:shapes-critic"


class Counted(ChatModel):
    """Counts what it is asked; fails every request whose text says so."""

    def __init__(self, fingerprint: str = "counted") -> None:
        self.name = fingerprint
        self.asked: list[ChatRequest] = []

    @property
    def identity(self) -> str:
        return self.name

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        self.asked += requests
        return [
            ChatReply("", failure="no") if "fail" in r.text() else ChatReply(f"answer {len(self.asked)} to {r.text()}")
            for r in requests
        ]


def _ask(text: str, image: Image.Image | None = None) -> ChatRequest:
    pictures = [] if image is None else [{"type": "image", "image": image}]
    return ChatRequest([{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}], max_tokens=24)


def test_kept_answers_of_a_real_model_are_those_it_gives(tmp_path: Path) -> None:
    rng = random.Random(1)
    requests = [_ask("what is at the top left", draw(random_scene(rng))) for _ in range(3)]
    fresh = TransformersChat(EMBEDDED).complete(requests)
    first, second = CachedChat(TransformersChat(EMBEDDED), str(tmp_path)), CachedChat(TransformersChat(EMBEDDED), str(tmp_path))
    assert first.complete(requests[:2]) == fresh[:2] and (first.hits, first.misses) == (0, 2)
    assert second.complete(requests) == fresh and (second.hits, second.misses) == (2, 1)  # order kept between kept and fresh ones


def test_kept_weights_are_those_of_the_model(tmp_path: Path) -> None:
    request, answer = _ask("what is at the top left", draw(random_scene(random.Random(2)))), "red circle\n## Score: 3.5"
    place, other, inside = Place(21, ("3.5", "2.0")), Place(21, ("3.5", "1.0")), Place(5, ("x", "y"))
    fresh = TransformersChat(EMBEDDED).weigh([request] * 2, [answer] * 2, [[place], [inside]])
    assert not fresh[0][0].failure and fresh[1][0].failure
    chat = CachedChat(TransformersChat(EMBEDDED), str(tmp_path))
    for hits, misses in ((0, 2), (1, 3)):  # what cannot be weighed is asked again
        assert chat.weigh([request] * 2, [answer] * 2, [[place], [inside]]) == fresh and (chat.hits, chat.misses) == (
            hits,
            misses,
        )
    chat.weigh(
        [request, replace(request, seed=1), request],
        [answer, answer, "blue" + answer],
        [[other], [place], [Place(25, place.options)]],
    )
    assert (chat.hits, chat.misses) == (1, 6)  # options, request and answer are all part of the key


def test_a_failure_is_asked_again(tmp_path: Path) -> None:
    model = Counted()
    chat = CachedChat(model, str(tmp_path))
    for _ in range(2):
        replies = chat.complete([_ask("good"), _ask("fail")])
        assert [reply.failure for reply in replies] == ["", "no"]
    assert [request.text() for request in model.asked] == ["good", "fail", "fail"]


def test_whatever_an_answer_depends_on_is_part_of_its_key(tmp_path: Path) -> None:
    model = Counted()
    chat = CachedChat(model, str(tmp_path))
    red, also_red, other = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), (254, 0, 0))
    base = _ask("say", red)
    chat.complete([base])
    assert len(model.asked) == 1
    chat.complete([_ask("say", also_red)])
    assert len(model.asked) == 1  # the same pixels in another object
    system = {"role": "system", "content": [{"type": "text", "text": ""}]}
    changed = [
        _ask("say ", red),
        _ask("say", other),
        _ask("say", red.resize((4, 16))),
        _ask("say"),
        replace(base, seed=1),
        replace(base, temperature=0.5),
        replace(base, max_tokens=25),
        replace(base, stop=("#",)),
        replace(base, messages=[system, *base.messages]),
        replace(base, messages=[{**base.messages[0], "role": "assistant"}]),
        replace(base, messages=[{**base.messages[0], "content": base.messages[0]["content"][::-1]}]),
    ]
    chat.complete(changed)
    assert len(model.asked) == 1 + len(changed)
    CachedChat(Counted("another"), str(tmp_path)).complete([base])
    again = Counted()
    CachedChat(again, str(tmp_path)).complete([base, *changed])
    assert again.asked == []


def test_other_weights_or_settings_have_another_fingerprint(tmp_path: Path) -> None:
    copy = tmp_path / "critic"
    shutil.copytree(resolve(EMBEDDED), copy)
    before = TransformersChat(str(copy)).fingerprint
    assert TransformersChat(str(copy)).fingerprint == before
    assert (
        len(
            {
                before,
                TransformersChat(str(copy), max_pixels=64).fingerprint,
                TransformersChat(str(copy), dtype="bfloat16").fingerprint,
            }
        )
        == 3
    )
    weights = load_file(copy / "model.safetensors")
    save_file({name: tensor + 0.01 * torch.ones_like(tensor) for name, tensor in weights.items()}, copy / "model.safetensors")
    assert TransformersChat(str(copy)).fingerprint != before
    plain = OpenAIChat("m", "http://localhost:1/v1").fingerprint
    assert OpenAIChat("m", "http://localhost:1/v1", extra_body={"top_k": 1}).fingerprint != plain


@pytest.mark.parametrize(
    "damage", [lambda kept: kept[:20], lambda kept: b"\xff\xfe" + kept, lambda kept: b"[1, 2]", lambda kept: b""]
)
def test_a_damaged_file_is_no_answer(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    model = Counted()
    chat = CachedChat(model, str(tmp_path))
    good = chat.complete([_ask("good")])
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damage(file.read_bytes()))
    again = chat.complete([_ask("good")])
    assert len(model.asked) == 2 and again != good
    assert chat.complete([_ask("good")]) == again and len(model.asked) == 2


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cached_chat import CachedChat, Counted, _ask
chat = CachedChat(Counted(), sys.argv[1])
for round in range(20):
    replies = chat.complete([_ask(f"question {n}") for n in range(20)])
    assert all(r.text.endswith(f"to question {n}") for n, r in enumerate(replies)), replies
"""


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "kept"), str(Path(__file__).parent)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
    kept = list((tmp_path / "kept").rglob("*"))
    assert sum(file.suffix == ".json" for file in kept) == 20 and not any(file.suffix == ".tmp" for file in kept)


def test_a_critic_of_another_format_is_refused_through_the_cache(tmp_path: Path) -> None:
    copy = tmp_path / "critic"
    shutil.copytree(resolve(EMBEDDED), copy)
    save_fingerprint(copy, CritiqueFormat("default"))
    chat = CachedChat(TransformersChat(str(copy)), str(tmp_path / "kept"))
    with pytest.raises(ValueError, match="was trained on format 'default'"):
        Critic(chat, CritiqueFormat("shapes")).load()
