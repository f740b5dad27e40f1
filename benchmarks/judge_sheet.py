"""Draw a sheet of generated pictures with what the ground-truth judge reads in each, to be looked at.

``python benchmarks/judge_sheet.py --out sheet.png`` samples the embedded base generator on fresh requests (half at 4 steps,
half at 8) and writes the judge's reading of every place under its picture. What a person sees is not asked of the program.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw
from rationalrewards.components.generation.noise import seed_for
from rationalrewards.components.shapes.judge import read
from rationalrewards.components.shapes.make_data import shapes_generator
from rationalrewards.components.shapes.scenes import PLACES, describe, random_scene

ZOOM, TEXT, COLUMNS = 5, 62, 8


def main() -> None:
    """Sample, read, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    prompts = [random_scene(rng).request(rng.choice(("terse", "detailed"))) for _ in range(options.pictures)]
    images: list[Image.Image] = []
    for steps, half in ((4, prompts[: options.pictures // 2]), (8, prompts[options.pictures // 2 :])):
        generator = shapes_generator(steps)
        generator.load()
        images += generator.sample(half, [], [seed_for(options.seed, "sheet", steps, index) for index in range(len(half))])
    side = 32 * ZOOM
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (side + 8), rows * (side + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, reading) in enumerate(zip(images, read(images), strict=True)):
        left, top = index % COLUMNS * (side + 8), index // COLUMNS * (side + TEXT)
        sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, top))
        words = [f"{place}: {describe(reading.scene.at(place))}" for place in PLACES]
        draw.multiline_text(
            (left + 2, top + side + 1), f"{index} quality {reading.quality:.1f}\n" + "\n".join(words), "black", spacing=0
        )
    sheet.save(options.out)


if __name__ == "__main__":
    main()
