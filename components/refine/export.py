"""What refinement found, for the next round of training: refined requests, and kept pictures against first ones.

The labels are the critic's own. They can teach a generator, or another critic, what this critic knows; nobody learns from them whether it
is right. So every row says where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..entities import lost_entities
from ..records import Preference, PromptRecord, Refinement, Task
from ..seeds import seed_for

ORIGIN = "labelled by a critic"
"""What the origin of every exported row begins with, up to its first comma: the name of its data set."""


@dataclass(frozen=True)
class ExportOptions:
    """Which refinements are worth keeping.

    Args:
        arm: The arm whose choices are exported.
        min_gain: How much better than the first picture the chosen one must score, in rewards of what picked; more than 0.
        min_kept: Share of the original request's content words that the refined one must still have. Its numbers and quoted texts must
            all be there.
        critic: Who criticised, for the rows' origins, e.g. the critic's folder or model name.

    Raises:
        ValueError: If a number is out of range.
    """

    arm: str = "refine_keep_best"
    min_gain: float = 0.05
    min_kept: float = 0.5
    critic: str = "critic"

    def __post_init__(self) -> None:
        if self.min_gain <= 0:
            raise ValueError(f"min_gain must be more than 0, got {self.min_gain:g}: equal pictures teach nothing")
        if not 0 <= self.min_kept <= 1:
            raise ValueError(f"min_kept is a share, 0 to 1, got {self.min_kept:g}")


@dataclass(frozen=True)
class RefinedExample:
    """A request, its refined form and the picture that was kept for it: a row for supervised training.

    Of a generator on (``prompt``, ``image``), so that it needs no refinement; or of a rewriter from ``prompt`` to ``refined``.
    """

    id: str
    task: Task
    prompt: str
    refined: str
    image: str
    sources: tuple[str, ...] = ()
    origin: str = ""


@dataclass(frozen=True)
class PairCritiques:
    """What stands behind the label of an exported pair of the same id; all in the order of its candidates."""

    id: str
    critiques: tuple[str, str]
    rewards: tuple[float, float]
    requests: tuple[str, str]


@dataclass(frozen=True)
class Export:
    """What is exported, one row each for a kept refinement, under the request's id.

    Args:
        kept: The refinements.
        prompts: Refined requests, as RL reads them.
        examples: Rows for supervised training.
        pairs: Chosen picture against first picture, under the original request, as PARROT reads them.
        critiques: The critiques behind their labels.
        left_out: Why the other refinements of the arm are left out: reason to count.
    """

    kept: list[Refinement] = field(default_factory=list)
    prompts: list[PromptRecord] = field(default_factory=list)
    examples: list[RefinedExample] = field(default_factory=list)
    pairs: list[Preference] = field(default_factory=list)
    critiques: list[PairCritiques] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def without(self, ids: Iterable[str]) -> Export:
        """The same without the rows of some requests."""
        gone = set(ids)
        return Export(
            [row for row in self.kept if row.id not in gone],
            [row for row in self.prompts if row.id not in gone],
            [row for row in self.examples if row.id not in gone],
            [row for row in self.pairs if row.id not in gone],
            [row for row in self.critiques if row.id not in gone],
            self.left_out,
        )


def export(refinements: Sequence[Refinement], options: ExportOptions | None = None) -> Export:
    """Take what is worth keeping from a run's refinements.

    Raises:
        ValueError: If the arm was not run.
    """
    options = options or ExportOptions()
    of_arm = [one for one in refinements if one.arm == options.arm]
    if not of_arm:
        arms = ", ".join(dict.fromkeys(one.arm for one in refinements)) or "none"
        raise ValueError(f"there are no refinements of arm {options.arm!r}; there are: {arms}")
    found = Export()
    for one in of_arm:
        reason = _left_out(one, options)
        if reason:
            found.left_out[reason] = found.left_out.get(reason, 0) + 1
        else:
            _add(found, one, options)
    return found


def _left_out(one: Refinement, options: ExportOptions) -> str:
    first, chosen = one.candidates[0], one.candidates[one.chosen]
    if first.request != one.prompt:
        return "the first picture was not made for the original request"
    if chosen.reward is None or first.reward is None:
        return "not scored"
    if chosen.reward - first.reward < options.min_gain:
        return "no gain"
    if chosen.request == one.prompt:
        return "not rewritten"
    must, kept = lost_entities(one.prompt, chosen.request)
    return "something of the request is lost" if must or kept < options.min_kept else ""


def _add(found: Export, one: Refinement, options: ExportOptions) -> None:
    first, chosen = one.candidates[0], one.candidates[one.chosen]
    assert first.reward is not None and chosen.reward is not None
    origin = f"{ORIGIN}, {options.critic}, arm {one.arm}, request {one.id}"
    found.kept.append(one)
    found.prompts.append(PromptRecord(one.id, one.task, chosen.request, one.sources, origin))
    found.examples.append(RefinedExample(one.id, one.task, one.prompt, chosen.request, chosen.image, one.sources, origin))
    # which side is better must not be told by the order
    swapped = bool(seed_for("side", one.id) % 2)
    a, b = (chosen, first) if swapped else (first, chosen)
    rewards = (chosen.reward, first.reward) if swapped else (first.reward, chosen.reward)
    found.pairs.append(Preference(one.id, one.task, one.prompt, (a.image, b.image), float(swapped), one.sources, origin))
    found.critiques.append(PairCritiques(one.id, (a.critique, b.critique), rewards, (a.request, b.request)))
