"""Critiques per second: plain ``generate`` of transformers, one request at a time over HTTP, and our savings added in turn.

    python benchmarks/critic.py CRITIC PAIRS [--requests 96] [--batch-size 16] [--rubric shapes] [--rounds 5] [--http 8] [--only ...]

CRITIC is a trained critic's folder, PAIRS a folder with ``preferences.jsonl``; ``make quickstart`` leaves both, as
``quickstart/distill/critic`` and ``quickstart/data/test``. All ways see the same pictures in the same order and take turns,
``--rounds`` times each after one round that is not counted; medians are shown. Scores right is the share of aspect scores that are
the ground truth's to a quarter of a point, for pictures of the shapes world.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rationalrewards.components.chat import ChatReply, ChatRequest, OpenAIChat, TransformersChat, decoding, transformers_chat
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.grammar import REFINEMENT_HEADING
from rationalrewards.components.pictures import open_picture
from rationalrewards.components.records import Preference, read_jsonl
from rationalrewards.components.shapes import judge
from rationalrewards.components.shapes.phrases import Asked


@dataclass
class Way:
    """One way to ask, and what it cost in each round."""

    name: str
    ask: Callable[[], list[ChatReply]]
    count: int
    seconds: list[float]
    forwards: int = 0
    memory: float = 0.0
    replies: Sequence[ChatReply] = ()


def plain_generate(chat: TransformersChat, requests: Sequence[ChatRequest], batch_size: int) -> list[ChatReply]:
    """What anybody would write with transformers: batches in the given order, decoded at the end."""
    tokenizer, replies = chat.processor.tokenizer, []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        inputs = chat.encode(batch)
        with torch.no_grad():
            output = chat.model.generate(**inputs, max_new_tokens=batch[0].max_tokens, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] :]
        for text, answer, mask in zip(
            tokenizer.batch_decode(answers, skip_special_tokens=True), answers.tolist(), inputs["attention_mask"], strict=True
        ):
            length = answer.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in answer else len(answer)
            replies.append(ChatReply(text, prompt_tokens=int(mask.sum()), completion_tokens=length))
    return replies


@contextmanager
def switches(sharing: bool, leaving: bool) -> Iterator[None]:
    """Savings of the decode loop switched off."""
    before = transformers_chat._WORTH_SHARING, decoding._LEAVE_SHARE
    transformers_chat._WORTH_SHARING = before[0] if sharing else 10**9
    decoding._LEAVE_SHARE = before[1] if leaving else 1.0
    try:
        yield
    finally:
        transformers_chat._WORTH_SHARING, decoding._LEAVE_SHARE = before


@contextmanager
def serve(folder: str) -> Iterator[OpenAIChat]:
    """``transformers serve`` of the critic, asked one request at a time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
        yield OpenAIChat(str(Path(folder).resolve()), f"http://127.0.0.1:{port}/v1", concurrency=1)
    finally:
        server.terminate()
        server.wait()


@contextmanager
def peak_memory(way: Way) -> Iterator[None]:
    """The most memory that the process held meanwhile, looked at 50 times a second, in MB."""
    process, over = psutil.Process(), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            way.memory = max(way.memory, process.memory_info().rss / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def read_requests(folder: str, count: int) -> tuple[list[CritiqueRequest], list[dict[str, float | None]]]:
    """Pictures to judge, and the ground truth's aspect scores of them."""
    requests, truths = [], []
    for pair in read_jsonl(Path(folder) / "preferences.jsonl", Preference):
        sources = tuple(open_picture(path) for path in pair.sources)
        asked = Asked(pair.prompt, judge.read(list(sources))[0].scene if sources else None)
        for path in pair.candidates:
            image = open_picture(path)
            requests.append(CritiqueRequest(pair.task, pair.prompt, image, sources))
            truths.append(asked.scores(judge.read([image])[0]))
            if len(requests) == count:
                return requests, truths
    return requests, truths


def right(format: CritiqueFormat, requests: Sequence[CritiqueRequest], truths: Any, replies: Sequence[ChatReply]) -> float:
    """Share of aspect scores within a quarter of a point of the ground truth's; an unreadable one is wrong."""
    hits = total = 0
    for request, truth, reply in zip(requests, truths, replies, strict=False):
        critique = format.parse(reply.text, request.task)
        for key, expected in truth.items():
            score = critique.score(key)
            total += 1
            hits += (
                abs(score - expected) <= 0.25 if isinstance(score, float) and expected is not None else expected is score is None
            )
            hits += type(score).__name__ == "NotApplicable" and expected is None
    return hits / total


def reuse(chat: TransformersChat, requests: Sequence[CritiqueRequest]) -> dict[str, float]:
    """Share of prompt tokens that all prompts of a task begin with, by our order and with the request first."""
    format, picture = CritiqueFormat(), chat.processor.image_token_id
    shares = {}
    asks = [r for r in requests if r.task == "t2i"]
    for name in ("rubric first", "request first"):
        prompts = []
        for request in asks:
            system, user = format.pointwise_messages(request.task, request.prompt, request.sources, request.image)
            if name == "request first":
                *before, words = user["content"]
                system, user = {"role": "user", "content": [words, *system["content"], *before]}, {"role": "user", "content": []}
            ids = chat.encode([ChatRequest([system, user])])["input_ids"][0].tolist()
            prompts.append(ids)
        shares[name] = decoding.common_prefix(prompts, picture) * len(prompts) / sum(map(len, prompts))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("critic")
    parser.add_argument("pairs")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--large-batch", type=int, default=96)
    parser.add_argument("--rubric", default="shapes")
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--http", type=int, default=8, help="requests sent over HTTP; 0 leaves that way out")
    parser.add_argument("--only", nargs="*", help="names of the ways to run, as the table has them; all if omitted")
    arguments = parser.parse_args()
    format = CritiqueFormat(arguments.rubric)
    requests, truths = read_requests(arguments.pairs, arguments.requests)
    chat = TransformersChat(arguments.critic, batch_size=arguments.batch_size)
    chat.load()
    large = TransformersChat(arguments.critic, batch_size=arguments.large_batch).attach(chat.model, chat.processor)
    messages = [format.pointwise_messages(r.task, r.prompt, r.sources, r.image) for r in requests]
    whole = [ChatRequest(turns, arguments.max_tokens) for turns in messages]
    short = [replace(ask, stop=(REFINEMENT_HEADING,)) for ask in whole]
    forms = {task: format.pointwise_form(task, refinement=False) for task in ("t2i", "edit")}
    forced = [replace(ask, form=forms[request.task]) for ask, request in zip(short, requests, strict=True)]

    def ours(model: TransformersChat, asks: Sequence[ChatRequest], sharing: bool, leaving: bool) -> Callable[[], list[ChatReply]]:
        def ask() -> list[ChatReply]:
            with switches(sharing, leaving):
                return model.complete(asks)

        return ask

    def expected() -> list[ChatReply]:
        critic = Critic(large, format, arguments.max_tokens, reasks=0, constrained=True, expected=True)
        critic.critique(requests, refinement=False)
        return []

    ways = [
        Way("plain generate", lambda: plain_generate(chat, whole, arguments.batch_size), len(requests), []),
        Way("+ room in the cache", ours(chat, whole, False, False), len(requests), []),
        Way("+ ended rows leave", ours(chat, whole, False, True), len(requests), []),
        Way("+ common beginning once", ours(chat, whole, True, True), len(requests), []),
        Way("+ no refinement", ours(chat, short, True, True), len(requests), []),
        Way("+ form forced", ours(chat, forced, True, True), len(requests), []),
        Way(f"+ batches of {arguments.large_batch}", ours(large, forced, True, True), len(requests), []),
        Way("+ expected scores", expected, len(requests), []),
    ]
    ways = [way for way in ways if arguments.only is None or way.name in arguments.only]
    forwards = [0]
    chat.model.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))

    def race(ways: Sequence[Way]) -> None:
        for round in range(arguments.rounds + 1):
            for way in ways:
                forwards[0], start = 0, time.perf_counter()
                with peak_memory(way):
                    way.replies = way.ask()
                if round:  # the first warms up
                    way.seconds.append(time.perf_counter() - start)
                way.forwards = forwards[0]

    if arguments.http:
        with serve(arguments.critic) as server:
            ways.insert(0, Way("one at a time over HTTP", lambda: server.complete(whole[: arguments.http]), arguments.http, []))
            race(ways)
    else:
        race(ways)

    first = next((way for way in ways if way.name == "plain generate"), ways[0])
    pace = first.count / statistics.median(first.seconds)
    print(
        f"{len(requests)} critiques, batches of {arguments.batch_size}, {torch.get_num_threads()} threads, medians of {arguments.rounds}\n"
    )
    print("| | critiques/s | times plain | prompt tokens | reused | generated | forwards | peak MB | scores right |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for way in ways:
        rate = way.count / statistics.median(way.seconds)
        tokens = [
            sum(getattr(reply, name) for reply in way.replies) for name in ("prompt_tokens", "reused_tokens", "completion_tokens")
        ]
        counts = [*tokens, way.forwards, f"{way.memory:.0f}"] if way.replies and way.forwards else [*tokens, "", ""]
        counts = counts if way.replies else ["", "", "", way.forwards, f"{way.memory:.0f}"]
        hits = f"{right(format, requests, truths, way.replies):.3f}" if way.replies else ""
        print(f"| {way.name} | {rate:.2f} | {rate / pace:.2f} | {' | '.join(map(str, counts))} | {hits} |")
    shares = reuse(chat, requests)
    print(
        f"\nPrompt tokens that all begin with, default rubric: {json.dumps({name: round(share, 3) for name, share in shares.items()})}"
    )


if __name__ == "__main__":
    main()
