"""RationalRewards-SFTData: from its files, from a folder and from a hub at a commit; and a student that learns from it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from hub import COMMIT, environment, of_folder, serving
from jsonargparse import ArgumentParser
from PIL import Image
from rationalrewards.components.conversations import Conversation
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.pictures import open_picture
from rationalrewards.datamodules import RationaleDataModule
from rationalrewards.datamodules.readers import ConversationSet, PreferenceSet, PromptSet
from support import run_python

ID = "TIGER-Lab/RationalRewards-SFTData"

# the six files of RationalRewards-SFTData, by their names on the hub: kind, task, pictures
SFT_FILES: dict[str, tuple[str, str, int]] = {
    "editreward_pairwisev4_42k_updated.jsonl": ("pair", "edit", 3),
    "editpica_pairwisev4_33k_updated.jsonl": ("pair", "edit", 3),
    "editreward_pointwise_filtered_updated.jsonl": ("point", "edit", 2),
    "pica_pointwise_filtered_updated.jsonl": ("point", "edit", 2),
    "t2i_pairwisev4all_85k_updated.jsonl": ("pair", "t2i", 2),
    "t2i_pointwise_updated.jsonl": ("point", "t2i", 1),
}
ASPECTS = {
    "t2i": ("Text Faithfulness", "Physical and Visual Quality", "Text Rendering"),
    "edit": ("Text Faithfulness", "Image Faithfulness", "Physical and Visual Quality", "Text Rendering"),
}


def answer(kind: str, task: str, style: int) -> str:
    """An answer in one of the forms that theirs come in: scores before or after, bold, out of four, N/A, and a request refined."""
    lines = ["# User Request Analysis:", "It asks for a cat.", "# Detailed Judgement:"]
    for number, title in enumerate(ASPECTS[task], start=1):
        text = "N/A" if title == "Text Rendering" and style % 2 else ("3.5", "**3.5**", "3.5/4", "3")[style % 4]
        scores = [f"## Score: {text}"] if kind == "point" else [f"## Score A: {text}", f"## Score B: {text.replace('3', '2', 1)}"]
        judged = [f"## Justification: the {title.lower()} of it,\nseen twice"]
        lines += [f"{number}. {title}:", *(scores + judged if style % 3 == 0 else judged + scores)]
        lines += ["## Winner: Image A"] if kind == "pair" else []
    lines += ["# Summary: good"]
    lines += (
        ["# User Request Refinement:", "## Refinement Comments: none", "## Refined Request: a cat\non a mat"]
        if kind == "point"
        else []
    )
    return ("<think>\n\n</think>\n\n" if style % 2 else "") + "\n".join(lines)


def write_published(folder: Path, rows: int = 8) -> list[Path]:
    """The six files in their schema, drawn: lines in some and a list in others, with and without a system turn."""
    for number in range(30):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number * 8,) * 3).save(folder / "images" / f"{number}.jpg")
    paths = []
    for order, (name, (kind, task, count)) in enumerate(SFT_FILES.items()):
        written = []
        for number in range(rows):
            labels = ["Source Image: <image>"] if task == "edit" else []
            labels += [f"Image {which}: <image>" for which in "AB"] if kind == "pair" else ["Edited Image: <image>"]
            text = "Judge what was made.\nInstruction: a cat\n" + "\n".join(labels) + "\nAnswer in the form you know."
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer(kind, task, number)}]
            messages[:0] = [{"role": "system", "content": "You are an expert."}] if kind == "point" else []
            images = [f"images/{(number * count + k) % 30}.jpg" for k in range(count)]
            written.append({"messages": messages, "images": images})
        paths.append(folder / name)
        paths[-1].write_text(json.dumps(written, indent=2) if order % 2 else "".join(json.dumps(row) + "\n" for row in written))
    return paths


def their_words(path: Path) -> CritiqueFormat:
    """Their words as a template: what their critic is to be asked in."""
    opening = "Judge what was made.\nInstruction: {request}\n"
    closing = "\nAnswer in the form you know."

    def turns(*labels: str, system: bool) -> list[dict[str, str]]:
        said = [{"role": "user", "text": opening + "\n".join(labels) + closing}]
        return [{"role": "system", "text": "You are an expert."}, *said] if system else said

    both = ("Image A: {image_a}", "Image B: {image_b}")
    wording = {
        "source_label": "Source Image: ",
        "pointwise": {
            "t2i": turns("Edited Image: {image}", system=True),
            "edit": turns("{sources}", "Edited Image: {image}", system=True),
        },
        "pairwise": {"t2i": turns(*both, system=False), "edit": turns("{sources}", *both, system=False)},
    }
    path.write_text(yaml.safe_dump(wording))
    return CritiqueFormat(template=str(path))


def test_the_six_files_of_the_published_set_are_read(tmp_path: Path) -> None:
    paths = list(map(str, write_published(tmp_path)))
    format = their_words(tmp_path / "theirs.yaml")
    data = RationaleDataModule(paths, format, batch_size=5, val=paths[:1], limit_val=3)
    data.setup("fit")  # their words are the template's, so there is nothing to warn of
    found = Counter((row.kind, row.task, len(row.images)) for row in data.rows)  # type: ignore[union-attr]
    expected: Counter[Any] = Counter()
    for told in SFT_FILES.values():
        expected[told] += 8
    assert found == expected and len(data.val_rows) == 3
    for row in data.rows:
        messages, answer = row.load(format)
        assert isinstance(row, Conversation) and answer.startswith("# User Request Analysis:")
        reward = format.parse(answer, row.task).failure if row.kind == "point" else format.parse_pair(answer, row.task).verdict()  # type: ignore[arg-type]
        assert reward == ("" if row.kind == "point" else "A")
        parts = messages[-1]["content"]
        # each picture follows its own label
        shown = {parts[i - 1]["text"].splitlines()[-1]: part["image"] for i, part in enumerate(parts) if part["type"] == "image"}
        labels = ["Source Image: "] * (row.task == "edit") + (
            ["Image A: ", "Image B: "] if row.kind == "pair" else ["Edited Image: "]
        )
        assert list(shown) == labels
        levels = [image.getpixel((0, 0))[0] / 8 for image in shown.values()]
        assert levels == pytest.approx(
            [int(Path(name).stem) for name in row.images], abs=0.3
        )  # JPEG; two pictures are 8 levels apart
    batches = list(data.train_dataloader())
    assert sum(map(len, batches)) == 48 and max(map(len, batches)) == 5


def test_the_published_set_in_other_words_is_warned_of(tmp_path: Path) -> None:
    paths = list(map(str, write_published(tmp_path)))
    with pytest.warns(UserWarning) as caught:
        RationaleDataModule(paths, CritiqueFormat()).setup("fit")
    assert len(caught) == 6
    for warning in caught:
        assert "8 of 8 conversations ask in other words than format 'default'" in str(warning.message)


def test_the_student_learns_from_the_published_set(tmp_path: Path) -> None:
    paths = list(map(str, write_published(tmp_path, rows=2)))
    format = their_words(tmp_path / "theirs.yaml")
    module = tiny.distill_module(format=format, max_length=2048)
    module.configure_model()
    data = RationaleDataModule(paths, format, batch_size=4)
    data.setup("fit")
    for batch in data.train_dataloader():
        loss, tokens = module._loss(batch)
        assert torch.isfinite(loss) and tokens > 100


# -- by its id -------------------------------------------------------------------------------------------------------------


def pack(folder: Path) -> None:
    """Put the loose pictures into an archive, as sets with many of them do."""
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for path in sorted((folder / "images").iterdir()):
            archive.write(path, f"images/{path.name}")
    shutil.rmtree(folder / "images")


def pixels(rows: list[Any]) -> list[list[bytes]]:
    return [[open_picture(name).tobytes() for name in row.images] for row in rows]


@pytest.mark.parametrize("packed", [False, True])
def test_the_set_by_its_id_is_what_its_files_hold(tmp_path: Path, packed: bool) -> None:
    paths = write_published(tmp_path / "set", rows=3)
    (tmp_path / "set" / "dataset_info.json").write_text("{}")  # of LLaMA-Factory, and no data
    format = their_words(tmp_path / "theirs.yaml")
    files = RationaleDataModule(sorted(map(str, paths)), format)
    files.setup("fit")
    expected = pixels(files.rows)
    if packed:
        pack(tmp_path / "set")
    data = RationaleDataModule(
        ConversationSet(ID, root=str(tmp_path / "set")), format, val=[ConversationSet(ID, str(tmp_path / "set"))]
    )
    data.limit_val = 4
    data.setup("fit")
    told = [[(row.turns, row.answer, row.kind, row.task) for row in one.rows] for one in (data, files)]  # type: ignore[union-attr]
    assert told[0] == told[1] and len(told[0]) == 18 and len(data.val_rows) == 4
    assert pixels(data.rows) == expected
    for subset, kind in {
        "t2i-pairwise": ("pair", "t2i"),
        "edit-pairwise": ("pair", "edit"),
        "edit-pointwise": ("point", "edit"),
    }.items():
        some = RationaleDataModule(ConversationSet(ID, root=str(tmp_path / "set"), subset=subset), format)
        some.setup("fit")
        assert {(row.kind, row.task) for row in some.rows} == {kind}  # type: ignore[union-attr]
        assert len(some.rows) == (3 if "t2i" in subset else 6)


@pytest.mark.slow
def test_the_set_on_the_hub_reads_like_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_published(folder, rows=2)
    pack(folder)
    their_words(tmp_path / "theirs.yaml")
    (tmp_path / "data.yaml").write_text(
        yaml.safe_dump(
            {
                "train": {"id": ID, "revision": COMMIT, "subset": "t2i-pointwise"},
                "val": [{"id": ID, "revision": COMMIT, "subset": "t2i-pairwise"}],
                "format": {"template": str(tmp_path / "theirs.yaml")},
            }
        )
    )
    program = f"""
import json, hashlib, yaml
from jsonargparse import ArgumentParser
from rationalrewards.datamodules import RationaleDataModule
parser = ArgumentParser()
parser.add_class_arguments(RationaleDataModule, "data")
with open({str(tmp_path / "data.yaml")!r}) as file:
    data = parser.instantiate_classes(parser.parse_object({{"data": yaml.safe_load(file)}})).data
data.setup("fit")
rows = [row.load(data.format) for row in data.rows + data.val_rows]
shown = [[part["image"].tobytes() for part in messages[-1]["content"] if part["type"] == "image"] for messages, _ in rows]
print(json.dumps([[answer for _, answer in rows], [[hashlib.sha256(image).hexdigest() for image in images] for images in shown]]))
"""
    with serving(of_folder(ID, folder)) as hub:
        done = run_python(["-c", program], timeout=240, env=environment(hub, tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    answers, shown = json.loads(done.stdout.splitlines()[-1])
    here = [
        row for kind in ("t2i-pointwise", "t2i-pairwise") for row in ConversationSet(ID, root=str(folder), subset=kind).read()
    ]
    assert answers == [row.answer for row in here] and [len(images) for images in shown] == [1, 1, 2, 2]
    assert shown == [[hashlib.sha256(image).hexdigest() for image in images] for images in pixels(here)]
    # what is needed for these two subsets, and no other file
    assert hub.downloaded() == {"t2i_pointwise_updated.jsonl", "t2i_pairwisev4all_85k_updated.jsonl", "images.zip"}


def test_rows_whose_pictures_are_gone_are_left_out_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_published(tmp_path, rows=3)
    (tmp_path / "images" / "1.jpg").write_bytes(b"")
    (tmp_path / "images" / "2.jpg").unlink()
    one = ConversationSet(ID, root=str(tmp_path), subset="t2i-pointwise")
    with caplog.at_level(logging.WARNING):
        assert len(list(one.read())) == len(list(one.read())) == 1
    assert caplog.messages == [f"{ID} t2i-pointwise/train: 1 records read, 2 left out: 2 a picture is missing or empty"]


def test_a_folder_without_conversations_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}: no file with conversations of all/train; found: nothing"):
        list(ConversationSet(ID, root=str(tmp_path)).read())
    write_published(tmp_path, rows=1)
    (tmp_path / "t2i_pairwisev4all_85k_updated.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no file with conversations of t2i-pairwise/train; found: editpica_pairwise"):
        list(ConversationSet(ID, root=str(tmp_path), subset="t2i-pairwise").read())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"id": "RationalRewards-SFTData"}, f"'RationalRewards-SFTData' is no full id; did you mean '{ID}'?"),
        ({"id": "rationalrewards-sftdata"}, f"did you mean '{ID}'"),
        ({"id": "GenAI-Bench"}, "'GenAI-Bench' may be TIGER-Lab/GenAI-Bench or BaiqiL/GenAI-Bench, which are different sets"),
        ({"id": "MizzenAI/HPDv3"}, "MizzenAI/HPDv3 holds pairs and no conversations: read it with PreferenceSet"),
        ({"id": "x/y"}, f"no reader for 'x/y'; known sets: {ID}$"),
        ({"id": ID, "revision": "main", "root": None}, "revision must be a commit, 40 hexadecimal digits, got 'main'"),
        ({"id": ID, "revision": COMMIT}, "give either root .* or revision .*, not both"),
        ({"id": ID, "subset": "videos"}, "no subset 'videos'; it has: all, edit-pairwise, "),
    ],
)
def test_what_is_no_set_of_conversations_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConversationSet(**{"root": "somewhere", **given})
    # and in a recipe
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RationaleDataModule, "data")
    with pytest.raises(ValueError, match=message.removesuffix("?").removesuffix("$")):
        parser.instantiate_classes(parser.parse_object({"data": {"train": {"root": "somewhere", **given}}}))


@pytest.mark.parametrize("name", [ID, "RationalRewards-SFTData"])
def test_a_set_in_the_place_of_a_path_is_told_how_it_is_given(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{name} is no file but a public set: give {{id: OWNER/NAME, revision: COMMIT}}.*: {ID}$"
    ):
        RationaleDataModule(name).setup("fit")


def test_conversations_are_no_pairs_and_no_requests() -> None:
    for other, holds in ((PreferenceSet, "pairs"), (PromptSet, "requests")):
        with pytest.raises(ValueError, match=f"{ID} holds conversations and no {holds}: read it with ConversationSet"):
            other(ID, root="somewhere")
