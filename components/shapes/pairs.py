"""Preference pairs of the shapes world: drawn pictures with known flaws, and the base generator's own pictures."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..generation import FlowGenerator
from ..generation.noise import seed_for
from ..records import Preference, PromptRecord, write_jsonl
from . import drawing, judge
from .phrases import Asked
from .scenes import COLOURS, PLACES, SHAPES, Edit, Letter, Scene, Shape, random_edit, random_scene, random_shape


@dataclass(frozen=True)
class _Item:
    prompt: str
    asked: Asked
    source: Scene | None
    edit: Edit | None


def _random_item(rng: random.Random, edit_share: float, letter_rate: float) -> _Item:
    style = rng.choice(("terse", "detailed"))
    scene = random_scene(rng, letter_rate)
    if rng.random() >= edit_share:
        prompt = scene.request(style)  # type: ignore[arg-type]
        return _Item(prompt, Asked(prompt), None, None)
    edit = random_edit(scene, rng)
    prompt = edit.request(style)  # type: ignore[arg-type]
    return _Item(prompt, Asked(prompt, scene), scene, edit)


def flawed(scene: Scene, rng: random.Random, changes: int) -> Scene:
    """A scene with some of its places changed: another colour, shape or both, something missing, added or another letter."""
    for place in rng.sample(PLACES, changes):
        thing = scene.at(place)
        if thing is None:
            scene = scene.put(place, random_shape(rng))
        elif isinstance(thing, Letter):
            scene = scene.put(place, rng.choice([Letter(c) for c in "AHLT" if c != thing.char] + [None]))
        else:
            colour = rng.choice([c for c in COLOURS if c != thing.colour])
            kind = rng.choice([k for k in SHAPES if k != thing.kind])
            wrong = (Shape(colour, thing.kind), Shape(thing.colour, kind), Shape(colour, kind), None)
            scene = scene.put(place, rng.choice(wrong))
    return scene


def drawn_candidate(
    target: Scene, source: Scene | None, rng: random.Random, changes: Sequence[int] = (0, 1, 1, 2, 2)
) -> Image.Image:
    """A drawn answer to a request: some places wrong (how many, is one of ``changes``), or damaged; an edit may come back undone."""
    scene = flawed(target, rng, rng.choice(changes))
    if source is not None and rng.random() < 0.15:
        scene = source
    image = drawing.draw(scene, drawing.random_shifts(rng))
    if rng.random() < 0.35:
        image = drawing.damage(image, rng.choice(drawing.DAMAGES), rng.uniform(0.2, 1.0), rng)
    return image


def human_label(difference: float, rng: random.Random, noise: float, tie: float) -> float:
    """A human-like label for a difference of true rewards: a tie below ``tie``, else the sign, wrong more often when close."""
    if abs(difference) < tie:
        return 0.5
    if noise <= 0:
        return float(difference > 0)
    return float(rng.random() < 1.0 / (1.0 + math.exp(-difference / noise)))


def write_preferences(
    folder: str | Path,
    count: int,
    seed: int,
    generator: FlowGenerator | None = None,
    generated_share: float = 0.5,
    edit_share: float = 0.25,
    label_noise: float = 0.04,
    tie: float = 0.03,
    steps: Sequence[int] = (4, 8),
    changes: Sequence[int] = (0, 1, 1, 2, 2),
    letter_rate: float = 0.3,
) -> Path:
    """Write a preference set: pictures and ``preferences.jsonl``.

    Args:
        folder: Where to.
        count: Number of pairs.
        seed: Seed; the same seed gives the same set.
        generator: A loaded generator of the shapes world; without, all pictures are drawn.
        generated_share: Share of pictures that the generator makes.
        edit_share: Share of pairs that are edits.
        label_noise: Scale of the human-like label noise in units of true reward (0...1); 0 for true labels.
        tie: Differences of true reward below this are ties.
        steps: Step counts that the generator's pictures are sampled with; one for both of a pair.
        changes: Numbers of wrong places that drawn pictures are given, each as likely.
        letter_rate: Share of requests that ask for a letter, and of edits whose source has one.

    Returns:
        Path of ``preferences.jsonl``.
    """
    folder = Path(folder)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed_for(seed, "pairs"))
    items = [_random_item(rng, edit_share, letter_rate) for _ in range(count)]
    sources = [drawing.draw(item.source, drawing.random_shifts(rng)) if item.source else None for item in items]
    pictures: dict[tuple[int, int], Image.Image] = {}
    wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, item in enumerate(items):
        call = (rng.choice(list(steps)), index if item.edit else -1)  # a call takes one source, and one number of steps
        for side in (0, 1):
            if generator is not None and rng.random() < generated_share:
                wanted.setdefault(call, []).append((index, side))
            else:
                pictures[index, side] = drawn_candidate(item.asked.scene, item.source, rng, changes)
    # one call per edit and a few for all others; shown on terminals only
    for (step_count, _), slots in tqdm(wanted.items(), desc=f"pairs in {folder.name}", unit="call", disable=None):
        assert generator is not None
        for start in range(0, len(slots), 64):
            batch = slots[start : start + 64]
            source = sources[batch[0][0]]
            generator.steps = step_count
            made = generator.sample(
                [items[index].prompt for index, _ in batch],
                [source] if source is not None else [],
                [seed_for(seed, "pair picture", index, side) for index, side in batch],
            )
            pictures.update(zip(batch, made, strict=True))
    records = []
    for index, (item, drawn_source) in enumerate(zip(items, sources, strict=True)):
        names = [folder / "pictures" / f"{index:05d}_{side}.png" for side in "ab"]
        for side, name in enumerate(names):
            pictures[index, side].save(name)
        source_names: tuple[str, ...] = ()
        if drawn_source is not None:
            source_names = (str(folder / "pictures" / f"{index:05d}_source.png"),)
            drawn_source.save(source_names[0])
        first, second = judge.read([pictures[index, 0], pictures[index, 1]])
        label = human_label(item.asked.reward(first) - item.asked.reward(second), rng, label_noise, tie)
        records.append(
            Preference(
                id=f"shapes-{seed}-{index:05d}",
                task="edit" if item.edit else "t2i",
                prompt=item.prompt,
                candidates=(str(names[0]), str(names[1])),
                label=label,
                sources=source_names,
                origin=f"shapes world, seed {seed}",
            )
        )
    path = folder / "preferences.jsonl"
    write_jsonl(path, records)
    return path


def write_prompts(folder: str | Path, count: int, seed: int, edit_share: float = 0.0, style: str | None = "terse") -> Path:
    """Write requests to generate from: ``prompts.jsonl`` and the source pictures of its edits.

    Args:
        folder: Where to.
        count: Number of requests.
        seed: Seed; disjoint seeds give practically disjoint requests.
        edit_share: Share of edits.
        style: ``"terse"``, ``"detailed"`` or ``None`` for both.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed_for(seed, "prompts"))
    records = []
    for index in range(count):
        scene = random_scene(rng)
        chosen = style or rng.choice(("terse", "detailed"))
        if rng.random() < edit_share:
            path = folder / f"{index:05d}_source.png"
            drawing.draw(scene, drawing.random_shifts(rng)).save(path)
            prompt = random_edit(scene, rng).request(chosen)  # type: ignore[arg-type]
            records.append(PromptRecord(f"shapes-prompt-{seed}-{index:05d}", "edit", prompt, (str(path),)))
        else:
            records.append(PromptRecord(f"shapes-prompt-{seed}-{index:05d}", "t2i", scene.request(chosen)))  # type: ignore[arg-type]
    path = folder / "prompts.jsonl"
    write_jsonl(path, records)
    return path
