"""What must not be in what a student reads or writes: the label, and words that only a teacher can know."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image

from ..conversations import Kind
from ..critique import CritiqueFormat
from ..critique.naming import bare_name
from ..records import TASKS

_PEOPLE = r"(?:people|humans?|users?|raters?|annotators?|judges|voters?|crowd)"
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "label echo",  # the writer says that it was told
        re.compile(
            rf"\b(?:human (?:preferences?|labels?|annotat\w+|choices?|judge?ments?|votes?)|{_PEOPLE} (?:clearly |also )?"
            rf"(?:prefer|chose|choose|favou?r|voted|pick(?:ed)?\b|liked|saw no)|preferred by {_PEOPLE}|known preference|"
            r"(?:given|provided|stated|known|reported|labell?ed|ground[- ]truth|annotated) (?:the )?"
            r"(?:preferences?|labels?|winner|verdict|answer)|as (?:i was |we were )?told\b|"
            r"ground[- ]truth|(?:consistent|in line|agree(?:s|ing)?) with (?:the |their )?(?:human |known |given |stated )?"
            r"(?:preference|label))",
            re.IGNORECASE,
        ),
    ),
    (
        "teacher wording",  # it speaks of what only the teacher was shown or asked
        re.compile(
            r"\b(?:reference (?:comment|critique|comparison)|(?:the|this) (?:comment|comparison) (?:above|given|provided|says|states|"
            r"mentions)|as instructed|the (?:given )?hint (?:says|line|given|above)|consult (?:the |a )?(?:given )?"
            r"(?:human )?preference|score gap|(?:correct|right|true) preference|independent judge?ment|as if (?:i|you) had seen it alone)",
            re.IGNORECASE,
        ),
    ),
)
# "image a" in lower case is the beginning of many sentences
_OTHER = (
    "teacher wording",
    re.compile(r"(?i:\bthe other (?:image|picture|candidate|one)\b)|\b(?:Image|Picture|Candidate) [AB]\b"),
)


@dataclass(frozen=True)
class Finding:
    """A phrase that must not be there.

    Args:
        rule: ``"label echo"``, ``"teacher wording"`` or ``"name of a picture"``.
        phrase: The phrase.
    """

    rule: str
    phrase: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.phrase!r}"


def findings(text: str, request: str = "", kind: Kind | None = None) -> list[Finding]:
    """Phrases of a text that give away the label or the teacher, or that would be untrue of the pictures in the other order.

    Args:
        text: A critique, or what a student is asked.
        request: The request that it is about; what the request says itself ("a poster: people prefer tea") is not held against it.
        kind: What it is meant to be. A critique of one picture (``"point"``) that names another one gives the comparison away; a
            comparison (``"pair"``) that names a picture by its letter alone cannot be told with the pictures in the other order.

    Returns:
        The first phrase of each rule, in the order of the rules.
    """
    found: dict[str, Finding] = {}
    said = request.lower()
    for rule, pattern in (*_RULES, *([_OTHER] if kind == "point" else [])):
        for match in pattern.finditer(text):
            if match[0].lower() not in said:
                found.setdefault(rule, Finding(rule, match[0]))
                break
    bare = bare_name(text) if kind == "pair" else ""
    if bare and bare_name(request)[:1] != bare[0]:
        found["name of a picture"] = Finding("name of a picture", bare)
    return list(found.values())


def check_student_prompts(format: CritiqueFormat) -> None:
    """Refuse a format whose requests to the student carry teacher-only wording, as the published evaluation prompts do.

    Raises:
        ValueError: Naming format, task and phrase.
    """
    blank = Image.new("RGB", (1, 1))
    for task in TASKS:
        sources = [blank] * (task == "edit")
        for kind in ("pointwise", "pairwise"):
            if format.wording is not None and (kind, task) not in format.wording.turns:
                continue
            asked = (
                format.pointwise_messages(task, "probe", sources, blank)
                if kind == "pointwise"
                else format.pairwise_messages(task, "probe", sources, (blank, blank))
            )
            text = "\n".join(part["text"] for turn in asked for part in turn["content"] if part["type"] == "text")
            for finding in findings(text):
                name = format.rubric if format.template is None else format.template
                raise ValueError(
                    f"{name!r} asks a student ({kind}, {task}) with {finding}; a student has no label to consult: take it out of the "
                    "rubric or template"
                )
