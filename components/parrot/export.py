"""What PARROT kept, in folders that others train on.

As a program::

    python -m rationalrewards.components.parrot.export rationales.jsonl --rubric default --to jsonl sharegpt datasets --out FOLDER

writes

- ``rationales.jsonl`` and ``pictures/``: our own form, with the pictures copied, so that the folder can be moved;
- ``sharegpt.json`` and ``dataset_info.json``: conversations as LLaMA-Factory trains on them, with the same ``pictures/``;
- ``datasets/``: parquet with the pictures inside and a card, for ``datasets.load_dataset``, TRL and the hub.

Every pair appears in both orders, and each of its pictures alone. All of it is read back by
:class:`rationalrewards.datamodules.RationaleDataModule`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from ..conversations import KINDS, Kind, SupervisedRow, Turns, check_written_in, flatten, supervised_rows, to_row, unflatten
from ..critique import CritiqueFormat, save_fingerprint
from ..critique.formats import FINGERPRINT_FILE
from ..critique.rubric import RUBRIC_FOLDER
from ..pictures import open_picture, picture_bytes
from ..records import Rationale, Unscored, read_jsonl, to_json
from .card import FORMS, ExportReport, Form, card
from .linter import check_student_prompts, findings

GROUP_BYTES = 4 * 2**20
"""Bytes of different pictures after which a row group of parquet is closed: what is read to get at one of them."""
GROUP_ROWS = 256
SHARD_BYTES = 500 * 2**20

# what every reader opens; the rest is written as PNG, which loses nothing
_KEPT_AS_THEY_ARE = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION = 0x0112
_COLUMNS = ("pair", "kind", "index", "task", "origin")


def export(
    rationales: Iterable[Rationale],
    format: CritiqueFormat,
    folder: str | Path,
    to: Sequence[Form] = FORMS,
    kinds: Sequence[Kind] = KINDS,
) -> ExportReport:
    """Write rationales into a folder, one at a time.

    A rationale is left out, and counted, if one of the texts that would be written gives away the label or the teacher (:mod:`.linter`),
    cannot be read, or a picture cannot. What an earlier export left in the folder is replaced when all is written.

    Args:
        rationales: The rationales, e.g. of :func:`rationalrewards.components.records.read_jsonl`.
        format: The student's format, in which they were written.
        folder: Where to; must not be the one that they are read from.
        to: The forms.
        kinds: Which rows conversations are made of: ``"pair"``, ``"point"`` or both. ``rationales.jsonl`` always holds both.

    Raises:
        ValueError: If a rationale is of another format, the format's requests carry teacher-only wording or lack what ``kinds`` asks for,
            or nothing is left to write.
    """
    for name, given, known in (("to", to, FORMS), ("kinds", kinds, KINDS)):
        unknown = [one for one in given if one not in known]
        if unknown or not given:
            raise ValueError(f"{name} must name one or more of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    check_student_prompts(format)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = ExportReport(fingerprint=format.fingerprint)
    seen: set[str] = set()
    forms: dict[Form, Callable[[Path, _Pictures], _Writer]] = {
        "jsonl": _JsonlWriter,
        "sharegpt": _SharegptWriter,
        "datasets": _DatasetsWriter,
    }
    with ExitStack() as stack:
        writers: list[_Writer] = []
        pool = _Pictures(folder / "pictures")
        for form in to:
            writer = forms[form](folder, pool)
            stack.callback(writer.drop)
            writers.append(writer)
        for number, rationale in enumerate(rationales, start=1):
            where = getattr(rationale, "_read_from", f"rationale {number}")
            check_written_in(rationale, format, report.fingerprint, where)
            report.rationales += 1
            reason = _fault(rationale, format, KINDS if "jsonl" in to else kinds)
            pictures: dict[str, _Picture] = {}
            if not reason:
                try:
                    names = dict.fromkeys((*rationale.pair.sources, *rationale.pair.candidates))
                    pictures = {name: pool.take(name) for name in names}
                except ValueError as error:
                    reason = f"picture cannot be read: {error}"
            if reason:
                report.left_out[reason.partition(":")[0]] += 1
                report.examples.setdefault(reason.partition(":")[0], f"{where}: {reason}")
                continue
            rows = [_rendered(row, format, where) for row in supervised_rows(rationale, kinds)]
            for writer in writers:
                writer.write(rationale, rows, pictures)
            seen.update(picture.name for picture in pictures.values())
            report.kept += 1
            report.rows.update(row.kind for row, *_ in rows)
            report.sources[rationale.pair.dataset or "not stated"] += 1
            for name, value in _flat(rationale.provenance):
                report.provenance.setdefault(name, Counter())[value] += 1
        report.pictures = len(seen)
        if not report.kept:
            raise ValueError(f"nothing to export: {report}" if report.rationales else "nothing to export: no rationales")
        _describe(folder, format, report, to)
        for writer in writers:
            writer.finish()
    return report


def _fault(rationale: Rationale, format: CritiqueFormat, kinds: Sequence[Kind]) -> str:
    """Why texts of these kinds must not be learnt from; empty if they may be."""
    pair = rationale.pair
    texts: list[tuple[Kind, str]] = [("point", text) for text in rationale.point_texts] if "point" in kinds else []
    texts += [("pair", rationale.pair_text)] if "pair" in kinds else []
    for kind, text in texts:
        if kind == "point":
            failure = format.parse(text, pair.task).failure
        else:
            verdict = format.parse_pair(text, pair.task).verdict()
            failure = verdict.reason if isinstance(verdict, Unscored) else ""
        if failure:
            return f"unreadable: {failure}"
        for finding in findings(text, pair.prompt, kind):
            return str(finding)
    return ""


def _rendered(row: SupervisedRow, format: CritiqueFormat, where: str) -> _Rendered:
    try:
        messages, answer = row.render(format, tuple)
    except ValueError as error:  # the format's template has no such section
        raise ValueError(f"{where}: {error}; or leave {row.kind!r} out of `kinds`") from error
    return row, *flatten(messages), answer


def _flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, as JSON, of nested mappings; names within are joined by dots."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", json.dumps(value, ensure_ascii=False, sort_keys=True)


# -- pictures ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """A picture as it is written: its name, from its content, and that."""

    name: str
    data: bytes


class _Pictures:
    """Pictures by content: one that many pairs share is written once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, name: str) -> _Picture:
        """Read a picture: its own bytes if other programs see in them what ours do, else a PNG of what ours see.

        Others turn no picture the way up that its EXIF data say, and open fewer kinds of file.
        """
        data = picture_bytes(name)
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                extension = _KEPT_AS_THEY_ARE.get(image.format or "", "")
                upright = image.getexif().get(_ORIENTATION, 1) == 1
        except (OSError, SyntaxError) as error:
            raise ValueError(f"picture {name} cannot be read ({error})") from error
        if not (extension and upright):
            buffer, extension = io.BytesIO(), "png"
            open_picture(name).save(buffer, "PNG")
            data = buffer.getvalue()
        return _Picture(f"{hashlib.sha256(data).hexdigest()[:32]}.{extension}", data)

    def keep(self, picture: _Picture) -> str:
        """Write a picture unless it is there; its path from the folder."""
        path = self.folder / picture.name
        if not path.exists():
            self.folder.mkdir(exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(picture.data)
            part.replace(path)
        return f"{self.folder.name}/{picture.name}"


# -- forms -------------------------------------------------------------------------------------------------------------------

_Rendered = tuple[SupervisedRow, Turns, list[Any], str]


class _Writer(ABC):
    """Writes one form beside where it will be, and puts it there at the end."""

    def __init__(self, folder: Path, pool: _Pictures) -> None:
        self.folder = folder
        self.pool = pool

    @abstractmethod
    def write(self, rationale: Rationale, rows: Sequence[_Rendered], pictures: Mapping[str, _Picture]) -> None:
        """Write a rationale or its rows."""

    @abstractmethod
    def finish(self) -> None:
        """Put what was written in its place."""

    @abstractmethod
    def drop(self) -> None:
        """Forget what was not finished."""


class _FileWriter(_Writer):
    name = ""

    def __init__(self, folder: Path, pool: _Pictures) -> None:
        super().__init__(folder, pool)
        self.part = folder / f"{self.name}.part"
        self.file: IO[str] = self.part.open("w", encoding="utf-8")

    def finish(self) -> None:
        self.file.close()
        self.part.replace(self.folder / self.name)

    def drop(self) -> None:
        self.file.close()
        self.part.unlink(missing_ok=True)


class _JsonlWriter(_FileWriter):
    name = "rationales.jsonl"

    def write(self, rationale: Rationale, rows: Sequence[_Rendered], pictures: Mapping[str, _Picture]) -> None:
        first, second = (self.pool.keep(pictures[name]) for name in rationale.pair.candidates)
        sources = tuple(self.pool.keep(pictures[name]) for name in rationale.pair.sources)
        pair = dataclasses.replace(rationale.pair, sources=sources, candidates=(first, second))
        self.file.write(json.dumps(to_json(dataclasses.replace(rationale, pair=pair)), ensure_ascii=False) + "\n")


class _SharegptWriter(_FileWriter):
    name = "sharegpt.json"

    def __init__(self, folder: Path, pool: _Pictures) -> None:
        super().__init__(folder, pool)
        self.opened = False

    def write(self, rationale: Rationale, rows: Sequence[_Rendered], pictures: Mapping[str, _Picture]) -> None:
        for row, turns, names, answer in rows:
            images = [self.pool.keep(pictures[name]) for name in names]
            written = to_row(turns, answer, images, **_described(row))
            self.file.write((",\n" if self.opened else "[\n") + json.dumps(written, ensure_ascii=False))
            self.opened = True

    def finish(self) -> None:
        self.file.write("\n]\n")
        super().finish()
        entry = {
            "file_name": self.name,
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
        (self.folder / "dataset_info.json").write_text(json.dumps({"rationales": entry}, indent=2) + "\n", encoding="utf-8")


def _described(row: SupervisedRow) -> dict[str, Any]:
    pair = row.rationale.pair
    return dict(zip(_COLUMNS, (pair.id, row.kind, row.index, pair.task, pair.origin), strict=True))


class _DatasetsWriter(_Writer):
    """Parquet shards whose row groups hold whole rationales, so that each picture of theirs is stored once, in the dictionary."""

    part = "datasets.part"

    def __init__(self, folder: Path, pool: _Pictures) -> None:
        super().__init__(folder, pool)
        self.place = folder / self.part
        shutil.rmtree(self.place, ignore_errors=True)
        (self.place / "data").mkdir(parents=True)
        self.rows: list[dict[str, Any]] = []
        self.size = 0
        self.sizes: dict[str, int] = {}
        self.shards: list[Path] = []
        self.writer: Any = None

    def write(self, rationale: Rationale, rows: Sequence[_Rendered], pictures: Mapping[str, _Picture]) -> None:
        for row, turns, names, answer in rows:
            shown = [pictures[name] for name in names]
            self.sizes.update({picture.name: len(picture.data) for picture in shown})
            prompt = [
                {"role": turn["role"], "content": [{"type": p["type"], "text": p.get("text")} for p in turn["content"]]}
                for turn in unflatten(turns, names)
            ]
            completion = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
            images = [{"bytes": picture.data, "path": picture.name} for picture in shown]
            self.rows.append({"prompt": prompt, "completion": completion, "images": images, **_described(row)})
        if sum(self.sizes.values()) >= GROUP_BYTES or len(self.rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema()
        if self.writer is None:
            path = self.place / "data" / f"{len(self.shards):05d}.parquet"
            self.writer = pq.ParquetWriter(
                path,
                schema,
                compression={leaf: "NONE" if leaf.startswith("images.") else "ZSTD" for leaf in _leaves(schema)},
                dictionary_pagesize_limit=2**30,  # or pictures that do not fit would be written again with each row
                write_statistics=False,  # least and greatest picture
            )
            self.shards.append(path)
            self.size = 0
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=schema))
        self.size += sum(self.sizes.values())
        self.rows, self.sizes = [], {}
        if self.size >= SHARD_BYTES:
            self._close()

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer = None

    def finish(self) -> None:
        if self.rows:
            self._flush()
        self._close()
        for number, path in enumerate(self.shards):
            path.rename(path.with_name(f"train-{number:05d}-of-{len(self.shards):05d}.parquet"))
        shutil.rmtree(self.folder / "datasets", ignore_errors=True)
        self.place.rename(self.folder / "datasets")

    def drop(self) -> None:
        self._close()
        shutil.rmtree(self.place, ignore_errors=True)


def _schema() -> Any:
    import pyarrow as pa

    content = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", content)]))
    images = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    text = pa.string()
    fields = [("prompt", turns), ("completion", turns), ("images", images)]
    fields += [(name, pa.int8() if name == "index" else text) for name in _COLUMNS]
    string = {"dtype": "string", "_type": "Value"}
    said = [{"role": string, "content": [{"type": string, "text": string}]}]
    features: dict[str, Any] = {"prompt": said, "completion": said, "images": [{"_type": "Image"}]}
    features |= {name: {"dtype": "int8", "_type": "Value"} if name == "index" else string for name in _COLUMNS}
    # with these `datasets` knows that the column holds pictures
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _leaves(schema: Any) -> Iterator[str]:
    import pyarrow as pa

    def below(name: str, kind: Any) -> Iterator[str]:
        if pa.types.is_list(kind):
            yield from below(f"{name}.list.element", kind.value_type)
        elif pa.types.is_struct(kind):
            for child in kind:
                yield from below(f"{name}.{child.name}", child.type)
        else:
            yield name

    for column in schema:
        yield from below(column.name, column.type)


# -- what lies beside --------------------------------------------------------------------------------------------------------


def _describe(folder: Path, format: CritiqueFormat, report: ExportReport, to: Sequence[Form]) -> None:
    beside: tuple[Form, ...] = tuple(form for form in to if form != "datasets")
    places: list[tuple[Path, tuple[Form, ...]]] = [(folder, beside)] if beside else []
    places += [(folder / _DatasetsWriter.part, ("datasets",))] if "datasets" in to else []
    for place, forms in places:
        _store_format(place, format)
        (place / "README.md").write_text(card(report, forms), encoding="utf-8")
    (folder / "export.json").write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _store_format(place: Path, format: CritiqueFormat) -> None:
    """The fingerprint, and the user's own rubric and template, without which nobody else can ask in this format."""
    save_fingerprint(place, format)
    stored = json.loads((place / FINGERPRINT_FILE).read_text(encoding="utf-8"))
    own = {name: Path(stored[name]) for name in ("rubric", "template") if name in stored}
    if (RUBRIC_FOLDER / f"{format.rubric}.yaml").is_file():  # ships with the package
        del own["rubric"]
    for name, source in own.items():
        stored[name] = f"{name}.yaml"
        if source.resolve() != (place / stored[name]).resolve():
            shutil.copyfile(source, place / stored[name])
    (place / FINGERPRINT_FILE).write_text(json.dumps(stored, indent=2), encoding="utf-8")


# -- the program -------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Export files of rationales; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m rationalrewards.components.parrot.export", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("rationales", nargs="+", metavar="RATIONALES", help="rationales.jsonl of one or more runs")
    parser.add_argument("--rubric", default="default", help="rubric that they were written under (default: %(default)s)")
    parser.add_argument("--template", help="template that they were written under")
    parser.add_argument("--to", nargs="+", choices=FORMS, default=list(FORMS), help="forms (default: all)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="rows of conversations (default: all)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    given = parser.parse_args(arguments)
    try:
        inside = [path for path in given.rationales if Path(path).resolve().parent == Path(given.out).resolve()]
        if inside and "jsonl" in given.to:
            raise ValueError(f"{inside[0]} lies in the folder to write; choose another --out")
        rationales = (one for path in given.rationales for one in read_jsonl(path, Rationale))
        print(export(rationales, CritiqueFormat(given.rubric, given.template), given.out, given.to, given.kinds))
    except ValueError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
