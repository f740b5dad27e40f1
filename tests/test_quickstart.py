"""The whole job at the smallest sizes, killed in the middle of RL and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from rationalrewards.callbacks import read_history
from support import run_python

SIZES = {
    "pairs": 24,
    "test-pairs": 12,
    "rl-prompts": 12,
    "eval-prompts": 6,
    "eval-copies": 2,
    # far too few to learn anything: the job has to come through with a critic that says nothing readable
    "distill-steps": 3,
    # enough that the kill after the first checkpoint falls in the middle
    "rl-updates": 8,
    "untrained-pairs": 4,
    "images-per-prompt": 2,
}
STAGES = ["data", "rationalize", "distill", "evaluate", "rl", "refine"]

CONTRACT: dict[str, set[str]] = {
    "critic": {
        *("pair_accuracy", "pair_accuracy_ci95", "n_pairs", "unscored_rate", "untrained_pair_accuracy"),
        *("within_group_corr", "aspect_mae"),
    },
    "rationales": {"pairs", "anchored", "kept", "kept_rate", "reasons"},
    "rl": {
        *("exact_before", "exact_after", "truth_before", "truth_after", "reward_before", "reward_after", "updates"),
    },
    "refine": {"base", "best_of_n", "blind_rewrite_best_of_n", "refine_keep_best", "images_per_prompt", "harm_rate"},
}
"""The keys that others rely on."""

RATES = {
    "critic": ("pair_accuracy", "unscored_rate", "tie_rate", "untrained_pair_accuracy", "untrained_tie_rate"),
    "rationales": ("kept_rate", "right_label_pass_rate", "wrong_label_pass_rate"),
    "rl": ("exact_before", "exact_after"),
    "refine": ("base", "best_of_n", "blind_rewrite_best_of_n", "refine_keep_best", "harm_rate"),
}
"""Each has a 95 % interval beside it."""


def command(out: Path, **changes: int) -> list[str]:
    sizes = [f"--{name}={value}" for name, value in {**SIZES, **changes}.items()]
    return ["-m", "rationalrewards.quickstart", "--out", str(out), "--any-critic", *sizes]


def strict(path: Path) -> Any:
    """A JSON file, read by the letter: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path.name} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


class Loads(HTMLParser):
    """What a browser would fetch to show a page; following a link is the reader's own doing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "srcset", "data", "poster", "background", "xlink:href", "style"} | (set() if tag == "a" else {"href"})
        self.found += [value or "" for name, value in attrs if name in names]

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("style", "script"):
            self.found += re.findall(r"(?:url\(|@import|fetch\(|import\()\s*[\"']?([^\"')\s]+)", data)


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(tmp_path: Path) -> None:
    out = tmp_path / "job"
    checkpoint = out / "rl" / "checkpoints" / "last.ckpt"
    with (tmp_path / "first.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command(out)], stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ), start_new_session=True
        )
        try:
            deadline = time.monotonic() + 900
            while not checkpoint.is_file() and process.poll() is None:
                assert time.monotonic() < deadline, (tmp_path / "first.log").read_text()[-3000:]
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "first.log").read_text()[-3000:]
    # killed after the first round and before the last, four stages behind it
    assert 1 <= torch.load(checkpoint)["global_step"] < SIZES["rl-updates"]
    finished = {stage: (out / stage / "done.json").stat().st_mtime_ns for stage in STAGES[:4]}
    assert not (out / "rl" / "done.json").exists()
    asked = (out / "rationalize" / "ledger.db").read_bytes()

    second = run_python(command(out), timeout=900)
    assert second.returncode == 0, second.stderr[-4000:]
    for number, stage in enumerate(STAGES, start=1):
        assert (f"[{number}/6] {stage}: done before" in second.stdout) == (stage in finished)
    assert {stage: (out / stage / "done.json").stat().st_mtime_ns for stage in finished} == finished
    assert (out / "rationalize" / "ledger.db").read_bytes() == asked
    # the interrupted stage went on: each round is there once
    assert [line["epoch"] for line in read_history(out / "rl" / "history.jsonl")] == list(range(SIZES["rl-updates"]))

    summary = strict(out / "summary.json")
    assert summary["seed"] == 42
    assert set(summary["wall_seconds"]) == set(STAGES)
    assert 0.0 < summary["peak_rss_gb"] < 6.0
    for section, keys in CONTRACT.items():
        assert keys <= summary[section].keys(), section
    for section, names in RATES.items():
        for name in names:
            rate = summary[section][name]
            if rate is None:  # no case, no rate: of so few pairs none may be in the control
                assert summary[section][f"{name}_n"] == 0
                continue
            low, high = summary[section][f"{name}_ci95"]
            # the Wilson interval of 0 or 1 ends there but for rounding
            assert 0.0 <= low <= rate + 1e-9 and rate - 1e-9 <= high <= 1.0, (section, name)
    critic = summary["critic"]
    assert critic["aspect_mae"].keys() == critic["aspect_mae_ci95"].keys() == critic["aspect_mae_n"].keys()
    assert critic["within_group_corr_n"] <= SIZES["eval-prompts"] * SIZES["eval-copies"]
    assert "within_group_corr_ci95" in critic and summary["rl"]["stopped_early"] == "no"
    assert summary["rationales"]["pairs"] == SIZES["pairs"]
    assert summary["rationales"]["kept"] + sum(summary["rationales"]["reasons"].values()) == SIZES["pairs"]
    assert 0 < summary["critic"]["n_pairs"] <= SIZES["test-pairs"]
    assert summary["rl"]["updates"] == SIZES["rl-updates"]
    assert summary["rl"]["n"] == SIZES["eval-prompts"] * SIZES["eval-copies"]
    assert summary["refine"]["images_per_prompt"] == SIZES["images-per-prompt"]
    assert summary["refine"]["n"] == SIZES["eval-prompts"]
    assert "exact match after 8 updates" in second.stdout

    page = Loads()
    page.feed((out / "report.html").read_text(encoding="utf-8"))
    assert any(load.startswith("data:image/") for load in page.found)
    assert not [load[:80] for load in page.found if re.search(r"(https?:)?//", load.split("base64,")[0])]

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("quickstart")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.info.run_id != parent.info.run_id]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    names = sorted(run.info.run_name for run in children)
    # RL went on in the run that was interrupted
    assert names == ["distill", "evaluate", "evaluate untrained", "rationalize", "refine", "rl"]
    assert {run.info.status for run in runs} == {"FINISHED"}

    # what the stages made is kept with their runs, all of it inside the folder
    uploaded = {run.info.run_name: {file.path for file in client.list_artifacts(run.info.run_id)} for run in children}
    assert {"critic", "config"} <= uploaded["distill"] and {"lora", "history.jsonl", "rollouts"} <= uploaded["rl"]
    assert {"gallery.html", "refinements.jsonl"} <= uploaded["refine"] and "judgements.jsonl" in uploaded["evaluate"]
    assert "rationales.jsonl" in uploaded["rationalize"]
    assert all(run.info.artifact_uri.startswith(out.resolve().as_uri()) for run in runs)

    other = run_python(command(out, **{"eval-prompts": 7}), timeout=120)
    assert other.returncode == 1
    assert (
        f"{out} holds a run with other settings (eval_prompts 6 -> 7); give another --out, or delete the folder" in other.stderr
    )
    third = run_python(command(out), timeout=300)
    assert third.returncode == 0, third.stderr[-4000:]
    assert third.stdout.count("done before") == len(STAGES)
    assert strict(out / "summary.json") == summary


def test_a_place_that_cannot_be_written_and_a_size_of_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = run_python(["-m", "rationalrewards.quickstart", "--out", str(tmp_path / "file" / "out")], timeout=120)
    assert refused.returncode == 1
    assert "give a folder that you may write to as --out" in refused.stderr and "Traceback" not in refused.stderr
    refused = run_python(["-m", "rationalrewards.quickstart", "--out", str(tmp_path / "out"), "--pairs", "0"], timeout=120)
    assert refused.returncode == 2 and "argument --pairs: must be at least 1, got 0" in refused.stderr
    assert not (tmp_path / "out").exists()
