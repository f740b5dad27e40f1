"""A refinement that is killed at random instants on two processes, and started again on one, until it is finished."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
from rationalrewards.components.pictures import open_picture
from rationalrewards.components.records import Refinement, read_jsonl
from support import ROOT, run_python

WORLD = '''
"""A painter that takes its time and says what it begins, and a critic that sees."""

import os
import random
import time

import tiny
from rationalrewards.components.chat import ChatModel
from rationalrewards.components.refine import ImageSource
from rationalrewards.components.shapes import judge
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.pairs import flawed
from rationalrewards.components.shapes.phrases import Asked


class SlowPainter(ImageSource):
    @property
    def identity(self) -> str:
        return "the slow painter"

    def sample(self, prompts, sources, seeds):
        return [image for part in self.stream(prompts, sources, seeds) for _, image in part]

    def stream(self, prompts, sources, seeds):
        source = judge.read(sources[:1])[0].scene if sources else None
        for index, (prompt, seed) in enumerate(zip(prompts, seeds)):
            with open(os.environ["BEGUN"], "a") as file:
                file.write(f"{prompt} {seed}\\n")
            time.sleep(float(os.environ.get("SLOW", "0")))
            rng = random.Random(seed)
            yield [(index, draw(flawed(Asked(prompt, source).scene, rng, rng.choice((1, 2)))))]


def critic() -> ChatModel:
    return tiny.truthful()
'''

ARMS = ["best_of_n", "blind_rewrite", "refine_keep_best", "refine_shuffled"]


def command(requests: Path, out: Path, processes: int) -> list[str]:
    writer = {"class_path": "rationalrewards.callbacks.RefinementWriter", "init_args": {"output_dir": str(out)}}
    return [
        *("-m", "rationalrewards", "predict", "--config", str(ROOT / "configs" / "refine" / "arms.yaml")),
        *(
            "--model.init_args.generator",
            "slow_world.SlowPainter",
            "--model.init_args.critic.init_args.chat",
            "slow_world.critic",
        ),
        *(f"--model.init_args.arms={json.dumps(ARMS)}", "--model.init_args.options.images_per_prompt=5"),
        *("--model.init_args.options.breadth=2", "--model.init_args.options.threshold=4.0"),
        *(f"--data.init_args.predict={requests}", "--data.init_args.eval_batch_size=2"),
        *("--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *(f"--trainer.devices={processes}", "--trainer.strategy=ddp" if processes > 1 else "--trainer.strategy=auto"),
        f"--trainer.callbacks={json.dumps([writer])}",
    ]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def finished(out: Path) -> dict[tuple[str, str], tuple[Any, ...]]:
    """What is on file of every request and arm, the pictures' pixels included."""
    found: dict[tuple[str, str], tuple[Any, ...]] = {}
    for one in read_jsonl(out / "refinements.jsonl", Refinement):
        assert (one.id, one.arm) not in found
        made = [(c.request, c.reward, c.held_out, c.tokens, c.copy, open_picture(c.image).tobytes()) for c in one.candidates]
        found[one.id, one.arm] = (one.prompt, one.chosen, one.stop, made)
    return found


@pytest.mark.slow
def test_killed_at_random_and_started_again(tmp_path: Path) -> None:
    (tmp_path / "slow_world.py").write_text(WORLD)
    requests = tiny.requests(tmp_path / "requests", 16, edit_share=0.5, seed=3)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tests")]), "SHAPES_OUT": str(tmp_path)}
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    begun = {name: tmp_path / f"{name}.txt" for name in ("undisturbed", "killed")}
    done = run_python(command(requests, undisturbed, 1), timeout=300, env={**environment, "BEGUN": str(begun["undisturbed"])})
    assert done.returncode == 0, done.stderr[-4000:]
    once = Counter(lines(begun["undisturbed"]))
    assert set(once.values()) == {1} and len(once) > 60  # arms share their pictures
    assert len(list((undisturbed / "pictures").glob("*.png"))) == len(once)

    rng = random.Random(5)
    environment["BEGUN"] = str(begun["killed"])
    kills, processes = 2, 2
    for _ in range(kills):
        seen = len(lines(begun["killed"]))
        process = subprocess.Popen(
            [sys.executable, *command(requests, out, processes)],
            env={**os.environ, **environment, "SLOW": "0.1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            # the instant counts from the first new picture on: starting takes long, and nothing happens in it
            deadline = time.monotonic() + 240
            while len(lines(begun["killed"])) <= seen and process.poll() is None:
                assert time.monotonic() < deadline, "no new picture"
                time.sleep(0.02)
            # about a third of what two processes have to do: 80 pictures, a tenth of a second each
            time.sleep(rng.uniform(0.5, 1.5))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL, "it finished before it was killed"
    assert 0 < len(list((out / "pictures").glob("*.png"))) < len(once)
    done = run_python(command(requests, out, 1), timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]

    again = Counter(lines(begun["killed"]))
    # shuffled critiques come from the batch's next request, and two processes have other batches than one
    shared = {key: value for key, value in finished(out).items() if key[1] != "refine_shuffled"}
    assert shared == {key: value for key, value in finished(undisturbed).items() if key[1] != "refine_shuffled"}
    # a picture that was on file was never made again: only what was under way at a kill, one for each process
    assert sum(count - 1 for count in again.values()) <= kills * processes
    assert len(list((out / "pictures").glob("*.png"))) == len(again)
    assert not list(out.glob("refinements.rank*.jsonl"))
