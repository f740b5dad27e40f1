"""What an export says of itself: its counts, and the README beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import yaml

from ..conversations import KINDS
from ..critique.formats import FINGERPRINT_FILE

Form = Literal["jsonl", "sharegpt", "datasets"]
FORMS: tuple[Form, ...] = get_args(Form)


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
# names of licences that the hub knows, as far as they are those of preference sets
_LICENCES = (
    *(
        "mit",
        "apache-2.0",
        "bsd-3-clause",
        "gpl-3.0",
        "openrail",
        "creativeml-openrail-m",
        "cc0-1.0",
        "odc-by",
        "cdla-permissive-2.0",
    ),
    *("cc-by-2.0", "cc-by-sa-3.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)


@dataclass
class ExportReport:
    """What was written, and what was not.

    Args:
        rationales: How many rationales there were.
        kept: How many of them were written.
        rows: Conversations by kind.
        pictures: Different pictures.
        left_out: Kinds of reasons for which rationales were left out, to count.
        examples: Of every kind the first case.
        sources: :attr:`.Preference.dataset` to rationales written.
        provenance: Of every field of the rationales' provenance (those within others after a dot) its values as JSON, to count.
        fingerprint: That of the format.
    """

    rationales: int = 0
    kept: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    sources: Counter[str] = field(default_factory=Counter)
    provenance: dict[str, Counter[str]] = field(default_factory=dict)
    fingerprint: str = ""

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    def __str__(self) -> str:
        rows = ", ".join(f"{count} {kind}" for kind, count in sorted(self.rows.items()))
        lines = [f"{self.kept} of {self.rationales} rationales written ({rows} rows, {self.pictures} pictures)"]
        lines += [f"left out: {count} {reason} ({self.examples[reason]})" for reason, count in self.left_out.most_common()]
        return "\n".join(lines)


def licence_of(source: str) -> str:
    """The licence that a data set's name ends with, in parentheses, by its name on the hub; ``"other"`` or ``"unknown"`` if it has none."""
    found = re.search(r"\(([^()]*)\)$", source)
    if found is None:
        return "unknown"
    name = found[1].strip().lower().replace(" ", "-")
    return name if name in _LICENCES else "other"


def card(report: ExportReport, forms: Sequence[Form]) -> str:
    """The README of an export: for ``datasets`` with the header that the hub reads.

    Args:
        report: What was written.
        forms: The forms in the folder.
    """
    rows = sum(report.rows.values())
    licences = sorted({licence_of(source) for source in report.sources})
    header = {
        "license": licences if len(licences) > 1 else "".join(licences),
        "task_categories": ["image-text-to-text"],
        "tags": ["reward-model", "preference", "critique", "rationale", "parrot", "rationalrewards"],
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "n>10M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    lines = ["---", yaml.safe_dump(header, sort_keys=False).rstrip(), "---", ""] if "datasets" in forms else []
    lines += [
        "# Critiques of pictures that predict which one people prefer",
        "",
        "Requests to judge one picture, or two, that were made for a prompt, and the critiques to answer with: reasons, then scores. They "
        "were written by a teacher that knew which picture people preferred, and kept if they lead to that preference without it (PARROT, "
        "arXiv 2604.11626). Nothing that a student is shown carries the label.",
        "",
        "| rows | number |",
        "|---|---|",
        *(f"| {_KIND_NAMES[kind]} | {report.rows[kind]} |" for kind in KINDS if report.rows[kind]),
        f"| preference pairs | {report.kept} |",
        f"| different pictures | {report.pictures} |",
        "",
        "## Sources",
        "",
        "Requests and pictures keep the licences of the sets that they come from.",
        "",
        "| preference data | licence | pairs kept |",
        "|---|---|---|",
        *(f"| {_cell(source)} | {licence_of(source)} | {count} |" for source, count in report.sources.most_common()),
        "",
        "## How they were made",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(_counted(values))} |" for name, values in report.provenance.items() if name != "format"),
        f"| format of requests and answers | {report.fingerprint} (`{FINGERPRINT_FILE}`) |",
        "",
        f"{report.kept} of {report.rationales} rationales are here."
        + ("" if report.left_out else " All passed the search for words that give away the label or the teacher."),
    ]
    if report.left_out:
        lines += ["", "| left out for | rationales |", "|---|---|"]
        lines += [f"| {_cell(reason)} | {count} |" for reason, count in report.left_out.most_common()]
    for form in forms:
        lines += ["", *_HOW_TO[form].strip().splitlines()]
    return "\n".join(lines) + "\n"


# where a teacher was served is nobody's business who reads the card
_ADDRESS = re.compile(r"(?: at)? https?://[^\s,)]+(?:, https?://[^\s,)]+)*")
_KIND_NAMES = {"point": "critiques of one picture", "pair": "comparisons of two pictures, each pair in both orders"}


def _counted(values: Counter[str]) -> str:
    if len(values) > 5:
        return f"{len(values)} different values"
    counts = [f" ({count})" if len(values) > 1 else "" for _, count in values.most_common()]
    told = [value.strip('"') + count for (value, _), count in zip(values.most_common(), counts, strict=True)]
    return _ADDRESS.sub("", ", ".join(told))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_HOW_TO: dict[str, str] = {
    "jsonl": """
## `rationales.jsonl`

One rationale a line: the pair with its label, the comparison and the critique of each picture. Paths start from this folder.

```python
from rationalrewards.components.records import Rationale, read_jsonl

rationales = read_jsonl("rationales.jsonl", Rationale)
```

For distillation give its path to `RationaleDataModule(train=...)` with the format named in `critique_format.json`.
""",
    "sharegpt": """
## `sharegpt.json`

Conversations for [LLaMA-Factory](https://github.com/hiyouga/LLaMA-Factory): the k-th `<image>` of a row stands for its k-th picture.
`dataset_info.json` tells LLaMA-Factory how to read them:

```yaml
stage: sft
dataset_dir: FOLDER  # this one
dataset: rationales
template: qwen3_vl_nothink  # qwen3_vl would have the model learn an empty think block before every answer
cutoff_len: 32768  # a row that is cut loses picture tokens
```
""",
    "datasets": """
## How to load

```python
from datasets import load_dataset

rows = load_dataset("FOLDER", split="train")  # or the name of the set on the hub
rows[0]["prompt"], rows[0]["completion"], rows[0]["images"]
```

| column | |
|---|---|
| `prompt` | the request: turns of `role` and `content`, a list of parts of `type` `text` or `image` |
| `completion` | the critique, likewise |
| `images` | the pictures; the k-th part of type `image` stands for the k-th |
| `pair` | id of the preference pair |
| `kind` | `point`: one picture; `pair`: two |
| `index` | of a `point` which picture of the pair it is; of a `pair` 1 if the pictures are swapped |
| `task` | `t2i` or `edit`; an edit's source pictures come first |
| `origin` | where the pair comes from |

[TRL](https://github.com/huggingface/trl) trains on it as it is, the loss on the critique only:

```python
from trl import SFTConfig, SFTTrainer

SFTTrainer("Qwen/Qwen3-VL-8B-Instruct", SFTConfig(max_length=None), train_dataset=rows).train()
```

So does `rationalrewards`: `RationaleDataModule(train="FOLDER", format=...)` with the format named in `critique_format.json`.
""",
}
