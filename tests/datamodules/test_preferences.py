"""Preference pairs in order, from files and public sets, for rationalization and evaluation; and in batches to learn from."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from PIL import Image
from rationalrewards.components.records import Preference, open_pictures
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.datamodules.preferences import PairStream, _Share, grouped_batches, show
from rationalrewards.datamodules.readers import PreferenceSet
from rationalrewards.datamodules.splits import PARTS, Fold, normalised
from support import run_python
from torch.utils.data import DataLoader

pytestmark = tiny.QUIET


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(name: str, label: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {"id": name, "task": "t2i", "prompt": "a", "candidates": ["1.png", "2.png"], "label": label, **changes}


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [write(tmp_path / f"{part}.jsonl", [row(f"{part}{index}", index / 4) for index in range(5)]) for part in "xy"]


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def pickapic(folder: Path, rows: int, files: int = 1, group: int = 1000) -> PreferenceSet:
    """Pick-a-Pic v2 in miniature: every file is the same rows, linked."""
    (folder / "data").mkdir(parents=True)
    columns = {
        "caption": [f"prompt {index}" for index in range(rows)],
        "label_0": [(1.0, 0.0, 0.5)[index % 3] for index in range(rows)],
        "label_1": [(0.0, 1.0, 0.5)[index % 3] for index in range(rows)],
        "has_label": [True] * rows,
        "jpg_0": [picture(index % 50) for index in range(rows)],
        "jpg_1": [picture(50 + index % 50) for index in range(rows)],
    }
    first = folder / "data" / "train-00000.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), first, row_group_size=group)
    for part in range(1, files):
        os.link(first, folder / "data" / f"train-{part:05}.parquet")
    return PreferenceSet("yuvalkirstain/pickapic_v2", root=str(folder))


def _ids(data: PreferenceDataModule) -> list[list[str]]:
    data.setup("predict")
    batches = [[pair.id for pair in batch] for batch in data.predict_dataloader()]
    assert batches == [[pair.id for pair in batch] for batch in data.test_dataloader()]
    return batches


def _flat(batches: Sequence[Sequence[str]]) -> list[str]:
    return [name for batch in batches for name in batch]


def test_files_follow_each_other(paths: list[str]) -> None:
    assert _ids(PreferenceDataModule(paths, batch_size=4)) == [["x0", "x1", "x2", "x3"], ["x4", "y0", "y1", "y2"], ["y3", "y4"]]
    assert _ids(PreferenceDataModule(paths[0])) == [["x0", "x1", "x2", "x3", "x4"]]


def test_sets_follow_the_files(paths: list[str], tmp_path: Path) -> None:
    data = PreferenceDataModule(paths[0], batch_size=5, sets=[pickapic(tmp_path / "pick", 4)])
    first, second = _ids(data)
    assert first == ["x0", "x1", "x2", "x3", "x4"]
    assert len(set(second)) == 4 and all(name.startswith("yuvalkirstain.pickapic_v2") for name in second)
    assert (data.count, len(data.predict_dataloader())) == (9, 2)
    (batch,) = PreferenceDataModule(sets=[pickapic(tmp_path / "again", 4)]).predict_dataloader()
    assert [pair.prompt for pair in batch] == [f"prompt {index}" for index in range(4)]
    assert {pair.dataset for pair in batch} == {"yuvalkirstain/pickapic_v2@local (no licence stated)"}
    assert [image.size for image in open_pictures(batch[3], batch[3].candidates)] == [(4, 4)] * 2


def test_from_yaml(tmp_path: Path) -> None:
    pickapic(tmp_path / "pick", 30)
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(PreferenceDataModule, "data")
    (tmp_path / "config.yaml").write_text(f"""
        data:
          sets:
            - id: yuvalkirstain/pickapic_v2
              root: {tmp_path / "pick"}
              split: train
          fold: {{part: val, shares: [0.5, 0.5, 0]}}
          min_agreement: 0.6
          num_workers: 1
    """)
    parser.add_argument("--config", action="config")
    data = parser.instantiate_classes(parser.parse_args(["--config", str(tmp_path / "config.yaml")])).data
    assert data.pairs.sets == (PreferenceSet("yuvalkirstain/pickapic_v2", root=str(tmp_path / "pick"), split="train"),)
    assert data.pairs.fold == Fold("val", (0.5, 0.5, 0.0))
    assert 3 <= sum(map(len, _ids(data))) <= 17  # 20 of the 30 are no ties, and a fair coin takes them: 1 in 1000 to be outside


def test_ties_are_left_out_before_the_limit_counts(paths: list[str]) -> None:
    assert _ids(PreferenceDataModule(paths[0], limit=3)) == [["x0", "x1", "x2"]]
    assert _ids(PreferenceDataModule(paths[0], limit=3, decided_only=True)) == [["x0", "x1", "x3"]]


def test_agreement_is_that_of_the_larger_side(tmp_path: Path) -> None:
    labels = [0.0, 0.3, 0.31, 0.5, 0.69, 0.7 - 2**-52, 0.7, 1.0]  # one 0.7 as sums of votes come out
    path = write(tmp_path / "votes.jsonl", [row(str(label), label) for label in labels])
    kept = {least: _flat(_ids(PreferenceDataModule(path, min_agreement=least))) for least in (0.5, 0.51, 0.7, 1.0)}
    assert kept[0.5] == [str(label) for label in labels]
    assert kept[0.51] == [str(label) for label in labels if label != 0.5]
    assert kept[0.7] == ["0.0", "0.3", str(0.7 - 2**-52), "0.7", "1.0"]
    assert kept[1.0] == ["0.0", "1.0"]
    for least in (0.49, 1.01, 70):
        with pytest.raises(ValueError, match=r"min_agreement is between 0\.5 \(a coin flip\) and 1"):
            PreferenceDataModule(path, min_agreement=least)


def test_no_pairs_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    ties = write(tmp_path / "ties.jsonl", [row("t", 0.5)])
    for options, message in (
        ({"decided_only": True}, r"ties\.jsonl: no pairs without a tie$"),
        ({"min_agreement": 0.6}, r"ties\.jsonl: no pairs with an agreement of 0\.6$"),
        ({"decided_only": True, "fold": Fold("val")}, r"ties\.jsonl: no pairs without a tie in part 'val' of the fold$"),
    ):
        with pytest.raises(ValueError, match=message):
            PreferenceDataModule(ties, **options).setup("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"empty\.jsonl: no pairs$"):
        PreferenceDataModule(write(tmp_path / "empty.jsonl", [])).setup("test")
    data = PreferenceDataModule(sets=[pickapic(tmp_path / "pick", 3)], min_agreement=1.0, decided_only=True, limit=0)
    with pytest.raises(ValueError, match=r"yuvalkirstain/pickapic_v2: no pairs"):
        data.setup("test")


def test_an_id_in_two_files_is_refused(paths: list[str]) -> None:
    Path(paths[1]).write_text(Path(paths[1]).read_text().replace('"y3"', '"x3"'))
    with pytest.raises(ValueError, match=r"id 'x3' is in .*x\.jsonl and in .*y\.jsonl; .*rename it in one"):
        PreferenceDataModule(paths).setup("predict")


def test_nothing_or_the_same_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give `data.paths`: .* or `data.sets`"):
        PreferenceDataModule()
    one, other = pickapic(tmp_path / "one", 1), pickapic(tmp_path / "two", 1)
    spelled_out = PreferenceSet(other.id, root=other.root, split="train")  # its first split, as by default
    with pytest.raises(ValueError, match=r"set yuvalkirstain/pickapic_v2 train is given twice; .*take one out"):
        PreferenceDataModule(sets=[one, spelled_out])
    PreferenceDataModule(sets=[one, PreferenceSet(other.id, root=other.root, split="test")])


def test_what_is_wrong_comes_up_before_the_first_batch(paths: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone"):
        PreferenceDataModule(paths[0], sets=[PreferenceSet("yuvalkirstain/pickapic_v2", root="gone")]).setup("predict")
    Path(paths[1]).write_text(Path(paths[1]).read_text() + "{\n")
    with pytest.raises(ValueError, match=r"y\.jsonl, line 6: not JSON"):
        PreferenceDataModule(paths, limit=1).setup("predict")


# -- shares of processes and workers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_share_the_pairs(paths: list[str], processes: int) -> None:
    pairs = PairStream(tuple(paths))
    whole = [pair.id for pair in pairs]
    shares = [[[pair.id for pair in batch] for batch in _Share(pairs, 2, rank, processes)] for rank in range(processes)]
    for rank, share in enumerate(shares):
        assert _flat(share) == whole[rank::processes]  # each once, in order, and none to fill up
        assert all(len(batch) == 2 for batch in share[:-1])


@pytest.mark.parametrize("processes", [1, 3])
def test_the_batches_are_the_same_with_any_number_of_workers(paths: list[str], processes: int) -> None:
    pairs = PairStream(tuple(paths), decided_only=True)
    for rank in range(processes):
        share = _Share(pairs, 1, rank, processes)
        batches = [list(DataLoader(share, batch_size=None, num_workers=workers)) for workers in (0, 1, 2)]
        assert batches[0] == batches[1] == batches[2] == list(share)


def test_a_loader_says_how_long_it_is_where_that_is_known(paths: list[str], tmp_path: Path) -> None:
    pick = [pickapic(tmp_path / "pick", 12, files=2, group=5)]

    def length(**options: Any) -> int | None:
        data = PreferenceDataModule(batch_size=5, **options)
        data.setup("predict")
        loader = data.predict_dataloader()
        batches = [len(batch) for batch in loader]
        try:
            size = len(loader)
        except TypeError:
            return None
        assert size == len(batches)
        return size

    assert length(paths=paths) == 2
    assert length(paths=paths, decided_only=True) == 2  # 8 pairs
    assert length(paths=paths, min_agreement=1.0) == 1  # 4
    assert length(sets=pick) == 5  # 24, from the files' own metadata
    assert length(paths=paths, sets=pick) == 7  # 34
    assert length(sets=pick, limit=11) == 3
    assert length(sets=pick, decided_only=True) is None  # only reading would tell
    assert length(sets=pick, decided_only=True, limit=9) == 2
    assert length(paths=paths[0], fold=Fold("train", (1.0, 0.0, 0.0))) is None


TWO = """
    import json
    import sys

    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy
    from rationalrewards.datamodules import PreferenceDataModule

    class Ids(LightningModule):
        def on_predict_start(self):
            self.seen = []

        def predict_step(self, batch, batch_idx):
            self.seen.append([pair.id for pair in batch])

        def on_predict_end(self):
            with open(f"{self.trainer.predict_dataloaders.count}.rank{self.global_rank}.json", "w") as file:
                json.dump([self.trainer.num_predict_batches, self.seen], file)

    if __name__ == "__main__":
        for limit in (None, 1):
            trainer = Trainer(
                accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), logger=False,
                enable_progress_bar=False, enable_model_summary=False,
            )
            data = PreferenceDataModule(sys.argv[1:], batch_size=2, limit=limit, num_workers=1)
            trainer.predict(Ids(), data, return_predictions=False)
"""


@pytest.mark.slow
def test_two_processes_predict_every_pair_once(paths: list[str], tmp_path: Path) -> None:
    write(Path(paths[1]), [row("y0")])
    (tmp_path / "program.py").write_text(textwrap.dedent(TWO))
    done = run_python(["program.py", *paths], timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    seen = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.rank?.json")}
    assert seen == {
        "6.rank0": [[2], [["x0", "x2"], ["x4"]]],
        "6.rank1": [[2], [["x1", "x3"], ["y0"]]],
        # fewer pairs than processes: one of them has nothing to do
        "1.rank0": [[1], [["x0"]]],
        "1.rank1": [[1], []],
    }


# -- folds --------------------------------------------------------------------------------------------------------------


def edits(folder: Path, count: int) -> list[Preference]:
    """Edits of five sources, each asked for in several words and kept in two copies."""
    for index in range(5):
        with Image.open(io.BytesIO(picture(index))) as image:
            image.save(folder / f"{index}.png")
            image.save(folder / f"copy-{index}.bmp")
    return [
        Preference(
            f"e{i}", "edit", f"word {i % 7}", ("a", "b"), 1.0, (str(folder / (f"{i % 5}.png", f"copy-{i % 5}.bmp")[i % 2]),)
        )
        for i in range(count)
    ]


def folds(**options: Any) -> dict[str, Fold]:
    return {part: Fold(part, **options) for part in PARTS}  # type: ignore[arg-type]


def test_every_pair_is_in_one_part_and_parts_have_their_shares() -> None:
    pairs = [Preference(str(index), "t2i", f"prompt {index}", ("a", "b"), 1.0) for index in range(3000)]
    parts = folds(shares=(0.7, 0.2, 0.1))
    found = [[part for part, fold in parts.items() if fold.holds(pair)] for pair in pairs]
    assert all(len(names) == 1 for names in found)
    counts = Counter(names[0] for names in found)
    for part, share in zip(PARTS, (0.7, 0.2, 0.1), strict=True):
        assert abs(counts[part] - 3000 * share) < 4 * (3000 * share * (1 - share)) ** 0.5  # four standard deviations
    # the same again, another way with another seed
    assert [parts["val"].holds(pair) for pair in pairs] == [Fold("val", (0.7, 0.2, 0.1)).holds(pair) for pair in pairs]
    other = Fold("val", (0.7, 0.2, 0.1), seed=1)
    both = sum(parts["val"].holds(pair) and other.holds(pair) for pair in pairs)
    assert abs(both - 3000 * 0.04) < 4 * (3000 * 0.04 * 0.96) ** 0.5  # as independent draws


def test_what_belongs_together_is_in_one_part(tmp_path: Path) -> None:
    pairs = edits(tmp_path, 140)  # every group and copy twice
    for by, key in (("group", lambda pair: pair.group), ("sources", lambda pair: pair.sources[0][-5])):
        parts = folds(shares=(0.4, 0.3, 0.3), by=by)
        places: dict[Any, set[str]] = {}
        for pair in pairs:
            places.setdefault(key(pair), set()).update(part for part, fold in parts.items() if fold.holds(pair))
        assert all(len(found) == 1 for found in places.values())
        assert len(set().union(*places.values())) > 1
    # one source with other words may part by group: that is what `sources` is for
    parted = {pair.sources[0][-5]: set() for pair in pairs}
    for pair in pairs:
        parted[pair.sources[0][-5]].add(Fold("train", (0.4, 0.3, 0.3)).holds(pair))
    assert {True, False} in parted.values()


def test_a_request_is_the_same_however_it_is_typed(tmp_path: Path) -> None:
    spellings = ["A cat  on a\tmat.", "a cat on a mat", " A CAT on a mat . ", "\uff41 cat on a mat"]
    assert len({normalised(text) for text in spellings}) == 1
    assert normalised("a cat on a mat") != normalised("a cat on the mat")
    for index in range(30):
        pairs = [Preference("p", "t2i", text + f" {index}", ("a", "b"), 1.0) for text in ("A  Cat", "a cat")]
        assert len({Fold("train", (0.5, 0.5, 0.0)).holds(pair) for pair in pairs}) == 1


def test_an_unreadable_source_does_not_end_the_stream(tmp_path: Path) -> None:
    names = [f"prompt {index}" for index in range(20)]
    rows = [row(name, prompt=name, task="edit", sources=["gone.png"]) for name in names]
    path = write(tmp_path / "edits.jsonl", rows)
    taken = [_flat(_ids(PreferenceDataModule(path, fold=fold))) for fold in folds(shares=(0.5, 0.25, 0.25)).values()]
    assert sorted(_flat(taken)) == sorted(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "dev"}, "part must be one of train, val, test"),
        ({"part": "val", "by": "prompt"}, "by group or sources"),
        ({"part": "val", "shares": (0.9, 0.1)}, "shares are those of train, val, test and add up to 1"),
        ({"part": "val", "shares": (0.9, 0.2, 0.1)}, "add up to 1"),
        ({"part": "val", "shares": (1.1, 0.0, -0.1)}, "add up to 1"),
        ({"part": "test", "shares": (0.9, 0.1, 0.0)}, "the share of test is 0"),
    ],
)
def test_a_fold_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fold(**options)


# -- memory -------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Rows 2,000 to 20,000 of a stream, with every picture read, leave nothing behind: not one small object for ten rows.

    Ids, records, names of pictures and these pictures, of 4 by 4 pixels, are all small objects.
    """
    data = PreferenceDataModule(sets=[pickapic(tmp_path / "pick", 1000, files=20, group=250)], batch_size=50)
    data.setup("predict")
    objects, arrow = [], []
    for index, batch in enumerate(data.predict_dataloader()):
        for pair in batch:
            open_pictures(pair, pair.candidates)
        if index in (40, 398):
            gc.collect()
            objects.append(sys.getallocatedblocks())
            arrow.append(pyarrow.total_allocated_bytes())
    assert objects[1] - objects[0] < 1_800
    assert arrow[1] - arrow[0] < 1_000_000  # what is read ahead, of two columns in eight files; all pictures together are 4 MB


# -- to learn from ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_batches_hold_every_pair_once_and_groups_follow_each_other(size: int) -> None:
    groups = [index % 5 for index in range(23)]
    for together in (True, False):
        keys = groups if together else list(range(23))
        batches = grouped_batches(keys, size, seed=1, epoch=0)
        assert sorted(_flat(batches)) == list(range(23))  # type: ignore[arg-type]
        assert len(batches) == -(-23 // size) and sum(len(batch) < size for batch in batches) <= 1
        assert batches == grouped_batches(keys, size, seed=1, epoch=0)
        if size < 23:
            assert batches != grouped_batches(keys, size, seed=1, epoch=1) != grouped_batches(keys, size, seed=2, epoch=1)
    # a batch of a fifth holds one group or the end of one and the start of another
    assert all(len({groups[index] for index in batch}) <= 2 for batch in grouped_batches(groups, 4, seed=1, epoch=0))


def learn(folder: Path, **options: Any) -> PreferenceDataModule:
    data = PreferenceDataModule(train=str(tiny.pairs(folder, 12)), **{"batch_size": 4, "seed": 5, **options})
    data.setup("fit")
    return data


def test_training_pairs_come_with_their_pictures_and_each_picture_once(tmp_path: Path) -> None:
    loader = learn(tmp_path / "pairs").train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    shown = [one for batch in batches for one in batch]
    assert sorted(one.pair.id for one in shown) == sorted(pair.id for pair in learn(tmp_path / "pairs").train_rows)
    for one in shown:
        assert one.images == open_pictures(one.pair, one.pair.candidates)
        assert one.sources == open_pictures(one.pair, one.pair.sources)
    pair = shown[0].pair
    first, second = show([pair, replace(pair, id="swapped", candidates=pair.candidates[::-1])])
    assert first.images[0] is second.images[1] and first.images[1] is second.images[0]
    with pytest.raises(ValueError, match=r"preferences\.jsonl, row \d+: picture .*gone\.png does not exist"):
        broken = replace(pair, candidates=("gone.png", pair.candidates[1]))
        object.__setattr__(broken, "_read_from", "preferences.jsonl, row 3")
        show([broken])


def test_training_goes_on_after_an_interruption_and_is_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ids(loader: Any) -> list[list[str]]:
        return [[one.pair.id for one in batch] for batch in loader]

    data = learn(tmp_path / "pairs", batch_size=2)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    whole = ids(loader)
    assert len(whole) == 6 and whole != ids(learn(tmp_path / "pairs", batch_size=2).train_dataloader())
    with_workers = learn(tmp_path / "pairs", batch_size=2, num_workers=1).train_dataloader()
    with_workers.sampler.set_epoch(3)
    assert ids(with_workers) == whole
    begun = iter(loader)
    for _ in range(4):
        next(begun)
    other = learn(tmp_path / "pairs", batch_size=2).train_dataloader()
    other.load_state_dict(loader.state_dict())
    other.sampler.set_epoch(3)
    assert ids(other) == whole[4:]
    shares = []
    for rank in range(4):
        monkeypatch.setattr("rationalrewards.datamodules.batches.world", lambda rank=rank: (rank, 4))
        part = learn(tmp_path / "pairs", batch_size=2).train_dataloader()
        part.sampler.set_epoch(3)
        shares.append(ids(part))
        assert len(part) == 1
    # six batches do not divide by four: as many for each, none twice
    assert [share[0] for share in shares] == whole[:4]


def test_filters_hold_for_training_and_not_for_validation(tmp_path: Path) -> None:
    rows = [row(f"x{index}", index / 4) for index in range(5)]
    path = write(tmp_path / "train.jsonl", rows)
    held = write(tmp_path / "val.jsonl", [row(f"y{index}", index / 4) for index in range(5)])
    data = PreferenceDataModule(train=path, val=[held], decided_only=True, min_agreement=0.8, limit=1, limit_val=4)
    data.setup("fit")
    assert [pair.id for pair in data.train_rows] == ["x0"]
    assert [pair.id for pair in data.val_rows] == ["y0", "y1", "y2", "y3"]
    alone = PreferenceDataModule(val=held)
    alone.setup("validate")
    assert len(alone.val_rows) == 5 and not alone.train_rows
    pick = PreferenceDataModule(train=[path, pickapic(tmp_path / "pick", 6)], limit=8)
    pick.setup("fit")
    assert [pair.id for pair in pick.train_rows[:5]] == [f"x{index}" for index in range(5)] and len(pick.train_rows) == 8


def test_one_file_is_split_into_what_is_learnt_and_what_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", [row(f"x{index}", prompt=f"prompt {index // 2}") for index in range(60)])
    shares = (0.5, 0.5, 0.0)
    data = PreferenceDataModule(train=path, val=path, fold=Fold("train", shares), val_fold=Fold("val", shares))
    data.setup("fit")
    learnt, held = ({pair.prompt for pair in rows} for rows in (data.train_rows, data.val_rows))
    assert len(data.train_rows) + len(data.val_rows) == 60 and learnt.isdisjoint(held) and learnt and held


def test_what_is_missing_or_on_both_sides_is_refused(paths: list[str]) -> None:
    with pytest.raises(ValueError, match="give `data.train`: files of preference pairs to learn from"):
        PreferenceDataModule(paths).setup("fit")
    with pytest.raises(ValueError, match="give `data.paths` or `data.sets`: there is nothing to test on"):
        PreferenceDataModule(train=paths).setup("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give `data.val`"):
        PreferenceDataModule(train=paths[0]).setup("validate")
    with pytest.raises(ValueError, match=r"pair 'x0' is in `data.train` and in `data.val`; .*give both a fold"):
        PreferenceDataModule(train=paths[0], val=paths[0]).setup("fit")
    assert PreferenceDataModule(train=paths[0]).val_dataloader() == []
