"""Public preference sets in miniature: files in the schema that each set has on the hub, written by the library that wrote those.

Nothing is committed but this script. Pictures of the first rows are the real ones, where they are there; all others are drawn. Every
picture has a known quality, and the better one of a pair is the one with more of it, so that what a reader says can be compared with
what is true.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import datasets
from PIL import Image
from rationalrewards.components.pictures import picture_bytes

datasets.disable_progress_bars()

Row = dict[str, Any]
Side = Literal["first", "second", "tie"]


@dataclass
class Gallery:
    """Pictures of known quality.

    Args:
        real: Folder of the real pictures, if it is there.
    """

    real: Path | None = None
    quality: dict[str, float] = field(default_factory=dict)
    drawn: int = 0

    def draw(self, quality: float) -> bytes:
        """A new small picture that looks like no other."""
        self.drawn += 1
        picture = Image.new("RGB", (8, 8), (self.drawn % 256, self.drawn // 256 % 256, self.drawn // 65536))
        stored = io.BytesIO()
        picture.save(stored, "PNG")
        return self.known(stored.getvalue(), quality)

    def known(self, stored: bytes, quality: float) -> bytes:
        """Remember the quality of a picture."""
        self.quality[hashlib.sha256(stored).hexdigest()] = quality
        return stored

    def of(self, name: str) -> float:
        """Quality of the picture that a record names."""
        return self.quality[hashlib.sha256(picture_bytes(name)).hexdigest()]

    def ranked(self) -> tuple[str, list[bytes]]:
        """A prompt and four pictures, best first: ImageReward's own ranking if the real ones are there."""
        if self.real is None:
            return "a painting of an ocean with clouds and birds", [self.draw(quality) for quality in (4, 3, 2, 1)]
        row = json.loads((self.real / "ranked_t2i.jsonl").read_text(encoding="utf-8").splitlines()[0])
        best_first = sorted(zip(row["ranking"], row["images"], strict=True))
        return row["prompt"], [self.known((self.real / name).read_bytes(), 5.0 - rank) for rank, name in best_first]

    def edit(self) -> tuple[str, bytes, bytes]:
        """An instruction, a source picture and its edit, which is better than the untouched source."""
        if self.real is None:
            return "add a hat", self.draw(0), self.draw(2)
        row = json.loads((self.real / "edits.jsonl").read_text(encoding="utf-8").splitlines()[0])
        source, edited = ((self.real / row[key]).read_bytes() for key in ("source", "edited"))
        return row["instruction"], self.known(source, 0), self.known(edited, 2)


@dataclass(frozen=True)
class Choice:
    """Two pictures of one request, as people saw them, and which was better."""

    prompt: str
    first: bytes
    second: bytes
    better: Side
    source: bytes | None = None

    @property
    def preferred_first(self) -> tuple[bytes, bytes]:
        """The pictures with the better one in front, as some sets store them."""
        return (self.second, self.first) if self.better == "second" else (self.first, self.second)


def choices(gallery: Gallery, count: int, edit: bool, ties: bool, seed: int = 0) -> list[Choice]:
    """Choices whose places say nothing of the outcome; the first is of real pictures, two share a prompt and source each."""
    rng = random.Random(seed)
    prompt, pictures = gallery.ranked()
    instruction, source, edited = gallery.edit()
    made = [Choice(instruction, edited, source, "first", source) if edit else Choice(prompt, pictures[1], pictures[0], "second")]
    shared: bytes | None = None
    while len(made) < count:
        sides: list[Side] = ["first", "second", "tie"] if ties else ["first", "second"]
        better = rng.choices(sides, [4, 4, 1][: len(sides)])[0]
        first, second = {"first": (2, 1), "second": (1, 2), "tie": (1, 1)}[better]
        if len(made) % 2:
            shared = gallery.draw(0) if edit else None
        prompt = f"request {(len(made) + 1) // 2}"
        made.append(Choice(prompt, gallery.draw(first), gallery.draw(second), better, shared))
    return made


def image(stored: bytes | None) -> Row | None:
    """A picture as ``datasets`` takes it."""
    return None if stored is None else {"bytes": stored, "path": None}


IMAGE, TEXT, WHOLE, REAL, YES = (
    datasets.Image(),
    datasets.Value("string"),
    datasets.Value("int64"),
    datasets.Value("float64"),
    datasets.Value("bool"),
)


def table(rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any]) -> datasets.Dataset:
    """Rows with the features of the hub's file; what a row does not say is null."""
    columns = {name: [row.get(name) for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def parquet(path: Path, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any], batch: int = 100) -> None:
    """Write a parquet file with row groups of ``batch`` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table(rows, features).to_parquet(path, batch_size=batch)


def dump(path: Path, rows: Any) -> None:
    """Write JSON, indented as such files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=4, ensure_ascii=False), encoding="utf-8")


def store(folder: Path, names: Mapping[str, bytes]) -> None:
    """Write pictures into a folder."""
    for name, stored in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(stored)


# -- sets of pairs ------------------------------------------------------------------------------------------------------

PICKAPIC = {
    "are_different": YES,
    "best_image_uid": TEXT,
    "caption": TEXT,
    "created_at": datasets.Value("timestamp[ns]"),
    "has_label": YES,
    "image_0_uid": TEXT,
    "image_0_url": TEXT,
    "image_1_uid": TEXT,
    "image_1_url": TEXT,
    "jpg_0": datasets.Value("binary"),
    "jpg_1": datasets.Value("binary"),
    "label_0": REAL,
    "label_1": REAL,
    "model_0": TEXT,
    "model_1": TEXT,
    "ranking_id": WHOLE,
    "user_id": WHOLE,
    "num_example_per_prompt": WHOLE,
    "__index_level_0__": WHOLE,
}


def pickapic(choice: Choice) -> Row:
    label = {"first": 1.0, "second": 0.0, "tie": 0.5}[choice.better]
    gone = "https://example.invalid/picture.png"
    seen = {"caption": choice.prompt, "has_label": True, "image_0_url": gone, "image_1_url": gone}
    return {**seen, "jpg_0": choice.first, "jpg_1": choice.second, "label_0": label, "label_1": 1.0 - label}


def write_pickapic(root: Path, made: Sequence[Choice]) -> None:
    rows = [pickapic(choice) for choice in made]
    half = len(rows) // 2
    for part, some in enumerate((rows[:half], rows[half:])):
        parquet(root / "data" / f"validation-{part:05}-of-00002-0a1b2c3d4e5f6071.parquet", some, PICKAPIC)
    parquet(root / "data" / "validation_unique-00000-of-00001-1a1b2c3d4e5f6071.parquet", rows[:3], PICKAPIC)


RAPIDATA = {
    **{"prompt": TEXT, "image1": IMAGE, "image2": IMAGE, "votes_image1": WHOLE, "votes_image2": WHOLE},
    **{"model1": TEXT, "model2": TEXT, "detailed_results": TEXT, "image1_path": TEXT, "image2_path": TEXT},
}
DIMENSIONS = ("preference", "coherence", "alignment")
RAPIDATA_WEIGHTED = {
    **{"prompt": TEXT, "image1": IMAGE, "image2": IMAGE, "model1": TEXT, "model2": TEXT},
    **{f"weighted_results_image{i}_{dimension}": REAL for dimension in DIMENSIONS for i in (1, 2)},
    **{f"detailed_results_{dimension}": TEXT for dimension in DIMENSIONS},
}


def rapidata(choice: Choice, votes: tuple[int, int]) -> Row:
    first, second = choice.preferred_first
    pictures = {"image1": image(first), "image2": image(second)}
    return {"prompt": choice.prompt, **pictures, "votes_image1": votes[0], "votes_image2": votes[1], "model1": "new"}


def write_rapidata(root: Path, made: Sequence[Choice]) -> None:
    rows = [rapidata(choice, (5, 5) if choice.better == "tie" else (19, 7)) for choice in made]
    half = len(rows) // 2
    parquet(root / "data" / "train_0001-00000-of-00001.parquet", rows[:half], RAPIDATA)
    parquet(root / "data" / "train_0002-00000-of-00001.parquet", rows[half:], RAPIDATA)


def write_rapidata_weighted(root: Path, made: Sequence[Choice]) -> None:
    rows = []
    for choice in made:
        row = rapidata(choice, (0, 0))
        preference = (3.25, 3.25) if choice.better == "tie" else (12.5, 4.5)
        rows.append({**row, **{f"weighted_results_image{i + 1}_preference": preference[i] for i in (0, 1)}})
    parquet(root / "data" / "train-00000-of-00001.parquet", rows, RAPIDATA_WEIGHTED)


GENERATION = {
    "prompt": TEXT,
    "left_model": TEXT,
    "left_image": IMAGE,
    "right_model": TEXT,
    "right_image": IMAGE,
    "vote_type": TEXT,
}
EDITION = {
    **{"source_prompt": TEXT, "target_prompt": TEXT, "instruct_prompt": TEXT, "source_image": IMAGE},
    **{"left_model": TEXT, "left_output_image": IMAGE, "right_model": TEXT, "right_output_image": IMAGE, "vote_type": TEXT},
}
VOTES = {"first": "leftvote", "second": "rightvote", "tie": "tievote"}


def genai_generation(choice: Choice) -> Row:
    pictures = {"left_image": image(choice.first), "right_image": image(choice.second)}
    return {"prompt": choice.prompt, **pictures, "vote_type": VOTES[choice.better]}


def genai_edition(choice: Choice) -> Row:
    pictures = {"source_image": choice.source, "left_output_image": choice.first, "right_output_image": choice.second}
    prompts = {"source_prompt": "before", "target_prompt": "after", "instruct_prompt": choice.prompt}
    return {**prompts, **{name: image(stored) for name, stored in pictures.items()}, "vote_type": VOTES[choice.better]}


def write_genai_generation(root: Path, made: Sequence[Choice]) -> None:
    rows = [genai_generation(choice) for choice in made]
    parquet(root / "image_generation" / "test_v1-00000-of-00001.parquet", rows, GENERATION)
    parquet(root / "image_generation" / "test-00000-of-00001.parquet", rows[:3], GENERATION)


def write_genai_edition(root: Path, made: Sequence[Choice]) -> None:
    parquet(root / "image_edition" / "test_v1-00000-of-00001.parquet", [genai_edition(choice) for choice in made], EDITION)


SCORES = {
    f"{side}_{what}_score": WHOLE
    for side in ("left", "right")
    for what in ("overall", "instruction_following", "quality_aesthetic")
}
EDITREWARD = {
    **{"key": TEXT, "unique_key": TEXT, "pair_index": WHOLE, "instruction": TEXT, "source_img": IMAGE},
    **{"left_output_image": IMAGE, "right_output_image": IMAGE, "left_model": TEXT, "right_model": TEXT, **SCORES},
    **{"vote_type": TEXT, "metadata_index": WHOLE, "left_img_rel": TEXT, "right_img_rel": TEXT},
}


def editreward(choice: Choice, number: int) -> Row:
    pictures = {"source_img": choice.source, "left_output_image": choice.first, "right_output_image": choice.second}
    vote = "tie" if choice.better == "tie" else VOTES[choice.better]
    row = {name: image(stored) for name, stored in pictures.items()}
    return {**row, "unique_key": f"{number:08x}_0", "instruction": choice.prompt, "vote_type": vote}


def write_editreward(root: Path, made: Sequence[Choice]) -> None:
    rows = [editreward(choice, number) for number, choice in enumerate(made)]
    parquet(root / "data" / "train-00000-of-00001.parquet", rows, EDITREWARD)


def preferred_first(choice: Choice, number: int, pictures: dict[str, bytes], folder: str) -> Row:
    """A row of HPDv3's kind; its pictures are put into ``pictures``."""
    first, second = choice.preferred_first
    names = [f"{folder}{number:06}-{place}.png" for place in (1, 2)]
    pictures.update(zip(names, (first, second), strict=True))
    row = {"prompt": choice.prompt, "choice_dist": None, "confidence": None, "path1": names[0], "path2": names[1]}
    if choice.source is not None:
        row["path_src"] = source = f"{folder}{number:06}-source.png"
        pictures[source] = choice.source
    return {**row, "model1": "flux", "model2": "infinity"}


def write_hpdv3(root: Path, made: Sequence[Choice]) -> None:
    pictures: dict[str, bytes] = {}
    rows = [preferred_first(choice, number, pictures, "images/") for number, choice in enumerate(made)]
    for row, choice in zip(rows, made, strict=True):
        row["choice_dist"] = [6, 6] if choice.better == "tie" else [12, 7]
    dump(root / "train.json", rows)
    store(root, pictures)


def write_editreward_json(root: Path, made: Sequence[Choice]) -> None:
    pictures: dict[str, bytes] = {}
    rows = [preferred_first(choice, number, pictures, f"{number:032x}/") for number, choice in enumerate(made)]
    for row, choice in zip(rows, made, strict=True):
        row.update({"model1_dim1_score": 4, "model2_dim1_score": 3, "tie_case": choice.better == "tie"})
    dump(root / "train.json", rows)
    store(root, pictures)


def write_hpdv2_train(root: Path, made: Sequence[Choice]) -> None:
    pictures: dict[str, bytes] = {}
    rows = []
    for number, choice in enumerate(made):
        names = [f"{number:08}_{place}.jpg" for place in (0, 1)]
        pictures.update(zip(names, (choice.first, choice.second), strict=True))
        human = [int(choice.better == "first"), int(choice.better == "second")]
        rows.append({"human_preference": human, "prompt": choice.prompt, "file_path": names})
    dump(root / "train.json", rows)
    store(root / "train", pictures)


def content(stored: Iterable[tuple[str, bytes]], text: str) -> list[list[str]]:
    return [*(["image", name] for name, _ in stored), *([["text", text]] if text else [])]


def mmrb2_json(choice: Choice, number: int, pictures: dict[str, bytes], sources: Sequence[bytes] = ()) -> Row:
    given = [*sources] or ([] if choice.source is None else [choice.source])
    prompt = [(f"input_images/{number}_{i}.jpg", stored) for i, stored in enumerate(given)]
    answers = [(f"images/{number}_{side}.jpg", stored) for side, stored in (("a", choice.first), ("b", choice.second))]
    pictures.update([*prompt, *answers])
    a, b = ({"model": "m", "response_content": content([answer], "Here it is.")} for answer in answers)
    chosen = {"first": "A", "second": "B"}[choice.better]
    return {
        **{"pair_id": f"pair-{number}", "prompt_source": "wise", "prompt_content": content(prompt, choice.prompt)},
        **{"prompt_metadata": {}, "response_a": a, "response_b": b, "chosen": chosen, "human_annotations": {}},
    }


def write_mmrb2_json(root: Path, made: Sequence[Choice]) -> None:
    pictures: dict[str, bytes] = {}
    rows = [mmrb2_json(choice, number, pictures) for number, choice in enumerate(made)]
    dump(root / f"{'edit' if made[0].source else 't2i'}.json", {"pairs": rows})
    store(root, pictures)


PICTURES = datasets.List(IMAGE)
MMRB2 = {
    **{"pair_id": TEXT, "prompt_source": TEXT, "prompt_text": TEXT, "prompt_images": PICTURES, "prompt_metadata": TEXT},
    **{"response_a_text": TEXT, "response_a_images": PICTURES, "response_a_model": TEXT},
    **{"response_b_text": TEXT, "response_b_images": PICTURES, "response_b_model": TEXT, "chosen": TEXT},
    "human_annotations": TEXT,
}


def mmrb2_hub(choice: Choice, number: int, sources: Sequence[bytes] = ()) -> Row:
    given = [*sources] or ([] if choice.source is None else [choice.source])
    text = "".join(f"<image_{i}> " for i in range(len(given))) + choice.prompt
    answers = {"response_a_images": [image(choice.first)], "response_b_images": [image(choice.second)]}
    chosen = {"first": "a", "second": "b"}[choice.better]
    prompt = {"prompt_text": text, "prompt_images": [image(stored) for stored in given]}
    return {"pair_id": f"pair-{number}", **prompt, **answers, "chosen": chosen, "human_annotations": "{}"}


def write_mmrb2_hub(root: Path, made: Sequence[Choice]) -> None:
    rows = [mmrb2_hub(choice, number) for number, choice in enumerate(made)]
    parquet(root / ("edit" if made[0].source else "t2i") / "test-00000-of-00001.parquet", rows, MMRB2)


ERBENCH = {
    **{"id": TEXT, "instruction": TEXT, "source_image": IMAGE},
    **{f"candidate_{i}": IMAGE for i in (1, 2)},
    **{"ranking": TEXT, "comparison_type": TEXT, "dataset": TEXT},
    **{f"{what}_{i}": TEXT for what in ("score", "model", "instruction_following", "visual_quality") for i in (1, 2)},
}


def erbench(choice: Choice, number: int, subset: str, letters: str = "AB") -> Row:
    first, second = tuple(letters)
    sign = {"first": f"{first}>{second}", "second": f"{second}>{first}", "tie": f"{first}={second}"}[choice.better]
    pictures = {"source_image": choice.source, "candidate_1": choice.first, "candidate_2": choice.second}
    row = {"id": f"{number // 3:010x}_{number % 3}", "instruction": choice.prompt, "ranking": sign, "dataset": subset}
    kind = f"{first}vs{second}" if subset != "2pair" else None
    return {**row, **{name: image(stored) for name, stored in pictures.items()}, "comparison_type": kind}


def write_erbench(root: Path, made: Sequence[Choice], subset: str = "2pair") -> None:
    letters = {"2pair": ["AB"], "3pair": ["AB", "AC", "BC"], "4pair": ["AB", "AC", "AD", "BC", "BD", "CD"]}[subset]
    rows = [erbench(choice, number, subset, letters[number % len(letters)]) for number, choice in enumerate(made)]
    parquet(root / subset / "train-00000-of-00001.parquet", rows, ERBENCH)


EDITSCORE = {
    **{"key": datasets.List(TEXT), "instruction": TEXT, "input_image": IMAGE, "output_images": PICTURES},
    **{"task_type": TEXT, "dimension": TEXT},
}


def editscore(choice: Choice, number: int, dimension: str = "overall") -> Row:
    row = {"key": [f"{number}-a", f"{number}-b"], "instruction": choice.prompt, "input_image": image(choice.source)}
    outputs = [image(stored) for stored in choice.preferred_first]
    return {**row, "output_images": outputs, "task_type": "style", "dimension": dimension}


def write_editscore(root: Path, made: Sequence[Choice]) -> None:
    rows = [editscore(choice, number) for number, choice in enumerate(made)]
    other = editscore(replace(made[0], better="second"), len(rows), "consistency")  # the same pictures, judged otherwise
    table([*rows, other], EDITSCORE).save_to_disk(root, num_shards=2)


def write_evaluation(root: Path, made: Sequence[Choice]) -> None:
    """RationalRewards' evaluation data: one file of every kind, in folders of any name."""
    third = len(made) // 3
    parquet(root / "a" / "x.parquet", [genai_edition(choice) for choice in made[:third]], EDITION)
    rows = [mmrb2_hub(choice, number) for number, choice in enumerate(made[third : 2 * third])]
    parquet(root / "b" / "y.parquet", rows, MMRB2)
    parquet(root / "c" / "z.parquet", [erbench(choice, n, "2pair") for n, choice in enumerate(made[2 * third :])], ERBENCH)


# -- sets of ranked pictures --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """Pictures of one prompt, best first, with their ranks."""

    prompt: str
    pictures: tuple[bytes, ...]
    ranks: tuple[int, ...]


def groups(gallery: Gallery, count: int) -> list[Ranked]:
    """Groups of four pictures without equal ranks, sorted as a file may be; the first is real."""
    made = [Ranked(prompt, tuple(pictures), (1, 2, 3, 4)) for prompt, pictures in [gallery.ranked()]]
    while len(made) < count:
        pictures = tuple(gallery.draw(quality) for quality in (4, 3, 2, 1))
        made.append(Ranked(f"prompt {len(made)}", pictures, (1, 2, 3, 4)))
    return made


def write_hpdv2_test(root: Path, made: Sequence[Ranked]) -> None:
    rows: list[Row] = []
    pictures: dict[str, bytes] = {}
    for number, group in enumerate(made):
        names = [f"{number:05}/{place:03}.jpg" for place in range(len(group.pictures))]
        pictures.update(zip(names, group.pictures, strict=True))
        votes = [{"rank": list(group.ranks), "user_hash": "a"}, {"rank": list(group.ranks), "user_hash": "b"}]
        rows.append({"prompt": group.prompt, "image_path": names, "rank": list(group.ranks), "raw_annotations": votes})
    dump(root / "test.json", rows)
    store(root / "test", pictures)


IMAGEREWARD = {
    **{"image_path": TEXT, "prompt_id": TEXT, "prompt": TEXT, "classification": TEXT, "image_amount_in_total": WHOLE},
    **{"rank": WHOLE, "overall_rating": WHOLE, "image_text_alignment_rating": WHOLE, "fidelity_rating": WHOLE},
}


def imagereward(made: Sequence[Ranked], split: str = "validation", shards: int = 2) -> tuple[list[Row], dict[str, bytes]]:
    """Rows, one a picture, and the pictures by the names that rows give them; a group's pictures may lie in two shards."""
    rows, pictures = [], {}
    for number, group in enumerate(made):
        for place, (stored, rank) in enumerate(zip(group.pictures, group.ranks, strict=True)):
            uuid = hashlib.md5(f"{number}-{place}".encode(), usedforsecurity=False).hexdigest()
            name = f"images/{split}/{split}_{(number * 4 + place) // 3 % shards + 1}/{uuid}.webp"
            pictures[name] = stored
            row = {"image_path": name, "prompt_id": f"{number:06}-0057", "prompt": group.prompt, "rank": rank}
            rows.append({**row, "image_amount_in_total": len(group.pictures), "overall_rating": 8 - rank})
    return rows, pictures


def write_imagereward(root: Path, made: Sequence[Ranked]) -> None:
    rows, pictures = imagereward(made)
    parquet(root / "metadata-validation.parquet", rows, IMAGEREWARD)
    parquet(root / "metadata-train.parquet", rows[:4], IMAGEREWARD)
    write_zips(root, rows, pictures)


def write_zips(root: Path, rows: Sequence[Row], pictures: Mapping[str, bytes]) -> None:
    """The zips of ImageRewardDB: a shard's pictures, and its rows as JSON."""
    shards: dict[str, list[Row]] = {}
    for row in rows:
        shards.setdefault(row["image_path"].rpartition("/")[0], []).append(row)
    for folder, some in shards.items():
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        shard = folder.rpartition("/")[2]
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
            archive.writestr(f"{shard}/{shard}.json", json.dumps(some))
            for row in some:
                name = row["image_path"]
                if name in pictures:
                    archive.writestr(f"{shard}/{name.rpartition('/')[2]}", pictures[name])


def write_tar(path: Path, pictures: Mapping[str, bytes], mode: str = "w") -> None:
    """A tar of pictures, as ``tar -cf x.tar ./images`` makes it."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, stored in pictures.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(stored)
            archive.addfile(member, io.BytesIO(stored))


# -- all of them --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A public set in miniature.

    Args:
        id: The set.
        write: Writes choices, or ranked groups, in its schema.
        split: Split that is written.
        subset: Subset that is written.
        edit: Whether its pairs are edits.
        ties: Whether it has ties.
        ranked: Whether it is of ranked groups.
        layout: What tells cases of the same set apart.
    """

    id: str
    write: Callable[[Path, Any], None]
    split: str
    subset: str | None = None
    edit: bool = False
    ties: bool = True
    ranked: bool = False
    layout: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.id.replace("/", "."), self.subset, self.split, self.layout)))


def write_erbench_3(root: Path, made: Sequence[Choice]) -> None:
    write_erbench(root, made, "3pair")


def write_erbench_4(root: Path, made: Sequence[Choice]) -> None:
    write_erbench(root, made, "4pair")


EVALUATION = "TIGER-Lab/RationalRewards-EvalData-GenAIBench-MMRB2-ERBench"
CASES = [
    Case("yuvalkirstain/pickapic_v2", write_pickapic, "validation"),
    Case("ymhao/HPDv2", write_hpdv2_train, "train", ties=False),
    Case("ymhao/HPDv2", write_hpdv2_test, "test", ranked=True),
    Case("MizzenAI/HPDv3", write_hpdv3, "train"),
    Case("zai-org/ImageRewardDB", write_imagereward, "validation", ranked=True),
    Case("TIGER-Lab/EditReward-Data", write_editreward, "train", edit=True, layout="parquet"),
    Case("TIGER-Lab/EditReward-Data", write_editreward_json, "train", edit=True, layout="json"),
    Case("Rapidata/117k_human_alignment_flux1.0_V_flux1.1Blueberry", write_rapidata, "train"),
    Case("Rapidata/OpenAI-4o_t2i_human_preference", write_rapidata_weighted, "train", "preference"),
    Case("TIGER-Lab/GenAI-Bench", write_genai_generation, "test_v1", "image_generation"),
    Case("TIGER-Lab/GenAI-Bench", write_genai_edition, "test_v1", "image_edition", edit=True),
    Case("facebookresearch/MMRB2", write_mmrb2_json, "test", "t2i", ties=False),
    Case("facebookresearch/MMRB2", write_mmrb2_json, "test", "edit", edit=True, ties=False),
    Case("rl-research/multimodal-rewardbench-2", write_mmrb2_hub, "test", "t2i", ties=False),
    Case("rl-research/multimodal-rewardbench-2", write_mmrb2_hub, "test", "edit", edit=True, ties=False),
    Case("TIGER-Lab/EditReward-Bench", write_erbench, "train", "2pair", edit=True),
    Case("TIGER-Lab/EditReward-Bench", write_erbench_3, "train", "3pair", edit=True, ties=False),
    Case("TIGER-Lab/EditReward-Bench", write_erbench_4, "train", "4pair", edit=True, ties=False),
    Case("EditScore/EditReward-Bench", write_editscore, "train", "overall", edit=True, ties=False),
    Case(EVALUATION, write_evaluation, "test", "all", edit=True, ties=False),
]
