"""How large a gallery of many requests is, how long writing it takes, and how soon it is there in headless Chromium.

    python benchmarks/gallery.py --requests 2000 --rounds 4 --side 512

Every request has one arm and its own pictures: no picture is shared, which is the most that a page of so many can hold. The pictures are
coloured noise of a natural spectrum (amplitude falling as 1/f) with no two alike, harder to compress than photographs are; texts are as
long as a critic's. Times are the browser's own, from the start of the navigation: first contentful paint; the first requests in place, with
and without pictures; the whole file read. ``filter`` is a sort of all requests by gain, in the page.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rationalrewards.components.pages import gallery_page
from rationalrewards.components.records import Candidate, Refinement

_TEXT = "a bright red fox under two tall pines at the lake in morning light with mist and soft shadows near a bridge"
_WORDS = _TEXT.split()
_ASPECTS = ("text_faithfulness", "image_faithfulness", "physical_quality", "text_rendering")
_PROBE = """
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) document.documentElement.setAttribute("data-" + entry.name, entry.startTime);
}).observe({ type: "paint", buffered: true });
const watch = () => {
  const root = document.documentElement, image = document.querySelector("main img");
  if (!root.hasAttribute("data-requests") && document.querySelector("main h2")) root.setAttribute("data-requests", performance.now());
  const drawn = image && image.complete && image.naturalWidth;
  if (drawn && !root.hasAttribute("data-picture")) root.setAttribute("data-picture", performance.now());
  if (!root.hasAttribute("data-picture")) requestAnimationFrame(watch);
};
requestAnimationFrame(watch);
addEventListener("load", () => {
  const root = document.documentElement;
  root.setAttribute("data-load", performance.now());
  const before = performance.now(), order = document.querySelector("[name=order]");
  order.value = "most";
  order.dispatchEvent(new Event("change", { bubbles: true }));
  document.body.offsetHeight;
  root.setAttribute("data-filter", performance.now() - before);
  // what is dumped need not hold the pictures
  document.querySelectorAll("body script").forEach((one) => one.remove());
});
"""


def photograph(rng: np.random.Generator, side: int) -> Image.Image:
    """Noise whose amplitude falls as 1/f, in three correlated channels."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1.0
    layers = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency, s=(side, side)) for _ in range(2)]
    first, second = ((layer - layer.mean()) / layer.std() for layer in layers)
    channels = np.stack([first, 0.8 * first + 0.3 * second, 0.6 * first - 0.5 * second], axis=-1)
    return Image.fromarray(np.clip(128 + 48 * channels, 0, 255).astype(np.uint8))


def requests(folder: Path, count: int, rounds: int, side: int, seed: int) -> list[Refinement]:
    """Requests with pictures on disk: a few large ones cut, turned and shifted in brightness, so that making them takes no hour."""
    rng, words = np.random.default_rng(seed), random.Random(seed)
    pool = [np.asarray(photograph(rng, 2 * side)) for _ in range(8)]
    rows = []
    for index in range(count):
        prompt = " ".join(words.choices(_WORDS, k=14)) + f" number {index}"
        made = []
        for round_ in range(rounds):
            x, y = rng.integers(0, side, 2)
            cut = np.rot90(pool[rng.integers(len(pool))][y : y + side, x : x + side], rng.integers(4)).astype(np.int16)
            path = folder / f"{index}-{round_}.png"
            Image.fromarray(np.clip(cut + rng.integers(-30, 30, 3), 0, 255).astype(np.uint8)).save(path, compress_level=1)
            aspects: dict[str, float | None] = {key: round(float(rng.uniform(1, 4)), 1) for key in _ASPECTS}
            reward = None if rng.random() < 0.02 else float(rng.random())
            critique = "# Detailed Judgement:\n" + " ".join(words.choices(_WORDS, k=220))
            asked = prompt if round_ == 0 else prompt.replace("number", "sharp and detailed, number")
            made.append(Candidate(round_, asked, str(path), critique, reward, "" if reward is not None else "cut off", aspects))
        best = max(range(rounds), key=lambda number: made[number].reward or 0.0)
        stop = words.choice(["images", "accepted", "rounds"])
        rows.append(Refinement(f"request-{index:05d}", "t2i", prompt, "refine_keep_best", tuple(made), best, stop))
    return rows


def opened(path: Path, window: str) -> dict[str, float]:
    """Milliseconds of one opening of a page that has the probe in it."""
    chromium = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if chromium is None:
        raise SystemExit("Chromium is not there; install it: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", f"--window-size={window}"]
        command = [chromium, *flags, f"--user-data-dir={profile}", "--timeout=20000", "--dump-dom", path.as_uri()]
        dumped = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    tag = re.search(r"<html[^>]*>", dumped)
    assert tag is not None
    found = dict(re.findall(r'data-([\w-]+)="([\d.]+)"', tag.group()))
    names = ("first-contentful-paint", "requests", "picture", "load", "filter")
    return {name: float(found[name]) for name in names if name in found}


def probed(text: str) -> str:
    """A page with the probe: its policy allows no script but its own, so the copy that is measured has none."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    return text.replace("<title>", f"<script>{_PROBE}</script><title>", 1)


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=4, help="pictures of each request")
    parser.add_argument("--side", type=int, default=512, help="pixels a side of every picture")
    parser.add_argument("--window", default="1200,900", help="width,height of the browser's window")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the page here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = requests(folder, args.requests, args.rounds, args.side, args.seed)
        started = time.perf_counter()
        text = gallery_page(records, f"{args.requests} requests")
        seconds = time.perf_counter() - started
        if args.keep is not None:
            args.keep.write_text(text, encoding="utf-8")
        page = folder / "gallery.html"
        page.write_text(probed(text), encoding="utf-8")
        runs = [opened(page, args.window) for _ in range(args.repeats)]
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    found: dict[str, Any] = {
        "requests": args.requests,
        "pictures": args.requests * args.rounds,
        "page_mb": round(len(text.encode()) / 1e6, 1),
        "data_mb": round(len(text[text.index('id="data"') : text.index('id="p0"')]) / 1e6, 1),
        "written_s": round(seconds, 1),
        "picture_side": int(re.findall(r'"width":(\d+)', text)[0]),
        "median_ms": {key: round(statistics.median(run[key] for run in runs)) for key in keys},
        "worst_ms": {key: round(max(run[key] for run in runs)) for key in keys},
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
