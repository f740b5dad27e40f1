"""Conversations with pictures: which picture a placeholder stands for, whatever the request says, and what can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rationalrewards.components import conversations
from rationalrewards.components.conversations import (
    Conversation,
    Wording,
    flatten,
    from_row,
    is_conversation,
    json_objects,
    plain,
    read_conversations,
    recognised,
    to_row,
    unflatten,
    without_empty_thought,
)
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.formats import image_part, text_part
from rationalrewards.components.records import Unscored
from support import OWN_WORDING

FORMAT = CritiqueFormat()
OWN = CritiqueFormat("default", OWN_WORDING)

# pieces of what acts, so that they are often put together wrongly
PIECES = [
    "<image>",
    "<IMAGE>",
    "<im",
    "age>",
    "<",
    ">",
    "<|im_end|>",
    "<|",
    "|>",
    "<video>",
    "<audio>",
    "</request>",
    " a ",
    "{image}",
    "ü",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


def _png(folder: Path, *names: str) -> None:
    """Pictures that can be told apart: each has the number of its name as its grey."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4), (int(Path(name).stem),) * 3).save(folder / name)


def _row(text: str, answer: str, *images: str, system: str = "") -> dict[str, Any]:
    said = [{"role": "system", "content": system}] if system else []
    said += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return {"messages": said, "images": list(images)}


# -- messages and turns --------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(TEXTS, st.integers(0, 9)), max_size=8))
def test_messages_come_back_from_turns(parts: list[str | int]) -> None:
    messages = [
        {"role": "system", "content": [text_part("judge <image>")]},
        {"role": "user", "content": [text_part(p) if isinstance(p, str) else image_part(p) for p in parts]},  # type: ignore[arg-type]
    ]
    turns, images = flatten(messages)
    assert images == [part for part in parts if isinstance(part, int)]
    assert sum(text.count("<image>") for _, text in turns) == len(images)
    back = unflatten(turns, images)
    # neighbouring texts are one, as a model is shown them
    expected: list[Any] = []
    for part in parts:
        if isinstance(part, str) and expected and expected[-1]["type"] == "text":
            expected[-1] = text_part(expected[-1]["text"] + part)
        elif part != "":
            expected.append(text_part(part) if isinstance(part, str) else image_part(part))  # type: ignore[arg-type]
    expected = [text_part(plain(part["text"])) if part["type"] == "text" else part for part in expected]
    assert back == [{"role": "system", "content": [text_part("judge < image>")]}, {"role": "user", "content": expected}]
    assert flatten(back) == (turns, images)


@given(TEXTS)
def test_plain_text_says_the_same_and_nothing_in_it_acts(text: str) -> None:
    made = plain(text)
    assert made.replace(" ", "") == text.replace(" ", "") and plain(made) == made
    assert not any(word in made.lower() for word in ("<image>", "<video>", "<audio>", "<|im_end|>"))
    if not any(word in text.lower() for word in ("<image>", "<video>", "<audio>", "<|")):
        assert made == text


@given(
    TEXTS.filter(lambda text: bool(text.strip())),
    st.sampled_from([FORMAT, OWN]),
    st.sampled_from([("point", "t2i", 1), ("point", "edit", 2), ("point", "edit", 3), ("pair", "t2i", 2), ("pair", "edit", 3)]),
)
def test_no_request_changes_which_picture_a_place_stands_for(
    prompt: str, format: CritiqueFormat, asked: tuple[str, Any, int]
) -> None:
    kind, task, count = asked
    pictures: list[Any] = [f"picture {number}" for number in range(count)]
    if kind == "point":
        messages = format.pointwise_messages(task, prompt, pictures[:-1], pictures[-1])
    else:
        messages = format.pairwise_messages(task, prompt, pictures[:-2], (pictures[-2], pictures[-1]))
    turns, images = flatten(messages)
    assert images == pictures
    # what stands before each picture is what stands there for a harmless request
    harmless = flatten(
        format.pointwise_messages(task, "cat", pictures[:-1], pictures[-1])
        if kind == "point"
        else format.pairwise_messages(task, "cat", pictures[:-2], (pictures[-2], pictures[-1]))
    )[0]
    assert [text.count("<image>") for _, text in turns] == [text.count("<image>") for _, text in harmless]
    assert unflatten(turns, images) == messages
    row = from_row(json.loads(json.dumps(to_row(turns, f"as asked: {prompt}", images))), "here", Path("/r"))
    assert row.images == tuple(f"/r/{name}" for name in pictures) and row.turns == turns
    assert "<image>" not in row.answer.lower()


def test_control_tokens_of_a_file_do_not_act(tmp_path: Path) -> None:
    _png(tmp_path, "1.png")
    text = "<|im_end|><|image_pad|> <image><VIDEO>"
    (tmp_path / "rows.json").write_text(json.dumps([_row(text, "so <|im_end|>", "1.png", system="<|im_start|><image>")]))
    (row,) = read_conversations(tmp_path / "rows.json")
    ((system, user), answer) = row.load(FORMAT)
    assert system["content"] == [text_part("< |im_start|>< image>")] and answer == "so < |im_end|>"
    assert [part.get("text") for part in user["content"]] == ["< |im_end|>< |image_pad|> ", None, "< VIDEO>"]
    assert unflatten((("system", "<image>"), ("user", "x")), [])[0]["content"] == [text_part("< image>")]


def test_pictures_belong_in_turns_that_trainers_look_at() -> None:
    with pytest.raises(ValueError, match="a system turn has a part of type 'image'; it may hold text"):
        flatten([{"role": "system", "content": [image_part(Image.new("RGB", (1, 1)))]}])
    with pytest.raises(ValueError, match="part of type 'video'; it may hold text and images"):
        flatten([{"role": "user", "content": [{"type": "video"}]}])
    with pytest.raises(ValueError, match="1 <image> in the messages, but 2 images"):
        unflatten((("user", "<image>"),), [1, 2])


@pytest.mark.parametrize("roles", ["system", "user user", "user assistant", "user system user", "assistant user"])
def test_turns_that_do_not_alternate_are_refused(roles: str) -> None:
    with pytest.raises(ValueError, match="must alternate"):
        to_row(tuple((role, "x") for role in roles.split()), "y", [])
    assert to_row((("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")), "y", [])["messages"][-1]["content"] == "y"


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("<think>\n\n</think>\n\n# Summary: x", "# Summary: x"),
        (" <think></think># Summary: x", "# Summary: x"),
        ("<think>hm</think># Summary: x", "<think>hm</think># Summary: x"),
        ("# Summary: <think></think> x", "# Summary: <think></think> x"),
    ],
)
def test_an_empty_thought_before_the_answer_is_no_part_of_it(answer: str, left: str) -> None:
    assert without_empty_thought(answer) == left
    assert from_row(_row("<image>", answer, "1.png"), "here", Path()).answer == left


# -- rows ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (_row("<image><image>", "x", "1.png"), "2 <image> in the messages, but 1 images"),
        (_row("<image>", "x", "1.png", "2.png"), "1 <image> in the messages, but 2 images"),
        (_row("draw the word <image>: <image>", "x", "1.png"), "2 <image> in the messages, but 1 images"),
        ({"conversations": [], "images": []}, "the row has conversations, images; a conversation has messages and images"),
        ([1], "the row is no JSON object"),
        ({"messages": []}, "messages must be a list of turns"),
        ({"messages": [{"from": "human", "value": "x"}]}, "turn 1 must have role and content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 1 is of role 'tool'"),
        ({"messages": [{"role": "user", "content": 3}]}, "the content of turn 1 is no text: 3"),
        ({"messages": _row("x", "y")["messages"][:1]}, "the turns are of user; the last two must be of user and assistant"),
        ({**_row("<image>", "x"), "images": [{"bytes": None}]}, "images must be a list of paths"),
    ],
)
@pytest.mark.parametrize("lines", [True, False])
def test_a_bad_row_is_named_by_file_and_number(row: Any, says: str, lines: bool, tmp_path: Path) -> None:
    good = _row("<image>", "x", "1.png")
    path = tmp_path / "rows.json"
    path.write_text("\n".join(map(json.dumps, [good, row])) if lines else json.dumps([good, row], indent=1))
    rows = read_conversations(path)
    assert next(rows).images == (str(tmp_path / "1.png"),)
    with pytest.raises(ValueError) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{path}, row 2: ") and says in str(caught.value)


def test_the_word_for_a_picture_is_a_word_where_no_picture_can_be() -> None:
    row = from_row(
        _row("<image>", "the sign says <image>", "1.png", system="<image> stands for a picture <|im_end|>"), "here", Path()
    )
    assert row.turns == (("system", "< image> stands for a picture < |im_end|>"), ("user", "<image>"))
    assert row.answer == "the sign says < image>"


def test_a_row_binds_its_pictures_in_order_and_names_what_is_missing(tmp_path: Path) -> None:
    _png(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "rows.json").write_text(
        json.dumps(
            [_row("source:<image>first <image>, second <image>?", "x", "3.png", "1.png", "2.png"), _row("<image>", "y", "no.png")]
        )
    )
    row, lost = read_conversations(tmp_path / "rows.json")
    ((turn,), answer) = row.load(FORMAT)
    assert [part.get("text") or part["image"].getpixel((0, 0))[0] for part in turn["content"]] == [
        *("source:", 3, "first ", 1, ", second ", 2, "?")
    ]
    assert answer == "x" and row.length == 301
    with pytest.raises(ValueError, match=r"rows\.json, row 2: picture .*no\.png does not exist"):
        lost.load(FORMAT)


def test_pictures_start_from_the_file_or_from_the_folder_that_is_given(tmp_path: Path) -> None:
    _png(tmp_path / "elsewhere", "5.png")
    (tmp_path / "rows.jsonl").write_text(
        json.dumps(_row("<image>", "x", "5.png")) + "\n" + json.dumps(_row("<image>", "x", str(tmp_path / "elsewhere" / "5.png")))
    )
    beside, absolute = read_conversations(tmp_path / "rows.jsonl")
    assert beside.images == (str(tmp_path / "5.png"),)
    moved, same = read_conversations(tmp_path / "rows.jsonl", tmp_path / "elsewhere")
    assert moved.load(FORMAT) == same.load(FORMAT) and same.images == absolute.images


# -- whose answer, and whose words -------------------------------------------------------------------------------------------


def _answer(task: Any, pair: bool) -> str:
    heads = "## Score A: 3.5/4\n## Score B: 2\n## Winner: Image A" if pair else "## Score: 3.5"
    aspects = [
        f"{n}. {aspect.title}:\n## Justification: so\n{'## Score: N/A' if aspect.optional and not pair else heads}"
        for n, aspect in enumerate(FORMAT.rules.for_task(task), start=1)
    ]
    return "# Detailed Judgement:\n" + "\n".join(aspects) + "\n# Summary: done"


@pytest.mark.parametrize(
    ("kind", "task", "pictures"),
    [
        ("point", "t2i", 1),
        ("point", "edit", 2),
        ("pair", "t2i", 2),
        ("pair", "edit", 3),
        ("point", "edit", 4),
        ("pair", "edit", 4),
    ],
)
def test_answer_and_number_of_pictures_tell_kind_and_task(kind: Any, task: Any, pictures: int) -> None:
    row = from_row(_row("<image>" * pictures, _answer(task, kind == "pair"), *["1.png"] * pictures), "here", Path())
    assert row.kind is None and row.pair == "here"
    found = recognised(row, FORMAT)
    assert isinstance(found, Conversation) and (found.kind, found.task) == (kind, task)
    assert recognised(found, FORMAT) == found


@pytest.mark.parametrize(
    ("answer", "pictures", "says"),
    [
        ("a fine picture", 1, "as a point: Text Faithfulness is missing"),
        ("a fine picture", 2, "as a point: Text Faithfulness is missing; as a pair: Text Faithfulness is missing"),
        (_answer("t2i", True), 3, "as a pair: Image Faithfulness is missing"),
        (_answer("edit", True).replace("3.5/4", "7", 1), 3, "as a pair: Text Faithfulness: 7 is outside 1 to 4"),
        (_answer("t2i", False), 0, "0 images"),
    ],
)
def test_an_answer_that_cannot_be_read_says_why(answer: str, pictures: int, says: str) -> None:
    found = recognised(from_row(_row("<image>" * pictures, answer, *["1.png"] * pictures), "here", Path()), FORMAT)
    assert isinstance(found, Unscored) and says in found.reason


@pytest.mark.parametrize("format", [FORMAT, OWN], ids=["rubric", "template"])
@pytest.mark.parametrize("prompt", ["a cat", "<image>", "two\nlines, ü"])
def test_a_formats_own_words_are_known_whatever_the_request(format: CritiqueFormat, prompt: str) -> None:
    other = OWN if format == FORMAT else FORMAT
    none: Any = None
    for kind, task, sources in (("point", "t2i", 0), ("point", "edit", 2), ("pair", "t2i", 0), ("pair", "edit", 1)):
        messages = (
            format.pointwise_messages(task, prompt, [none] * sources, none)  # type: ignore[arg-type]
            if kind == "point"
            else format.pairwise_messages(task, prompt, [none] * sources, (none, none))  # type: ignore[arg-type]
        )
        turns, images = flatten(messages)
        row = Conversation(turns, "x", ("1.png",) * len(images), "here", kind, task)  # type: ignore[arg-type]
        assert Wording(format).asks(row) and not Wording(other).asks(row)
        role, text = turns[-1]
        assert not Wording(format).asks(replace(row, turns=(*turns[:-1], (role, "Please: " + text))))
        assert not Wording(format).asks(replace(row, turns=(*turns[:-1], (role, text + "!"))))
        assert not Wording(format).asks(replace(row, turns=(("system", "x"), ("user", "y"), *turns)))


def test_a_template_without_the_section_does_not_ask_so(tmp_path: Path) -> None:
    path = tmp_path / "half.yaml"
    path.write_text('pointwise: [{role: user, text: "{sources}{image}{request}"}]')
    half = CritiqueFormat(template=str(path))
    row = Conversation((("user", "<image><image>x"),), "x", ("1.png", "2.png"), "here", "pair", "t2i")
    assert not Wording(half).asks(row) and Wording(half).asks(replace(row, kind="point", task="edit"))


# -- files -------------------------------------------------------------------------------------------------------------------

ROWS = [_row(f"<image>line\u2028{number}, '\"[{{]}}'", "x" * 5 * number, f"{number}.png") for number in range(30)]


@pytest.mark.parametrize(
    "write",
    [
        lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
        lambda rows: "\n\n  \n" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        lambda rows: json.dumps(rows),
        lambda rows: "\n " + json.dumps(rows, indent=3, ensure_ascii=False) + "\n",
        lambda rows: "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n",
    ],
    ids=["lines", "gaps", "list", "indented", "list of lines"],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_lists_and_lines_are_read_alike_whatever_the_file_is_called(
    write: Callable[[list[Any]], str], name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "CHUNK", chunk)
    (tmp_path / name).write_bytes(write(ROWS).encode())
    assert [row for _, row in json_objects(tmp_path / name)] == ROWS
    assert is_conversation(tmp_path / name)
    read = list(read_conversations(tmp_path / name))
    assert [row.images for row in read] == [(str(tmp_path / f"{number}.png"),) for number in range(30)]


def test_a_list_is_read_as_far_as_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS)[:-1])  # whole but for its end
    rows = json_objects(path)
    assert [next(rows) for _ in ROWS] == list(enumerate(ROWS, start=1))
    with pytest.raises(ValueError, match=r"rows\.json, row 31: the list does not end; the file is cut off"):
        next(rows)
    path.write_text(json.dumps(ROWS)[:-3])
    with pytest.raises(ValueError, match=r"rows\.json, row 30: no JSON"):
        list(json_objects(path))
    path.write_text('{"messages": []}\n{"messages"')
    with pytest.raises(ValueError, match=r"rows\.json, row 2: no JSON"):
        list(json_objects(path))
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"rows\.json is no text in UTF-8 \(.*; give a file of JSON"):
        is_conversation(path)
    with pytest.raises(ValueError, match=r"gone\.json does not exist; give the path"):
        list(read_conversations(tmp_path / "gone.json"))


def test_texts_that_rows_share_are_kept_once(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(_row("<image>ask", "x", "1.png", system="rules")) + "\n" for _ in range(3))
    )
    first, *rest = read_conversations(tmp_path / "rows.jsonl")
    assert rest and all(a is b for row in rest for (_, a), (_, b) in zip(first.turns, row.turns, strict=True))


def test_parquet_binds_pictures_inside_and_beside(tmp_path: Path) -> None:
    _png(tmp_path, "1.png", "2.png")
    stored = [{"bytes": (tmp_path / name).read_bytes(), "path": name} for name in ("1.png", "2.png")]
    text = "<image>and<image>"
    structured = [
        {
            "role": "user",
            "content": [{"type": kind, "text": said} for kind, said in (("image", None), ("text", "and"), ("image", None))],
        }
    ]
    ended = [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
    tables = {
        "inside": [{**_row(text, "x"), "images": stored}, {**_row(text, "x"), "images": stored[::-1]}],
        "beside": [_row(text, "x", "1.png", "2.png"), _row(text, "x", "2.png", "1.png")],
        "parts": [{"prompt": structured, "completion": ended, "images": images} for images in (stored, stored[::-1])],
        "unnamed": [
            {**_row(text, "x"), "images": [{"bytes": one["bytes"]} for one in images]} for images in (stored, stored[::-1])
        ],
        "bare": [{**_row(text, "x"), "images": [one["bytes"] for one in images]} for images in (stored, stored[::-1])],
    }
    for name, rows in tables.items():
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        for number, row in enumerate(read_conversations(path)):
            ((turn,), answer) = row.load(FORMAT)
            shown = [part.get("text") or part["image"].getpixel((0, 0))[0] for part in turn["content"]]
            assert shown == ([1, "and", 2] if number == 0 else [2, "and", 1]) and answer == "x"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**_row(text, "x"), "images": stored[:1]}]), tmp_path / "one.parquet")
    with pytest.raises(ValueError, match=r"one\.parquet, row 1: 2 <image> in the messages, but 1 images"):
        list(read_conversations(tmp_path / "one.parquet"))


@pytest.mark.parametrize(
    ("content", "is_one"), [("", False), ("[]", False), ('{"pair_text": 1}', False), ('[{"prompt": 1, "completion": 2}]', True)]
)
def test_what_is_no_conversation_is_told_by_its_first_row(content: str, is_one: bool, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(content)
    assert is_conversation(tmp_path / "rows.json") is is_one
