"""Pictures, critiques and rewrites for a batch of requests, each made once whichever arms want it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..critic import Critic, CritiqueRequest
from ..generation import FlowGenerator
from ..pictures import open_picture, pixel_digest
from ..records import Critique, PromptRecord, Unscored, from_json, open_pictures, to_json
from ..rewards import RewardModel
from ..seeds import seed_for
from .images import ImageSource, Sampled, identity_of, streamed
from .rewriting import RewriteRequest, rewrite
from .shelf import Shelf, digest_of

Wanted = tuple[PromptRecord, str, int]
"""The original request, what to make a picture of, and which noise it begins from."""


@dataclass(frozen=True)
class Shot:
    """A picture with what was said of it; see :class:`~.trace.Made` for the fields."""

    picture: Image.Image | Path | Unscored
    critique: Critique
    judged: float | Unscored | None
    held_out: float | Unscored | None
    name: str

    @property
    def image(self) -> Image.Image:
        """The picture itself; only of one that could be made."""
        assert not isinstance(self.picture, Unscored)
        return self.picture if isinstance(self.picture, Image.Image) else open_picture(self.picture)


class Studio:
    """Makes and judges pictures for a batch of requests, each picture once.

    Args:
        generator: A loaded generator, or another source of pictures.
        critic: A loaded critic; ``None`` for arms that rewrite nothing, where ``reward`` picks.
        seed: Seed of the noise.
        blank: Red, green and blue of the blank picture that a rewriter is shown which may not see the real one.
        reward: A loaded reward model that picks instead of the critic.
        judge: A loaded reward model that has no part in the loop: its scores are only noted.
        shelf: Where pictures and answers are kept as they come; in memory if omitted.
        pictures_per_call: Pictures of one call of the generator; all that are wanted at once if omitted.
        sources: Source pictures of requests that are in no file, by the requests' ids.
    """

    def __init__(
        self,
        generator: FlowGenerator | ImageSource,
        critic: Critic | None,
        seed: int,
        blank: tuple[int, int, int] = (128, 128, 128),
        reward: RewardModel | None = None,
        judge: RewardModel | None = None,
        shelf: Shelf | None = None,
        pictures_per_call: int | None = None,
        sources: Mapping[str, tuple[Image.Image, ...]] | None = None,
    ) -> None:
        self.generator = generator
        self.critic = critic
        self.seed = seed
        self.blank = Image.new("RGB", (32, 32), blank)
        self.reward = reward
        self.judge = judge
        self.shelf = shelf or Shelf()
        self.pictures_per_call = pictures_per_call
        self._sources = dict(sources or {})
        self._shots: dict[tuple[str, str, int], Shot] = {}
        self._identities: dict[str, str] = {}

    def sources(self, record: PromptRecord) -> tuple[Image.Image, ...]:
        """A request's source pictures."""
        if record.id not in self._sources:
            self._sources[record.id] = open_pictures(record, record.sources)
        return self._sources[record.id]

    # -- pictures ----------------------------------------------------------------------------------------------------------

    def make(self, wanted: Sequence[Wanted]) -> list[Shot]:
        """Pictures, critiques and scores; those made before are not made again."""
        keys = [(record.id, request, copy) for record, request, copy in wanted]
        new = {key: record for key, (record, _, _) in zip(keys, wanted, strict=True) if key not in self._shots}
        names = {key: self._name(record, *key[1:]) for key, record in new.items()}
        pictures: dict[tuple[str, str, int], Image.Image | Path | Unscored] = {
            key: kept for key, name in names.items() if (kept := self.shelf.picture(name)) is not None
        }
        calls: dict[str, list[tuple[str, str, int]]] = {}
        for key, record in new.items():
            if key not in pictures:  # a call takes one set of source pictures
                calls.setdefault(record.id if record.sources else "", []).append(key)
        size = self.pictures_per_call
        parts = [keys[at : at + (size or len(keys))] for keys in calls.values() for at in range(0, len(keys), size or len(keys))]

        def sample(part: list[tuple[str, str, int]]) -> None:
            record = new[part[0]]
            seeds = [self._seed_of(new[key], key[2]) for key in part]
            for some in streamed(self.generator, [request for _, request, _ in part], self.sources(record), seeds):
                for index, picture in some:
                    pictures[part[index]] = self._kept(names[part[index]], picture)

        at_once = getattr(self.generator, "calls_at_once", 1)
        if at_once > 1 and len(parts) > 1:
            with ThreadPoolExecutor(at_once) as threads:
                list(threads.map(sample, parts))
        else:
            for part in parts:
                sample(part)
        self._judge_all(new, pictures, names)
        return [self._shots[key] for key in keys]

    def _seed_of(self, record: PromptRecord, copy: int) -> int:
        return seed_for(self.seed, "refine", record.id, copy)

    def _name(self, record: PromptRecord, request: str, copy: int) -> str:
        """What a picture is kept as: legible to people, and different wherever anything that it depends on is."""
        digest = digest_of(self._identity("generator"), request, self._source_digests(record), self._seed_of(record, copy))
        legible = "".join(c if c.isalnum() or c in "-_" else "_" for c in record.id)[:80]
        return f"{legible}_{copy}_{digest}"

    def _source_digests(self, record: PromptRecord) -> list[str]:
        return [pixel_digest(source) for source in self.sources(record)]

    def _kept(self, name: str, picture: Sampled) -> Image.Image | Path | Unscored:
        if isinstance(picture, Unscored):
            return Unscored(f"no picture: {picture.reason}")
        return self.shelf.keep_picture(name, picture.convert("RGB") if picture.mode != "RGB" else picture)

    # -- what is said of them ----------------------------------------------------------------------------------------------

    def _judge_all(
        self,
        new: Mapping[tuple[str, str, int], PromptRecord],
        pictures: Mapping[tuple[str, str, int], Image.Image | Path | Unscored],
        names: Mapping[tuple[str, str, int], str],
    ) -> None:
        made = [key for key in new if not isinstance(pictures[key], Unscored)]
        opened: dict[tuple[str, str, int], CritiqueRequest] = {}

        def asks(keys: Sequence[tuple[str, str, int]]) -> list[CritiqueRequest]:
            for key in keys:
                if key not in opened:
                    record, picture = new[key], pictures[key]
                    assert not isinstance(picture, Unscored)
                    image = picture if isinstance(picture, Image.Image) else open_picture(picture)
                    opened[key] = CritiqueRequest(record.task, record.prompt, image, self.sources(record))
            return [opened[key] for key in keys]

        critiques: dict[tuple[str, str, int], Critique] = {}
        if self.critic is not None and made:
            digests = {key: digest_of("critique", self._identity("critic"), new[key].prompt, names[key]) for key in made}
            critiques = {key: kept for key, digest in digests.items() if (kept := self._known_critique(digest)) is not None}
            unknown = [key for key in made if key not in critiques]
            for key, critique in zip(unknown, self.critic.critique(asks(unknown)) if unknown else (), strict=True):
                critiques[key] = critique
                if not critique.failure:
                    self.shelf.keep_answer(digests[key], to_json(critique))
        judged = dict(zip(made, _scores(self.reward, asks(made)), strict=True)) if self.reward and made else {}
        held_out = dict(zip(made, _scores(self.judge, asks(made)), strict=True)) if self.judge and made else {}
        for key, record in new.items():
            picture = pictures[key]
            critique = critiques.get(key) or self._silence(record, picture)
            self._shots[key] = Shot(picture, critique, judged.get(key), held_out.get(key), names[key])

    def _known_critique(self, digest: str) -> Critique | None:
        kept = self.shelf.answer(digest)
        return None if kept is None else from_json(Critique, kept)

    def _silence(self, record: PromptRecord, picture: Image.Image | Path | Unscored) -> Critique:
        if self.critic is None or not isinstance(picture, Unscored):
            return Critique({})
        rules = self.critic.format.rules
        return Critique.unscored(picture.reason, rules.keys(record.task), scale=rules.scale)

    # -- other words -------------------------------------------------------------------------------------------------------

    def rewrite_blind(self, records: Sequence[PromptRecord]) -> list[tuple[str, int]]:
        """Requests rewritten by the same critic without seeing any result: it is shown a blank picture.

        Returns:
            One request per record, the original where the critic gave none, and the tokens that it took.
        """
        found = self._anew([(record, self.blank, "", 0) for record in records], 0.0)
        return [(request or record.prompt, tokens) for record, (request, tokens) in zip(records, found, strict=True)]

    def rewrite_anew(self, wanted: Sequence[tuple[PromptRecord, Shot, int]], temperature: float) -> list[tuple[str, int]]:
        """Rewritten requests of further critiques of the same pictures, the given one of several; empty where there is none."""
        return self._anew([(record, shot.image, shot.name, number) for record, shot, number in wanted], temperature)

    def _anew(self, wanted: Sequence[tuple[PromptRecord, Image.Image, str, int]], temperature: float) -> list[tuple[str, int]]:
        assert self.critic is not None
        digests = [
            self._rewrite_digest("anew", record, name or self.blank.getpixel((0, 0)), number, temperature if number else 0.0)
            for record, _, name, number in wanted
        ]
        found = _Found(self.shelf, digests)
        for number in sorted({wanted[index][3] for index in found.missing}):
            some = [index for index in found.missing if wanted[index][3] == number]
            asks = [
                CritiqueRequest(record.task, record.prompt, image, self.sources(record))
                for record, image, _, _ in (wanted[index] for index in some)
            ]
            critiques = self.critic.critique(asks, seed=number, temperature=temperature if number else None)
            for index, critique in zip(some, critiques, strict=True):
                found.keep(index, critique.refined_request, critique.tokens)
        return found.all

    def rewrite_from(
        self, wanted: Sequence[tuple[PromptRecord, Shot, str, bool, int]], temperature: float
    ) -> list[tuple[str, int]]:
        """Requests rewritten from given critiques; see :mod:`.rewriting`.

        Args:
            wanted: The request, its picture, the critique to go on from as :func:`~.rewriting.told` writes it, whether the picture is
                shown, and which of several rewrites.
            temperature: Sampling temperature of all but the first.

        Returns:
            The rewritten requests, empty where there is none, and the tokens that they took.
        """
        assert self.critic is not None
        found = _Found(
            self.shelf,
            [
                # without a critique there is nothing to go on from
                self._rewrite_digest(
                    "from",
                    record,
                    shot.name if seen else self.blank.getpixel((0, 0)),
                    said,
                    number,
                    temperature if number else 0.0,
                )
                if said
                else None
                for record, shot, said, seen, number in wanted
            ],
        )
        asks = [
            RewriteRequest(record.task, record.prompt, shot.image if seen else self.blank, self.sources(record), said, number)
            for record, shot, said, seen, number in (wanted[index] for index in found.missing)
        ]
        for index, (request, tokens) in zip(found.missing, rewrite(self.critic, asks, temperature), strict=True):
            found.keep(index, request, tokens)
        return found.all

    def _rewrite_digest(self, how: str, record: PromptRecord, *settings: object) -> str:
        return digest_of(how, self._identity("critic"), record.prompt, self._source_digests(record), settings)

    def _identity(self, of: str) -> str:
        if of not in self._identities:
            if of == "generator":
                self._identities[of] = identity_of(self.generator)
            else:
                assert self.critic is not None
                c = self.critic
                settings = (c.max_tokens, c.temperature, c.reasks, c.reask_temperature, c.constrained, c.prose_tokens, c.expected)
                self._identities[of] = digest_of(c.chat.fingerprint, c.format.fingerprint, settings)
        return self._identities[of]


class _Found:
    """Rewrites in order: those that are on the shelf, and the numbers of those that are to be asked for.

    Args:
        shelf: Where they are kept.
        digests: What each is kept under; ``None`` for one that is not to be asked for.
    """

    def __init__(self, shelf: Shelf, digests: Sequence[str | None]) -> None:
        self.shelf = shelf
        self.digests = digests
        kept = [None if digest is None else shelf.answer(digest) for digest in digests]
        self.missing = [index for index, one in enumerate(kept) if one is None and digests[index] is not None]
        self.all: list[tuple[str, int]] = [("", 0) if one is None else (str(one[0]), int(one[1])) for one in kept]

    def keep(self, index: int, request: str, tokens: int) -> None:
        self.all[index] = (request, tokens)
        digest = self.digests[index]
        if request and digest is not None:
            self.shelf.keep_answer(digest, [request, tokens])


def _scores(model: RewardModel, asks: Sequence[CritiqueRequest]) -> list[float | Unscored]:
    rewards: Any = model.score(asks)
    return [
        value if valid else Unscored(reason)
        for value, valid, reason in zip(rewards.total.tolist(), rewards.valid.tolist(), rewards.reasons, strict=True)
    ]
