"""Pictures with what a critic said of them: the refine loop's gallery, and a round of RL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..records import Candidate, Refinement, Scale
from .markup import Html, changed_words, join, page, picture, scrolling, signed, tag, words

_STYLE = """
.filters { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: end; margin: 1.25rem 0 .5rem;
  padding: .75rem 0;
  background: var(--ground); border-bottom: 1px solid var(--line); }
.filters label { display: grid; gap: .15rem; font-size: .85rem; color: var(--quiet); }
.filters select { font: inherit; font-size: .95rem; color: var(--ink); background: var(--surface);
  border: 1px solid var(--line);
  border-radius: 6px; padding: .4rem .5rem; min-height: 2.5rem; max-width: 100%; }
.filters output { margin-left: auto; padding: .5rem 0; color: var(--quiet); }
.request { margin: 1.5rem 0; padding: 1rem; border: 1px solid var(--line); border-radius: 10px; }
.request > header { display: flex; gap: 1rem; align-items: start; }
.request > header h2 { border: 0; margin: 0; padding: 0; font-size: 1.1rem; }
.sources { display: flex; flex-wrap: wrap; gap: .5rem; flex: none; max-width: 50%; }
.sources figure { width: 6rem; }
.arms { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.arm { flex: 0 1 auto; min-width: min(14rem, 100%); max-width: 100%; margin-top: 1rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
.arm > header { width: 0; min-width: 100%; display: flex; flex-wrap: wrap; gap: .1rem 1rem; align-items: baseline;
  margin-bottom: .6rem; }
.candidates { display: flex; flex-wrap: wrap; gap: .75rem; list-style: none; margin: 0; padding: 0; }
.candidate { width: 11.5rem; padding: .5rem; border: 2px solid transparent; border-radius: 8px;
  background: var(--surface); }
.candidate.chosen { border-color: var(--accent); }
.line { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .5rem; margin-top: .4rem;
  font-size: .9rem; }
.badge { color: var(--accent); font-weight: 600; font-size: .85rem; }
.reward { font-weight: 600; font-variant-numeric: tabular-nums; }
.unscored { color: var(--bad); font-size: .9rem; overflow-wrap: anywhere; }
.aspects span { text-align: right; } .aspects span:first-child, .aspects .bar + span { text-align: left; }
.aspects { margin: .4rem 0; display: grid; grid-template-columns: 1fr auto; gap: .05rem .5rem; font-size: .8rem;
  color: var(--quiet); }
.aspects .bar { grid-column: 1 / -1; margin-bottom: .25rem; }
.said { font-size: .9rem; margin-top: .4rem; }
@media (min-width: 48rem) { .filters { position: sticky; top: 0; z-index: 1; } }
@media (max-width: 30rem) { body { padding: 1rem .75rem 3rem; } .request { padding: .75rem; } .filters output {
  margin-left: 0; }
  .filters label { flex: 1 1 9rem; }
  .request > header { flex-direction: column; gap: .5rem; } .sources { max-width: 100%; }
  .candidates { gap: .5rem; } .candidate { width: calc(50% - .25rem); } .arm { width: 100%; } }
"""

_CRITIQUES_STYLE = (
    _STYLE
    + """
.request > .candidates { margin-top: .75rem; }
.candidate { width: 16.5rem; }
.candidate pre { max-height: 20rem; overflow: auto; padding: .4rem 0 0; }
@media (max-width: 30rem) { .candidate { width: 100%; } }
"""
)

# Everything it needs stands in data attributes: no text of a record is ever read as code.
_SCRIPT = """
(() => {
  const form = document.querySelector(".filters");
  const list = document.getElementById("requests");
  const cards = Array.from(list.children);
  const fields = form.elements;
  const apply = () => {
    const [arm, show, order] = ["arm", "show", "order"].map((name) => fields.namedItem(name).value);
    const scored = show === "scored" ? "all" : "some";
    const keys = new Map();
    for (const card of cards) {
      const gains = [];
      let any = false;
      for (const section of card.querySelectorAll("[data-arm]")) {
        const data = section.dataset;
        const fits = (arm === "" || data.arm === arm) && (show === "all" || data.scored === scored);
        section.hidden = !fits;
        any = any || fits;
        if (fits && data.gain) gains.push(Number(data.gain));
      }
      card.hidden = !any;
      keys.set(card, gains.length === 0 ? null : order === "most" ? -Math.max(...gains) : Math.min(...gains));
    }
    const sorted = cards.slice();
    if (order !== "file") {
      sorted.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        return x === null || y === null ? (x === null) - (y === null) : x - y;
      });
    }
    list.append(...sorted);
    const shown = cards.filter((card) => !card.hidden).length;
    form.querySelector("output").textContent = shown + " of " + cards.length + " requests";
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
"""


@dataclass(frozen=True)
class Scored:
    """A picture of a round and its score.

    Args:
        image: The picture.
        reward: Its reward; None where unscored.
        unscored: Why it is unscored.
        aspects: Score of every aspect; None where there is none.
        critique: What the critic wrote.
        note: Short text beside the reward, e.g. another reward.
        scale: What the scores run from and to.
    """

    image: Image.Image
    reward: float | None
    unscored: str = ""
    aspects: Mapping[str, float | None] = field(default_factory=dict)
    critique: str = ""
    note: str = ""
    scale: Scale = field(default_factory=Scale)


def critiques_page(groups: Sequence[tuple[str, Sequence[Scored]]], title: str, max_side: int = 384) -> str:
    """A page of pictures, each with its reward, its scores and its critique.

    Args:
        groups: Requests with their pictures, in the order in which they are shown.
        title: Heading of the page.
        max_side: Larger pictures are reduced to this many pixels a side.

    Returns:
        HTML that needs no network.
    """
    pictures = sum(len(scored) for _, scored in groups)
    articles = [
        tag(
            "article",
            tag("header", tag("h2", prompt, class_="text")),
            tag(
                "ol",
                *(_scored(prompt, made, number, max_side) for number, made in enumerate(group, start=1)),
                class_="candidates",
            ),
            class_="request",
        )
        for prompt, group in groups
    ]
    counts = tag("p", f"Requests: {len(groups)} · pictures: {pictures}", class_="quiet")
    return page(title, join(tag("h1", title), counts, tag("main", *articles)), _CRITIQUES_STYLE)


def _scored(prompt: str, made: Scored, number: int, max_side: int) -> Html:
    said = tag("details", tag("summary", "Critique"), tag("pre", made.critique, tabindex=0), open=True)
    return tag(
        "li",
        picture(made.image, f"Picture {number} for: {prompt}", max_side),
        _reward(made.reward, made.unscored, tag("span", made.note, class_="quiet") if made.note else None),
        _aspects(made.aspects, made.scale),
        said if made.critique.strip() else None,
        class_="candidate",
    )


def _chosen(record: Refinement) -> Candidate | None:
    # -1 would be Python's last one, not "none"
    return record.candidates[record.chosen] if 0 <= record.chosen < len(record.candidates) else None


def _gain(record: Refinement) -> float | None:
    """Reward of the chosen picture minus that of the first one; None where either is missing."""
    chosen = _chosen(record)
    if chosen is None or chosen.reward is None or record.candidates[0].reward is None:
        return None
    return chosen.reward - record.candidates[0].reward


def gallery_page(refinements: Sequence[Refinement], title: str, max_side: int = 512) -> str:
    """A page of everything that the refine loop made.

    Args:
        refinements: One record per request and arm; those with the same id, request and sources stand together.
        title: Heading of the page.
        max_side: Larger pictures are reduced to this many pixels a side.

    Returns:
        HTML that needs no network. Pictures that cannot be read are replaced by the reason.
    """
    requests: dict[tuple[str, str, tuple[str, ...]], list[Refinement]] = {}
    for record in refinements:
        requests.setdefault((record.id, record.prompt, record.sources), []).append(record)
    arms = list(dict.fromkeys(record.arm for record in refinements))
    pictures = sum(len(record.candidates) for record in refinements)
    body = join(
        tag("h1", title),
        tag("p", f"Requests: {len(requests)} · arms: {len(arms)} · pictures: {pictures}", class_="quiet"),
        _overview(refinements, arms),
        tag(
            "p",
            "Rewards are the critic's own, from 0 to 1, always for the original request; a gain is the chosen "
            "picture's reward minus the first one's. Bars show scores as written; rewards take their expectations where the critic "
            "gives them.",
            class_="quiet",
        ),
        _filters(arms),
        tag("main", *(_request(records, max_side) for records in requests.values()), id="requests"),
    )
    return page(title, body, _STYLE, _SCRIPT)


def _overview(refinements: Sequence[Refinement], arms: Sequence[str]) -> Html:
    rows = []
    for arm in arms:
        records = [record for record in refinements if record.arm == arm]
        pairs = [(record.candidates[0].reward, gain) for record in records if (gain := _gain(record)) is not None]
        first = sum(reward or 0.0 for reward, _ in pairs) / len(pairs) if pairs else None
        gain = sum(gain for _, gain in pairs) / len(pairs) if pairs else None
        unscored = sum(candidate.reward is None for record in records for candidate in record.candidates)
        numbers = [
            str(len(records)),
            str(len(pairs)),
            "\u2013" if first is None else f"{first:.3f}",
            "\u2013" if first is None or gain is None else f"{first + gain:.3f}",
            "\u2013" if gain is None else signed(gain),
            str(sum(value < 0 for _, value in pairs)),
            f"{unscored} of {sum(len(record.candidates) for record in records)}",
        ]
        rows.append(tag("tr", tag("th", words(arm), scope="row"), *(tag("td", number, class_="number") for number in numbers)))
    heads = ("Requests", "Compared", "First reward", "Chosen reward", "Gain", "Made worse", "Unscored pictures")
    head = tag("tr", tag("th", "Arm", scope="col"), *(tag("th", name, scope="col", class_="number") for name in heads))
    return scrolling("Mean rewards by arm", tag("table", tag("thead", head), tag("tbody", *rows)))


def _filters(arms: Sequence[str]) -> Html:
    def select(name: str, label: str, options: Sequence[tuple[str, str]]) -> Html:
        choices = (tag("option", text, value=value) for value, text in options)
        return tag("label", label, tag("select", *choices, name=name))

    return tag(
        "form",
        select("arm", "Arm", [("", "All arms"), *((arm, words(arm)) for arm in arms)]),
        select("show", "Scores", [("all", "All"), ("some", "With unscored pictures"), ("scored", "Fully scored")]),
        select(
            "order",
            "Order",
            [("file", "As recorded"), ("most", "Largest gain first"), ("least", "Smallest gain first")],
        ),
        tag("output", aria_live="polite"),
        class_="filters",
        aria_label="Filter and sort",
        autocomplete="off",
        hidden=True,
    )


def _request(records: Sequence[Refinement], max_side: int) -> Html:
    first = records[0]
    sources = [
        tag(
            "figure",
            picture(path, f"Source picture {number} of: {first.prompt}", max_side),
            tag("figcaption", "Source"),
        )
        for number, path in enumerate(first.sources, start=1)
    ]
    kind = "edit" if first.task == "edit" else "text to image"
    return tag(
        "article",
        tag(
            "header",
            tag("div", *sources, class_="sources") if sources else None,
            tag("div", tag("h2", first.prompt, class_="text"), tag("small", f"{first.id} · {kind}")),
        ),
        tag("div", *(_arm(record, max_side) for record in records), class_="arms"),
        class_="request",
    )


def _arm(record: Refinement, max_side: int) -> Html:
    chosen, gain = _chosen(record), _gain(record)
    if chosen is None:
        outcome: Html | str = tag("span", "nothing chosen", class_="bad")
    elif chosen.reward is None:
        outcome = tag("span", "chosen picture is unscored", class_="bad")
    else:
        outcome = tag("span", f"reward {chosen.reward:.3f}", class_="reward")
    mood = None if not gain else "good" if gain > 0 else "bad"
    total = len(record.candidates)
    return tag(
        "section",
        tag(
            "header",
            tag("h3", words(record.arm)),
            outcome,
            tag("span", f"gain {signed(gain)}", class_=mood)
            if gain is not None
            else tag("span", "no gain known", class_="quiet"),
            tag("span", f"stopped: {record.stop}", class_="quiet text"),
        ),
        tag(
            "ol",
            *(
                _candidate(record, candidate, number, total, candidate is chosen, max_side)
                for number, candidate in enumerate(record.candidates, start=1)
            ),
            class_="candidates",
        ),
        class_="arm",
        data_arm=record.arm,
        data_gain="" if gain is None else f"{gain:.6f}",
        data_scored="all" if all(candidate.reward is not None for candidate in record.candidates) else "some",
    )


def _candidate(record: Refinement, candidate: Candidate, number: int, total: int, chosen: bool, max_side: int) -> Html:
    badge = tag("span", "\u2713 chosen", class_="badge") if chosen else None
    same = candidate.request == record.prompt
    request = (
        tag("p", "original request", class_="said quiet")
        if same
        else tag("p", changed_words(record.prompt, candidate.request), class_="said text")
    )
    critique = tag("details", tag("summary", "Critique"), tag("pre", candidate.critique)) if candidate.critique.strip() else None
    return tag(
        "li",
        picture(candidate.image, f"{words(record.arm)}, picture {number} of {total} for: {candidate.request}", max_side),
        tag("div", f"{number} of {total} · round {candidate.round}", class_="line quiet"),
        _reward(candidate.reward, candidate.unscored, badge),
        _aspects(candidate.aspects, candidate.scale),
        request,
        critique,
        class_="candidate chosen" if chosen else "candidate",
    )


def _reward(reward: float | None, unscored: str, beside: Html | None) -> Html:
    if reward is None:
        reason = tag("div", f"unscored: {unscored or 'no reason recorded'}", class_="unscored text")
        return join(tag("div", beside, class_="line") if beside else None, reason)
    return tag("div", tag("span", f"reward {reward:.3f}", class_="reward"), beside, class_="line")


def _aspects(aspects: Mapping[str, float | None], scale: Scale) -> Html | None:
    return tag("div", *(_aspect(key, value, scale) for key, value in aspects.items()), class_="aspects") if aspects else None


def _aspect(key: str, value: float | None, scale: Scale) -> Html:
    if value is None:
        return join(tag("span", words(key)), tag("span", "none"), tag("span", class_="bar", aria_hidden="true"))
    bar = tag("span", tag("i", style=f"width:{100 * scale.fraction(value):.1f}%"), class_="bar", aria_hidden="true")
    return join(tag("span", words(key)), tag("span", f"{value:.2f}"), bar)
