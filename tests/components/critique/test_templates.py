"""A user's own wording: every slot is filled once and in one pass, and no request acts as anything but text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rationalrewards.components.chat import ChatModel, ChatReply
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat, check_fingerprint, save_fingerprint
from rationalrewards.components.critique.teacher import HINT, anchor_messages, project_messages
from rationalrewards.components.records import TASKS, NotApplicable, Task
from rationalrewards.components.shapes.tiny_critic import CRITIC_FOLDER, SPECIAL_TOKENS, load_critic

OWN = str(Path(__file__).parent / "own_wording.yaml")
FORMAT = CritiqueFormat("shapes", OWN)
PICTURES = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 60, 120, 180)]

PIECES = [
    *("{image}", "{image_a}", "{request}", "{sources}", "{answer}", "{aspects}", "{{request}}", "{", "}", "{0}", "\\1", "%s"),
    *("<|im_end|>", "<|im_start|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|", "|>", "<", ">", "im_end", "|im_end|>"),
    *("<image>", "<IMAGE>", "<video>", "</request>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[", "]", "INST]", "[INS"),
    *("## Score: 4", "\n", "\n\n", " ", "assistant", "system\n", "a red cat", "\u00e9", "<\uff5cUser\uff5c>", "```", "N/A"),
]


def _requests(count: int) -> list[str]:
    rng = random.Random(0)
    drawn = ["".join(rng.choices(PIECES, k=rng.randint(1, 6))) for _ in range(count)]
    return [request for request in [*PIECES, *drawn] if request.strip()]


def _messages(format: CritiqueFormat, section: str, task: Task, prompt: str) -> list[dict[str, Any]]:
    sources = PICTURES[:2] if task == "edit" else []
    if section == "pointwise":
        return format.pointwise_messages(task, prompt, sources, PICTURES[2])
    return format.pairwise_messages(task, prompt, sources, (PICTURES[2], PICTURES[3]))


def _flat(messages: list[dict[str, Any]]) -> list[Any]:
    """Roles, texts and pictures in order."""
    return [[turn["role"], *(part.get("text", part.get("image")) for part in turn["content"])] for turn in messages]


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_the_wording_is_the_users_word_for_word() -> None:
    edit = _messages(FORMAT, "pointwise", "edit", "turn it blue")
    assert _flat(edit) == [
        ["system", "You grade edits of pictures."],
        [
            "user",
            *("Before the edit (1): ", PICTURES[0], "Before the edit (2): ", PICTURES[1]),
            *("After it: ", PICTURES[2], "\nOrder: turn it blue\n"),
        ],
    ]
    pair = _messages(FORMAT, "pairwise", "t2i", "a cat")
    assert [turn["role"] for turn in pair] == ["system", "user", "assistant", "user"]
    assert _flat(pair)[0][1].startswith("You compare two pictures. # Detailed Judgement:\n1. Text Faithfulness:\n")
    assert _flat(pair)[3] == ["user", "[ a cat] First: ", PICTURES[2], " Second: ", PICTURES[3], " Which one?"]


def test_aspects_and_answer_are_the_rubrics() -> None:
    plain, own = CritiqueFormat("default"), CritiqueFormat("default", OWN)
    ((_, before, picture, after),) = _flat(_messages(own, "pointwise", "t2i", "a cat"))
    rubric = _flat(_messages(plain, "pointwise", "t2i", "a cat"))[0][1]
    aspects, answer = before.split("first:\n")[1].split("\nThe order")[0], after.split("wanted:\n")[1].strip()
    assert aspects in rubric and aspects.startswith("1. Text Faithfulness\n   4: everything")
    assert answer in rubric and answer.startswith("# Detailed Judgement:") and answer.endswith("## Refined Request: ...")
    assert picture is PICTURES[2] and 'The order reads "a cat" and' in before
    assert 'as {reply} like this, JSON such as {"grade": 4} is' in after  # braces that are no slots are text


def test_a_template_leaves_the_answer_as_it_is() -> None:
    """Scores may come before their justification, as in the paper's appendix."""
    text = (
        "# Detailed Judgement:\n1. Text Faithfulness:\n## Score: 3.5/4\n## Justification: nearly\n2. Physical and Visual Quality:\n"
        "## Score: **2**\n## Justification: soft\n3. Text Rendering:\n## Score: n/a\n## Justification: none\n# Summary: so"
    )
    critique = FORMAT.parse(text, "t2i")
    assert [judged.score for judged in critique.aspects.values()] == [3.5, 2.0, NotApplicable()]
    assert critique.justification("physical_quality") == "soft"


@pytest.mark.parametrize("section", ["pointwise", "pairwise"])
def test_a_teacher_is_asked_in_the_users_wording_too(section: str) -> None:
    plain = _messages(FORMAT, section, "t2i", "a cat")
    if section == "pairwise":
        told, added = anchor_messages(FORMAT, "t2i", "a cat", [], (PICTURES[2], PICTURES[3]), "A"), HINT
    else:
        told, added = project_messages(FORMAT, "t2i", "a cat", [], PICTURES[2], "it is fine", "A"), "<comment>"
    assert told[:-1] == plain[:-1] and told[-1]["content"][:-1] == plain[-1]["content"]
    assert added in told[-1]["content"][-1]["text"]


# -- the request is data -----------------------------------------------------------------------------------------------


def _shape(messages: list[dict[str, Any]]) -> list[Any]:
    return [[turn["role"], *(part["type"] for part in turn["content"])] for turn in messages]


@pytest.mark.parametrize("section", ["pointwise", "pairwise"])
@pytest.mark.parametrize("task", TASKS)
def test_no_request_adds_a_turn_a_picture_or_a_token(section: str, task: Task) -> None:
    harmless = _messages(FORMAT, section, task, "a cat")
    for request in _requests(1500):
        found = _messages(FORMAT, section, task, request)
        assert _shape(found) == _shape(harmless)
        pictures = [part["image"] for turn in found for part in turn["content"] if part["type"] == "image"]
        assert pictures == [part["image"] for turn in harmless for part in turn["content"] if part["type"] == "image"]
        text = "\n".join(part["text"] for turn in found for part in turn["content"] if part["type"] == "text")
        for token in (r"<\|", r"</?[a-z]", "<\uff5c", r"\[/?[A-Z_]{3,}\]"):
            assert not re.search(token, text, re.IGNORECASE if token.startswith("<") else 0), (request, token)
        # as it was written, but for spaces that break tokens
        assert "".join(request.split()) in "".join(text.split())


def test_a_request_is_no_control_token_for_a_real_tokenizer() -> None:
    _, processor = load_critic(CRITIC_FOLDER)
    special = set(processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))

    def controls(prompt: str) -> list[int]:
        written = processor.apply_chat_template(_messages(FORMAT, "pointwise", "edit", prompt), tokenize=False)
        return [token for token in processor.tokenizer(written)["input_ids"] if token in special]

    expected = controls("a cat")
    assert len(expected) == 2 * 2 + 3 * 3  # two turns that open and close, three pictures of three tokens each
    for request in _requests(200):
        assert controls(request) == expected, request


@pytest.mark.parametrize(
    ("around", "request_text"),
    [
        ("<{request}>", "|im_end|"),
        ("<|{request}", "im_end|>"),
        ("{request}|im_end|>", "<"),
        ("[{request}]", "INST"),
        ("{request}]", "[IMG"),
    ],
)
def test_a_request_completes_no_token_of_its_surroundings(around: str, request_text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    turns = [{"role": "user", "text": f"{{image}} {around}"}]
    path.write_text(yaml.safe_dump({"pointwise": {"t2i": turns}}))
    text = CritiqueFormat("shapes", str(path)).pointwise_messages("t2i", request_text, [], PICTURES[0])[0]["content"][1]["text"]
    assert not re.search(r"<\|\w+\|>|\[[A-Z]+\]", text), text


# -- what is refused ---------------------------------------------------------------------------------------------------


def _point(text: str, role: str = "user") -> dict[str, Any]:
    return {"pointwise": {"t2i": [{"role": role, "text": text}]}}


WRONG: dict[str, tuple[Any, str]] = {
    "unknown slot": (_point("{image} {request} {prompt}"), r"pointwise, t2i, turn 1: slot \{prompt\} is unknown here; known: "),
    "other section": (_point("{image_a} {request}"), r"slot \{image_a\} is unknown here; known: \{request\}, \{image\}, "),
    "no request": (_point("{image}"), r"pointwise, t2i: slot \{request\} is missing"),
    "no picture": (_point("{request}"), r"pointwise, t2i: slot \{image\} is missing"),
    "twice": (_point("{image} {request} {request}"), r"pointwise, t2i, turn 1: slot \{request\} stands there twice"),
    "sources of none": (_point("{sources}{image} {request}"), r"slot \{sources\} is unknown here"),
    "no sources": (
        {"pairwise": [{"role": "user", "text": "{image_a} {image_b} {request}"}]},
        r"pairwise: slot \{sources\} is missing; a template without edits has its turns below `pairwise: t2i:`",
    ),
    "edit without sources": (
        {"pointwise": {"edit": [{"role": "user", "text": "{image} {request}"}]}},
        r"pointwise, edit: slot \{sources\} is missing$",
    ),
    "one of two pictures": (
        {"pairwise": {"t2i": [{"role": "user", "text": "{image_b} {request}"}]}},
        r"pairwise, t2i: slot \{image_a\} is missing",
    ),
    "picture of the system": (
        {"pointwise": {"t2i": [{"role": "system", "text": "{image}"}, {"role": "user", "text": "{request}"}]}},
        r"turn 1: slot \{image\} must stand in a turn of the user's, not the system's",
    ),
    "role": (_point("{image} {request}", "tool"), "turn 1: role must be user, assistant or, in turn 1, system; got 'tool'"),
    "last turn": (_point("{image} {request}", "assistant"), "the last turn must be the user's"),
    "late system": (
        {"pointwise": {"t2i": [{"role": "user", "text": "{image}{request}"}, {"role": "system", "text": "x"}]}},
        "turn 2: role must be",
    ),
    "control token": (
        _point("<|im_start|>{image} {request}"),
        r"turn 1: <\|im_start\|> is added by the model's own chat template",
    ),
    "image token": (_point("<image>{image} {request}"), "turn 1: <image> is added by"),
    "no turns": ({"pointwise": {"t2i": []}}, r"pointwise, t2i: a list of turns with role and text, got \[\]"),
    "no text": ({"pointwise": {"t2i": [{"role": "user"}]}}, "turn 1: a turn has role and text"),
    "task": ({"pointwise": {"video": []}}, "pointwise: a list of turns, or one for each of: t2i, edit; got .'video'."),
    "section": ({**_point("{image} {request}"), "listwise": []}, "unknown field 'listwise'; a template has: pointwise, pairwise"),
    "nothing": ({}, "a template is a mapping with pointwise, pairwise or both"),
    "a list": ([1], "a template is a mapping with"),
    "label": ({**_point("{image} {request}"), "source_label": "{count}:"}, "source_label is a text that may hold .number."),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_template_is_refused_when_the_format_is_built(name: str, tmp_path: Path) -> None:
    data, says = WRONG[name]
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=says) as caught:
        CritiqueFormat("shapes", str(path))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no template 'nowhere.yaml'; give the path of a YAML file"):
        CritiqueFormat("shapes", "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("pointwise: [")
    with pytest.raises(ValueError, match="broken.yaml: not YAML"):
        CritiqueFormat("shapes", str(tmp_path / "broken.yaml"))


def test_asking_for_what_a_template_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.yaml"
    path.write_text(yaml.safe_dump(_point("{image} {request}")))
    half = CritiqueFormat("shapes", str(path))
    assert _messages(half, "pointwise", "t2i", "a cat")
    for section, task in (("pointwise", "edit"), ("pairwise", "t2i")):
        with pytest.raises(ValueError, match=f"half.yaml has no {section} section for task {task}; add one"):
            _messages(half, section, task, "a cat")  # type: ignore[arg-type]
    assert len(half.fingerprint) == 12


# -- fingerprints ------------------------------------------------------------------------------------------------------


def test_every_change_of_wording_changes_the_fingerprint(tmp_path: Path) -> None:
    changes: dict[str, Callable[[str], str]] = {
        "word": lambda text: text.replace("After it", "Afterwards"),
        "label": lambda text: text.replace("({number})", "no. {number}"),
        "role": lambda text: text.replace("role: system", "role: user"),
        "order": lambda text: text.replace("First: {image_a} Second: {image_b}", "First: {image_b} Second: {image_a}"),
        "no pairs": lambda text: text.split("pairwise:")[0],
    }
    prints = {"own": FORMAT.fingerprint, "none": CritiqueFormat("shapes").fingerprint}
    prints["other rubric"] = CritiqueFormat("default", OWN).fingerprint
    for name, change in changes.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(change(Path(OWN).read_text()))
        prints[name] = CritiqueFormat("shapes", str(path)).fingerprint
    assert len(set(prints.values())) == len(prints)
    # of the content, not of the file's name or its comments
    (tmp_path / "copy.yaml").write_text("# a copy\n" + Path(OWN).read_text())
    assert CritiqueFormat("shapes", str(tmp_path / "copy.yaml")).fingerprint == prints["own"]


def test_a_critic_trained_in_other_words_is_refused_by_name(tmp_path: Path) -> None:
    save_fingerprint(tmp_path, FORMAT)
    check_fingerprint(tmp_path, FORMAT)
    plain = CritiqueFormat("shapes")
    with pytest.raises(
        ValueError, match=f"on format 'shapes' with template '{re.escape(OWN)}' .*in format 'shapes' .{plain.fingerprint}"
    ):
        check_fingerprint(tmp_path, plain)
    save_fingerprint(tmp_path, plain)
    with pytest.raises(
        ValueError, match=r"on format 'shapes' \(2b03c70deeb2\), but .* with template .*set `rubric` and `template`"
    ):
        check_fingerprint(tmp_path, FORMAT)


def test_a_critic_asks_in_the_users_wording() -> None:
    class Remembers(ChatModel):
        identity = "remembers"  # type: ignore[assignment]

        def complete(self, requests: Any) -> list[ChatReply]:
            self.seen = [request.text() for request in requests]
            return [ChatReply("", failure="none") for _ in requests]

    chat = Remembers()
    Critic(chat, FORMAT, reasks=0).critique([CritiqueRequest("t2i", "a cat", PICTURES[0])])
    assert chat.seen[0].startswith("You grade one picture.") and "<request>" not in chat.seen[0]
