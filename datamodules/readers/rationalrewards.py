"""What RationalRewards published: its evaluation pairs, the conversations that its critic learnt from, and the requests of its RL.

Pairs (TIGER-Lab/RationalRewards-EvalData-GenAIBench-MMRB2-ERBench). Established, from the adapters in its repository: parquet
with the columns of GenAI-Bench, of MMRB2's hub version or of EditReward-Bench. Assumed: nothing of the files' names; every file
is known by its columns, and the subsets name the kinds (``all`` is the default).

Conversations (TIGER-Lab/RationalRewards-SFTData). Established, from ``dataset_info.json`` in its repository: JSON or JSON lines with
``messages[{role, content}]`` and ``images[]``, the k-th ``<image>`` being ``images[k]``; three files of pairwise rows (two of edits) and
three of pointwise ones, whose names on the hub are others than that file says. Assumed: that a file's name says ``pairwise`` or
``pointwise``, and ``t2i`` where it is not of edits (only a subset needs it); that pictures lie loose or in zip or tar files, from the
file's folder or the root on. Parquet with the pictures inside is read too.

Requests (TIGER-Lab/RationalRewards_DiffusionNFT_TrainData). Established: ``t2i/train.jsonl`` and ``t2i/test.jsonl`` with
``prompt``; edits as ``{split}.jsonl`` with ``prompt, image_path`` (relative to that file's folder) and an optional
``requirement``, which the RL code reads and does not use. Edit-R1, whose guide the repository points to, has
``train_metadata.jsonl`` with the key ``image`` instead: both are read. Assumed: that edits lie outside the folder ``t2i``.

Traps: the same pairs as upstream, so do not mix them with the upstream sets (the pixel-hash leakage check finds them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from rationalrewards.components.conversations import Conversation, read_conversations
from rationalrewards.components.records import Preference, PromptRecord

from . import editreward_bench, genai_bench, mmrb2
from .reading import PictureFinder, Reading
from .records import request_of
from .rows import table_columns

RATIONALES = ("all", "edit-pairwise", "t2i-pairwise", "edit-pointwise", "t2i-pointwise")
EVALUATION = ("all", "genai-bench-t2i", "genai-bench-edit", "mmrb2", "editreward-bench")


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of the evaluation data, of one kind or all."""
    for name in reading.tables():
        path = reading.files.path(name)
        columns = set(table_columns(path))
        known = {
            "genai-bench-t2i": {"prompt", *genai_bench.GENERATION},
            "genai-bench-edit": {"instruct_prompt", *genai_bench.EDITION},
            "mmrb2": {"pair_id", "prompt_text", *mmrb2.LISTS[1:]},
            "editreward-bench": {"instruction", "source_image", *editreward_bench.CANDIDATES[:2]},
        }
        kind = next((kind for kind, needed in known.items() if needed <= columns), None)
        if kind is None:
            raise ValueError(f"{path}: columns of no known benchmark; found: {', '.join(sorted(columns))}")
        if reading.subset not in ("all", kind):
            continue
        if kind == "mmrb2":
            yield from mmrb2.read_table(reading, name)
        elif kind == "editreward-bench":
            yield from editreward_bench.read_table(reading, name)
        else:
            yield from genai_bench.read_table(reading, name, edit=kind == "genai-bench-edit")


def read_rationales(reading: Reading) -> Iterator[Conversation]:
    """Conversations of the SFT data, of one kind or all."""
    there = [name for name in reading.listed("*.jsonl", "*.json", "*.parquet") if not name.endswith("dataset_info.json")]
    names = [name for name in there if reading.subset in ("all", _kind(name))]
    if not names:
        raise ValueError(
            f"{reading.files.label}: no file with conversations of {reading.wanted}; found: {', '.join(there) or 'nothing'}"
        )
    for name in names:
        path = reading.files.path(name)
        inside = f"{path.absolute()}/"  # names of pictures in a parquet file begin so
        folder = name.rpartition("/")[0]
        find = PictureFinder(reading, folder, *([""] if folder else []))
        for row in read_conversations(path, ""):
            images = [image if image.startswith(inside) else find(image) for image in row.images]
            if None in images:
                reading.leave_out("a picture is missing or empty")
                continue
            reading.kept += 1
            yield replace(row, images=tuple(map(str, images)))


def _kind(name: str) -> str:
    file = PurePosixPath(name).name
    mode = next((mode for mode in ("pairwise", "pointwise") if mode in file), "other")
    return f"{'t2i' if 't2i' in file else 'edit'}-{mode}"


def read_requests(reading: Reading) -> Iterator[PromptRecord]:
    """Requests of the RL data, of one subset (``edit`` or ``t2i``) and split."""
    names = reading.listed(f"{reading.split}.jsonl", f"{reading.split}_metadata.jsonl")
    generation = [name for name in names if "t2i" in name.split("/")]
    edit = reading.subset == "edit"
    chosen = [name for name in names if name not in generation] if edit else generation or names
    if len(chosen) != 1:
        found = f"several files: {', '.join(chosen)}" if chosen else f"no {reading.split}.jsonl or {reading.split}_metadata.jsonl"
        raise ValueError(
            f"{reading.files.label}: {found} with requests of {reading.wanted}; give the folder that holds the one you mean"
        )
    folder = chosen[0].rpartition("/")[0]
    find = PictureFinder(reading, folder, *([""] if folder else []))
    for row in reading.json(chosen[0], ["prompt"]):
        try:
            prompt, source = request_of(row.values)
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}") from error
        if edit and not source:
            reading.leave_out("an edit without a source picture")
        else:
            yield from reading.request(row, prompt, [find(source)] if edit else [])
