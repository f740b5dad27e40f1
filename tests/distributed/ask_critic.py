"""Asks a critic: ``ask_critic.py OUT`` alone, or in two processes that share its weights (FSDP2) and have unequal work."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import torch
from rationalrewards.components.backbone import shard
from rationalrewards.components.chat import TransformersChat
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene
from torch.distributed.device_mesh import init_device_mesh


def requests_of(rank: int) -> list[CritiqueRequest]:
    """Five requests for the first process, one for the second."""
    rng = random.Random(rank)
    return [CritiqueRequest("t2i", random_scene(rng).request(), draw(random_scene(rng))) for _ in range(1 if rank else 5)]


def main(out: Path) -> None:
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    chat = TransformersChat("embedded:shapes-critic", batch_size=2)
    chat.load()
    if shared:
        torch.distributed.init_process_group("gloo")
        shard(chat.model, init_device_mesh("cpu", (2,)))
    for rank in [torch.distributed.get_rank()] if shared else [0, 1]:
        # what the untrained critic writes cannot be read, so that it is asked again: other processes must come along
        critiques = Critic(chat, CritiqueFormat("shapes"), max_tokens=40, reasks=2).critique(requests_of(rank))
        (out / f"{rank}.json").write_text(json.dumps([critique.text for critique in critiques]))
    if shared:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
