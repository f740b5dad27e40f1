"""Pictures with what a critic said of them: the refine loop's gallery, and a round of RL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..records import Candidate, Refinement, Scale
from .gallery_data import Pictures, grouped, island, items_of, paths_of
from .gallery_script import SCRIPT
from .gallery_script import STYLE as _GALLERY_STYLE
from .markup import Html, join, page, picture, scrolling, signed, tag, words

_STYLE = """
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
@media (max-width: 30rem) { body { padding: 1rem .75rem 3rem; } .request { padding: .75rem; }
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


def gallery_page(refinements: Sequence[Refinement], title: str, max_side: int = 512, picture_bytes: int = 64_000_000) -> str:
    """A page of everything that the refine loop made, to filter, to sort and to go through by keyboard.

    Thousands of requests are data in it, and become elements where the window is.

    Args:
        refinements: One record per request and arm; those with the same id, request and sources stand together.
        title: Heading of the page.
        max_side: Larger pictures are reduced to this many pixels a side.
        picture_bytes: About how many bytes all pictures may take. Where they are many they are reduced further, down to 128 pixels a
            side; those of 160 pixels or fewer are kept as they are.

    Returns:
        HTML that needs no network. Pictures that cannot be read are replaced by the reason.
    """
    groups = grouped(refinements)
    pictures = Pictures(paths_of(groups), max_side, picture_bytes)
    arms = list(dict.fromkeys(record.arm for record in refinements))
    aspects = list(dict.fromkeys(key for record in refinements for candidate in record.candidates for key in candidate.aspects))
    stops = sorted({record.stop for record in refinements})
    count = sum(len(record.candidates) for record in refinements)
    data = {
        "items": items_of(groups, pictures),
        "pictures": pictures.shapes,
        "labels": {key: words(key) for key in (*arms, *aspects)},
    }
    body = join(
        tag("h1", title),
        tag("p", f"Requests: {len(groups)} · arms: {len(arms)} · pictures: {count}", class_="quiet"),
        _overview(refinements, arms),
        tag(
            "p",
            "Rewards are the critic's own, from 0 to 1, always for the original request; a gain is the chosen "
            "picture's reward minus the first one's. Bars show scores as written; rewards take their expectations where the critic "
            "gives them. Marked words are new in a request, struck ones were lost.",
            class_="quiet",
        ),
        _filters(arms, aspects, stops),
        _keys(),
        tag("noscript", tag("p", "The requests are shown by a script in this file; allow it to run.", class_="bad")),
        tag("main", id="requests"),
        tag("dialog", aria_label="Enlarged picture"),
        island(data, "data"),
    )
    text = page(title, body, _STYLE + _GALLERY_STYLE, SCRIPT)
    # behind the script, which then shows the first requests while the pictures of the last are still being read
    end = text.rindex("</body>")
    return "".join((text[:end], *pictures.blocks, text[end:]))


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


def _filters(arms: Sequence[str], aspects: Sequence[str], stops: Sequence[str]) -> Html:
    def select(name: str, label: str, *options: tuple[str, str]) -> Html:
        choices = (tag("option", text, value=value) for value, text in options)
        return tag("label", label, tag("select", *choices, name=name))

    return tag(
        "form",
        tag("label", "Words", tag("input", name="q", type="search", placeholder="any text")),
        select("arm", "Arm", ("", "All arms"), *((arm, words(arm)) for arm in arms)),
        select("of", "Aspect", ("", "All: reward"), *((key, words(key)) for key in aspects)),
        select(
            "gain",
            "Gain",
            ("", "Any"),
            ("better", "Better"),
            ("much", "Better by 0.1 or more"),
            ("same", "The same"),
            ("worse", "Worse"),
            ("unknown", "Not known"),
        ),
        select(
            "level",
            "Chosen picture",
            ("", "Any score"),
            ("low", "Lower half"),
            ("high", "Upper half"),
            ("full", "Full marks"),
        ),
        select("stop", "Stopped", ("", "For any reason"), *((stop, stop) for stop in stops if stop)),
        select("show", "Unscored", ("", "All"), ("some", "With unscored pictures"), ("scored", "Fully scored")),
        select(
            "order",
            "Order",
            ("", "As recorded"),
            ("most", "Largest gain first"),
            ("least", "Smallest gain first"),
            ("lowest", "Lowest score first"),
        ),
        tag("button", "Reset", type="button", class_="reset"),
        tag("output", aria_live="polite"),
        class_="filters",
        aria_label="Filter and sort",
        autocomplete="off",
        hidden=True,
    )


_KEYS = (
    ("j", "next request"),
    ("k", "previous"),
    ("g", "first"),
    ("G", "last"),
    ("c", "open or close its critiques"),
    ("z", "enlarge its chosen picture, then ← and →"),
    ("s", "next order"),
    ("w", "next gain filter"),
    ("u", "with unscored pictures only"),
    ("r", "reset"),
    ("/", "search words"),
    ("Esc", "leave a field or a picture"),
    ("?", "this list"),
)


def _keys() -> Html:
    listed = (tag("li", tag("kbd", key), f" {what}") for key, what in _KEYS)
    note = tag(
        "p",
        "Filters, order and the request that one is at stand in the page's address: a link leads back to them.",
        class_="quiet",
    )
    return tag("details", tag("summary", "Keys"), tag("ul", *listed), note, class_="keys", hidden=True)


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
