"""A program: two rounds of reward RL on two CPU processes. ``fit_rl.py PROMPTS OUT``; Lightning starts the second process."""

from __future__ import annotations

import sys
from pathlib import Path

import tiny
import torch
from lightning.pytorch.strategies import DDPStrategy
from test_rl import Advantages, LosesSome, module


def main() -> None:
    """Train; every process writes its advantages, the first one the adapters."""
    prompts, out = map(Path, sys.argv[1:])
    said = Advantages()
    trainer = tiny.trainer(
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=2,
        # a round of one batch on each of two processes, visited twice
        accumulate_grad_batches=2,
        callbacks=[said],
    )
    trained = module(LosesSome(prompts))
    trainer.fit(trained, tiny.rl_data(prompts))
    torch.save(said.rows, out / f"advantages{trainer.global_rank}.pt")
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save({"adapters": tiny.adapters(trained), "metrics": metrics}, out / "trained.pt")


if __name__ == "__main__":
    main()
