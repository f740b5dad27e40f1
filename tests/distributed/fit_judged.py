"""A program: one round of reward RL with canaries and diagnostics of the judge. ``fit_judged.py PROMPTS CANARIES OUT PROCESSES``."""

from __future__ import annotations

import sys
from pathlib import Path

import tiny
import torch
from lightning.pytorch.strategies import DDPStrategy
from rationalrewards.callbacks.canary import HackCanary
from rationalrewards.callbacks.judges import JudgeDiagnostics
from rationalrewards.components.shapes.truth import ShapesTruth


def main() -> None:
    """Train; every process writes what it has found."""
    prompts, canaries, out, processes = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    out.mkdir(exist_ok=True)
    canary = HackCanary(canaries, ShapesTruth(), every_n_epochs=1, limit=3, copies=2, output_dir=str(out / "canaries"))
    # as many groups in all, however many processes have a share of them
    trainer = tiny.trainer(
        devices=processes,
        strategy=DDPStrategy(process_group_backend="gloo") if processes > 1 else "auto",
        max_epochs=1,
        accumulate_grad_batches=4 // processes,
        callbacks=[canary, JudgeDiagnostics(groups=2 // processes)],
    )
    trainer.fit(tiny.rl_module(min_resolution=None), tiny.rl_data(prompts))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("judge/")}
    torch.save({"canary": canary.state_dict(), "metrics": metrics}, out / f"found{processes}_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
