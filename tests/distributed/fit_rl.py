"""A program: two rounds of reward RL on two CPU processes. ``fit_rl.py PROMPTS OUT OBJECTIVE``; Lightning starts the second process."""

from __future__ import annotations

import sys
from pathlib import Path

import tiny
import torch
from lightning.pytorch.strategies import DDPStrategy
from test_rl import Advantages, Frozen, module


def main() -> None:
    """Train; every process writes its advantages, the first one the adapters."""
    prompts, out, objective = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    said = Advantages()
    trainer = tiny.trainer(
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=2,
        # a round of one batch on each of two processes, visited twice
        accumulate_grad_batches=2,
        callbacks=[said, Frozen()],
    )
    trained = module(objective, prompts)
    trainer.fit(trained, tiny.rl_data(prompts))
    torch.save(said.rows, out / f"advantages{trainer.global_rank}.pt")
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save({"adapters": tiny.adapters(trained), "metrics": metrics}, out / "trained.pt")


if __name__ == "__main__":
    main()
