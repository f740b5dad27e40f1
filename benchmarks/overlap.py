"""How long a round of reward RL takes when the critic is slow: rewards after sampling, during sampling, and during training too.

    python benchmarks/overlap.py [--unit 0.5] [--batches 8] [--out FILE]

Everything is real (RewardRLModule, OpenAIChat, a server on this machine) but the time it takes: sampling a batch, scoring it and
training on it are stretched to s, r and t units by waiting, and the server works on w batches at once. So what is measured is the
schedule. Three ways: ``sequential`` scores when all is sampled (as with a critic in this process), ``during sampling`` asks as pictures
come into being and trains when all rewards are in (what other trainers do), ``streaming`` trains on a batch as soon as its rewards are
in. Beside each stands the critical path, computed; a way that is more than 10 % above it is marked.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from rationalrewards.components.chat import OpenAIChat
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.generation import FlowGenerator, Recording
from rationalrewards.components.records import AspectCritique, Critique
from rationalrewards.components.rewards import CritiqueReward
from rationalrewards.components.shapes.pairs import write_prompts
from rationalrewards.components.shapes.tiny_generator import PIPELINE_KWARGS
from rationalrewards.datamodules import PromptDataModule
from rationalrewards.datamodules.prompts import RolloutBatch
from rationalrewards.lightning_modules import RewardRLModule
from torch import Tensor

GROUP = 2
ROWS = ((1, 4, 4, 1), (1, 16, 4, 4), (1, 8, 1, 4), (1, 4, 4, 4), (1, 1, 4, 4))
"""Units of sampling, scoring and training a batch, and batches that the server works on at once."""
WAYS = ("sequential", "during sampling", "streaming")


class Server(ThreadingHTTPServer):
    """A critic that takes its time: ``at_once`` requests are worked on, ``seconds`` each, the others wait."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, seconds: float, at_once: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seconds = seconds
        self.places = threading.Semaphore(at_once)
        self.count = 0


class Handler(BaseHTTPRequestHandler):
    """Scores 1 to 4 in turn."""

    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._say({"object": "list", "data": [{"id": "critic", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.places:
            time.sleep(self.server.seconds)
            self.server.count += 1
            score = 1.0 + self.server.count % 4  # members of a group differ
        aspects = {key: AspectCritique("so", score) for key in ("text_faithfulness", "physical_quality", "text_rendering")}
        text = CritiqueFormat().render(Critique(aspects, "so", "more", "a red circle"), "t2i")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self._say({"id": "1", "object": "chat.completion", "created": 0, "model": "critic", "choices": [choice], "usage": usage})

    def _say(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def stretched(began: float, seconds: float) -> None:
    """Wait until ``seconds`` after ``began``."""
    time.sleep(max(0.0, began + seconds - time.perf_counter()))


class SlowGenerator(FlowGenerator):
    """The embedded generator; every call takes ``seconds``."""

    seconds = 0.0

    def record(self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int], *args: Any) -> Recording:
        began = time.perf_counter()
        recording = super().record(prompts, sources, seeds, *args)
        stretched(began, self.seconds)
        return recording


class SlowModule(RewardRLModule):
    """Training on a batch takes ``seconds``; rewards are all waited for first, if so told."""

    seconds = 0.0
    wait_for_all = False

    def on_train_epoch_start(self) -> None:
        self.began = time.perf_counter()
        super().on_train_epoch_start()
        if self.wait_for_all:
            self._complete()

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        began = self.scored if self.scored > self.last else self.last
        stretched(began, self.seconds)
        self.last = time.perf_counter()
        return loss

    scored = last = 0.0

    def _loss(self, batch: RolloutBatch) -> Tensor:
        assert self._round is not None
        self._round.advantages(batch.index)  # waiting for rewards is not training
        self.scored = time.perf_counter()
        return super()._loss(batch)


class Clock(Callback):
    """Seconds of the second round: the first one also loads and learns."""

    seconds = 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seconds = time.perf_counter() - pl_module.began


def critical_path(s: float, r: float, t: float, w: int, batches: int, way: str) -> float:
    """Length of the schedule in units, by simulation of the servers' places."""
    asked = [batches * s] * batches if way == "sequential" else [(number + 1) * s for number in range(batches)]
    free, scored = [0.0] * w, []
    for at in asked:
        place = min(range(w), key=lambda index: free[index])
        free[place] = max(free[place], at) + r
        scored.append(free[place])
    clock = batches * s
    if way != "streaming":
        clock = max(clock, *scored)
    for ready in scored:
        clock = max(clock, ready) + t
    return clock


def measured(row: tuple[int, int, int, int], way: str, arguments: argparse.Namespace, prompts: str) -> float:
    """Seconds of a round."""
    s, r, t, w = row
    server = Server(r * arguments.unit, w * GROUP)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        chat = OpenAIChat("critic", f"http://127.0.0.1:{server.server_address[1]}/v1", concurrency=256, ready_timeout=0)
        generator = SlowGenerator(
            "embedded:shapes-generator", steps=2, pipeline_kwargs=dict(PIPELINE_KWARGS), rank=4, alpha=8, targets=("to_q",)
        )
        reward = CritiqueReward(Critic(chat, CritiqueFormat(), expected=False), sanity=None)
        module = SlowModule(
            generator, reward, min_resolution=None, background=way != "sequential", optimizer=torch.optim.SGD, seed=1
        )
        generator.seconds, module.seconds = s * arguments.unit, t * arguments.unit
        module.wait_for_all = way == "during sampling"
        data = PromptDataModule(prompts, groups_per_epoch=arguments.batches, group_size=GROUP, batch_size=GROUP, visits=1, seed=1)
        clock = Clock()
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            accumulate_grad_batches=arguments.batches,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        return clock.seconds
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unit", type=float, default=0.5, help="seconds")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(len(ROWS))), help="numbers of the rows to measure")
    parser.add_argument("--out", help="JSON file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    results = []
    print(f"| s, r, t, w | {' | '.join(WAYS)} |\n|---|{'---:|' * len(WAYS)}")
    with tempfile.TemporaryDirectory() as folder:
        prompts = str(write_prompts(Path(folder), 2 * arguments.batches, 5, 0.0, style="detailed"))
        for number in arguments.rows:
            cells = []
            for way in WAYS:
                path = critical_path(*ROWS[number], arguments.batches, way)
                found = measured(ROWS[number], way, arguments, prompts) / arguments.unit
                results.append({"row": ROWS[number], "way": way, "critical_path": path, "measured": found})
                cells.append(f"{found:.1f} ({path:g}){'' if found <= 1.1 * path else ' !'}")
            print(f"| {re.sub('[()]', '', str(ROWS[number]))} | {' | '.join(cells)} |", flush=True)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
