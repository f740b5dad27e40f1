"""The whole main job on the embedded shapes world: ``python -m rationalrewards.quickstart``.

rationalize -> distill -> evaluate -> RL -> refine, each through the ``rationalrewards`` command and its config, then a report. A
finished stage is not run again: killed and started again, the job goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

SIMULATION = (
    "A small world: drawn shapes of 32 pixels, a critic of 0.85 million parameters and a generator of 1.27 million. It shows that the "
    "machinery works; it proves nothing about photographs.",
    "The teacher is a simulation that reads pictures with the ground truth and makes mistakes at set rates.",
    "All figures are judged by the world's ground truth on held-out requests and pairs, never by the critic that was trained.",
    "blind_rewrite_best_of_n rewrites the request with the same critic, which is shown a blank picture; it, best_of_n and refine_keep_best "
    "may make the same number of pictures, and the critic picks.",
    "A good rewrite does not depend on the picture in this world: it is the request in detailed words, which a blind rewrite finds, too.",
    "The critic learns and is tested on edits too; RL and refinement are text-to-image here.",
)


@dataclass(frozen=True)
class Sizes:
    """The size of each stage."""

    pairs: int = 2400
    test_pairs: int = 300
    rl_prompts: int = 512
    eval_prompts: int = 128
    eval_copies: int = 2
    distill_steps: int = 800
    rl_updates: int = 14
    images_per_prompt: int = 4
    untrained_pairs: int = 40


HELP = {
    "pairs": "preference pairs to rationalize",
    "test_pairs": "held-out pairs, ties included",
    "rl_prompts": "requests for RL",
    "eval_prompts": "held-out requests, for RL before/after and for refinement",
    "eval_copies": "pictures per held-out request in RL before/after",
    "distill_steps": "optimizer steps of distillation",
    "rl_updates": "optimizer steps of RL",
    "images_per_prompt": "pictures that each refinement arm may make for a request",
    "untrained_pairs": "pairs on which the critic is evaluated before distillation",
}


class Quickstart:
    """Runs the stages in order, each once.

    Args:
        out: Folder of everything.
        seed: Seed of everything.
        sizes: Size of each stage.
        any_critic: Train the generator and refine even with a critic that cannot tell pictures apart.
    """

    def __init__(self, out: Path, seed: int, sizes: Sizes, any_critic: bool = False) -> None:
        self.any_critic = any_critic
        self.out = out
        self.seed = seed
        self.sizes = sizes
        self.configs = Path(__file__).resolve().parent / "configs"
        if not self.configs.is_dir():  # an editable install maps the folder instead of copying it
            from importlib.resources import files

            self.configs = Path(str(files("rationalrewards.configs")))

    # -- running stages -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run what is not done yet, write ``summary.json`` and ``report.html``, and return the summary."""
        self._claim_folder()
        stages: dict[str, Callable[[], Any]] = {
            "data": self._data,
            "rationalize": self._rationalize,
            "distill": self._distill,
            "evaluate": self._evaluate,
            "rl": self._rl,
            "refine": self._refine,
        }
        results: dict[str, Any] = {}
        for number, (name, stage) in enumerate(stages.items(), start=1):
            done = self.out / name / "done.json"
            if done.is_file():
                print(f"[{number}/{len(stages)}] {name}: done before", flush=True)
            else:
                print(f"[{number}/{len(stages)}] {name}", flush=True)
                started = time.perf_counter()
                result = stage()
                record = {"result": result, "seconds": time.perf_counter() - started, "peak_rss_gb": _peak_rss_gb()}
                done.parent.mkdir(parents=True, exist_ok=True)
                part = done.with_suffix(".part")
                part.write_text(json.dumps(_plain(record), indent=2, allow_nan=False), encoding="utf-8")
                part.replace(done)
            results[name] = json.loads(done.read_text(encoding="utf-8"))
        summary = {
            "seed": self.seed,
            "wall_seconds": {name: round(record["seconds"], 1) for name, record in results.items()},
            "peak_rss_gb": round(max(record["peak_rss_gb"] for record in results.values()), 2),
            "critic": {
                **results["evaluate"]["result"],
                **{key: value for key, value in results["rl"]["result"].items() if key.startswith("within_group_corr")},
            },
            "rationales": results["rationalize"]["result"],
            "rl": {key: value for key, value in results["rl"]["result"].items() if not key.startswith("within_group_corr")},
            "refine": results["refine"]["result"],
        }
        (self.out / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
        self._report(summary)
        return summary

    def _claim_folder(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "settings.part").write_text("")
            (self.out / "settings.part").unlink()
        except OSError as error:
            raise SystemExit(
                f"cannot write to {self.out} ({error.strerror}); give a folder that you may write to as --out"
            ) from error
        settings = {"seed": self.seed, **asdict(self.sizes)}
        path = self.out / "settings.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = [f"{key} {before.get(key)} -> {value}" for key, value in settings.items() if before.get(key) != value]
            if changed:
                raise SystemExit(
                    f"{self.out} holds a run with other settings ({'; '.join(changed)}); give another --out, or delete the folder"
                )
        path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        os.environ["SHAPES_OUT"] = str(self.out)

    def _command(self, verb: str, stage: str, *overrides: str) -> None:
        """Run one ``rationalrewards`` command; its run in MLflow is a child of the job's."""
        from rationalrewards.callbacks.mlflow import PARENT_RUN_VARIABLE, parent_run
        from rationalrewards.cli import run

        store, artifacts = f"sqlite:///{self.out / 'mlflow.db'}", (self.out / "mlartifacts").resolve().as_uri()
        os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
        os.environ[PARENT_RUN_VARIABLE] = parent_run(store, "quickstart", f"quickstart, seed {self.seed}", artifacts)
        run(
            [
                verb,
                "--config",
                str(self.configs / stage / "shapes.yaml"),
                f"--seed_everything={self.seed}",
                f"--trainer.logger.init_args.tracking_uri={store}",
                "--trainer.logger.init_args.experiment_name=quickstart",
                f"--trainer.logger.init_args.run_name={stage}",
                f"--trainer.logger.init_args.artifact_location={artifacts}",
                f"--trainer.default_root_dir={self.out / stage}",
                "--trainer.enable_model_summary=false",
                *overrides,
            ]
        )

    def _data(self) -> None:
        from rationalrewards.components.shapes.make_data import make_data

        sizes = self.sizes
        make_data(self.out / "data", self.seed, sizes.pairs, sizes.test_pairs, sizes.rl_prompts, sizes.eval_prompts)

    def _rationalize(self) -> dict[str, Any]:
        self._command("predict", "rationalize", f"--model.init_args.options.seed={self.seed}")
        from rationalrewards.components.shapes.figures import rate_interval

        counts = dict(json.loads((self.out / "rationalize" / "summary.json").read_text(encoding="utf-8")))
        control = "control_pairs"
        for rate, n in (("kept_rate", "pairs"), ("right_label_pass_rate", control), ("wrong_label_pass_rate", control)):
            counts |= rate_interval(rate, counts[rate], counts[n])
        return counts

    def _distill(self) -> None:
        self._command("fit", "distill", f"--trainer.max_steps={self.sizes.distill_steps}", f"--data.init_args.seed={self.seed}")

    def _evaluate(self) -> dict[str, Any]:
        from rationalrewards.components.shapes.figures import aspect_errors, rate_interval

        untrained = self.out / "evaluate" / "untrained"
        critic = "--model.init_args.reward.init_args.critic.init_args"
        writer = {"class_path": "rationalrewards.callbacks.EvaluationWriter", "init_args": {"output_dir": str(untrained)}}
        callbacks = [{"class_path": "rationalrewards.callbacks.MLflowParent"}, writer]
        self._command(
            "test",
            "evaluate",
            f"{critic}.chat.init_args.path=embedded:shapes-critic",
            f"--data.init_args.limit={self.sizes.untrained_pairs}",
            # it has never seen the form, and would fill the longest prose there can be
            f"{critic}.prose_tokens=12",
            f"{critic}.reasks=0",
            "--trainer.logger.init_args.run_name=evaluate untrained",
            f"--trainer.callbacks={json.dumps(callbacks)}",
        )
        self._command("test", "evaluate")
        before = json.loads((untrained / "evaluation.json").read_text(encoding="utf-8"))
        after = json.loads((self.out / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
        figures: dict[str, Any] = {
            "pair_accuracy": after["test/pair_accuracy"],
            "pair_accuracy_ci95": [after["test/pair_accuracy_low"], after["test/pair_accuracy_high"]],
            "n_pairs": int(after["test/n_pairs"]),
        }
        for prefix, found in (("", after), ("untrained_", before)):
            for name in ("pair_accuracy", "unscored_rate", "tie_rate"):
                if f"{prefix}{name}" not in figures:
                    figures[f"{prefix}{name}"] = found[f"test/{name}"]
                    figures |= rate_interval(f"{prefix}{name}", found[f"test/{name}"], int(found["test/n_pairs"]))
        preferences = self.out / "data" / "test" / "preferences.jsonl"
        return figures | aspect_errors(preferences, self.out / "evaluate" / "judgements.jsonl")

    def _rl(self) -> dict[str, Any]:
        from rationalrewards.callbacks.guard import STOPPED_TAG

        before = self._measure(None, "before")
        last = self.out / "rl" / "checkpoints" / "last.ckpt"
        overrides = [f"--trainer.max_epochs={self.sizes.rl_updates}", f"--model.init_args.seed={self.seed}"]
        if self.any_critic:
            overrides.append("--model.init_args.min_resolution=null")
        if last.is_file():  # killed during RL: go on from the last round
            overrides += [f"--ckpt_path={last}", "--trainer.logger.init_args.run_id=" + self._mlflow_run("rl").info.run_id]
        self._command("fit", "rl", *overrides)
        after = self._measure(self.out / "rl" / "lora", "after")
        result: dict[str, Any] = {}
        for name in ("exact", "truth", "reward"):
            for when, measured in (("before", before), ("after", after)):
                result[f"{name}_{when}"] = measured[name]
                result[f"{name}_{when}_ci95"] = measured[f"{name}_ci95"]
        result["n"] = before["n"]
        result["n_prompts"] = self.sizes.eval_prompts
        result["updates"] = len((self.out / "rl" / "history.jsonl").read_text(encoding="utf-8").splitlines())
        result["stopped_early"] = self._mlflow_run("rl").data.tags.get(STOPPED_TAG, "no")
        return result | {key: value for key, value in before.items() if key.startswith("within_group_corr")}

    def _mlflow_run(self, stage: str) -> Any:
        """The MLflow run of a stage: an interrupted one goes on in it, so that its curves stay whole."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.out / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("quickstart")
        return client.search_runs([experiment.experiment_id], f"attributes.run_name = '{stage}'", max_results=1)[0]

    def _measure(self, lora: Path | None, name: str) -> dict[str, Any]:
        from rationalrewards.components.shapes.figures import generator_figures
        from rationalrewards.components.shapes.make_data import shapes_generator
        from rationalrewards.datamodules.readers import read_prompts

        generator = shapes_generator()
        generator.adapter = str(lora) if lora is not None else None
        generator.load()
        records = read_prompts(self.out / "data" / "heldout" / "prompts.jsonl")
        print(f"      {self.sizes.eval_copies * len(records)} pictures of held-out requests, {name} RL", flush=True)
        return generator_figures(generator, self._critic(), records, self.sizes.eval_copies, self.seed, self.out / "rl" / name)

    def _critic(self) -> Any:
        from rationalrewards.components.chat import TransformersChat
        from rationalrewards.components.critic import Critic
        from rationalrewards.components.critique import CritiqueFormat
        from rationalrewards.components.rewards import CritiqueReward

        chat = TransformersChat(str(self.out / "distill" / "critic"), batch_size=96)
        reward = CritiqueReward(Critic(chat, CritiqueFormat("shapes"), max_tokens=320, constrained=True))
        reward.load()
        return reward

    def _refine(self) -> dict[str, Any]:
        from rationalrewards.components.shapes.figures import refinement_figures

        self._command(
            "predict",
            "refine",
            f"--model.init_args.options.seed={self.seed}",
            f"--model.init_args.options.images_per_prompt={self.sizes.images_per_prompt}",
            *(["--model.init_args.sanity=null"] if self.any_critic else []),
        )
        return {
            "images_per_prompt": self.sizes.images_per_prompt,
            **refinement_figures(self.out / "refine" / "refinements.jsonl"),
        }

    # -- showing --------------------------------------------------------------------------------------------------------

    def _report(self, summary: dict[str, Any]) -> None:
        from rationalrewards.components.pages import Grid, report_page
        from rationalrewards.components.records import Refinement, read_jsonl

        lines = (self.out / "rl" / "history.jsonl").read_text(encoding="utf-8").splitlines()
        grids = []
        captions = {
            when: json.loads((self.out / "rl" / when / "captions.json").read_text(encoding="utf-8"))
            for when in ("before", "after")
        }
        shown = range(min(12, len(captions["before"])))
        pictures = {when: [self.out / "rl" / when / f"{i:02d}.png" for i in shown] for when in captions}
        texts = {when: [captions[when][i]["critique"] for i in shown] for when in captions}
        prompts = [captions["before"][i]["prompt"] for i in shown]
        grids.append(
            Grid(
                "RL: base generator and trained generator, same noise",
                prompts,
                pictures["before"],
                pictures["after"],
                *texts.values(),
            )
        )
        traces = [t for t in read_jsonl(self.out / "refine" / "refinements.jsonl", Refinement) if t.arm == "refine_keep_best"][
            :12
        ]
        first, chosen = [t.candidates[0] for t in traces], [t.candidates[t.chosen] for t in traces]
        grids.append(
            Grid(
                "Refinement: first picture and the one that was kept",
                [trace.prompt for trace in traces],
                [Path(candidate.image) for candidate in first],
                [Path(candidate.image) for candidate in chosen],
                [candidate.critique for candidate in first],
                [candidate.critique for candidate in chosen],
            )
        )
        page = report_page(summary, [json.loads(line) for line in lines], grids, list(SIMULATION))
        (self.out / "report.html").write_text(page, encoding="utf-8")


def _plain(value: Any) -> Any:
    """The value with null for numbers that do not exist: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _peak_rss_gb() -> float:
    """Peak resident memory of this process in GB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def table(summary: dict[str, Any]) -> str:
    """The final table, as text."""
    critic, rationales, rl, refine = (summary[key] for key in ("critic", "rationales", "rl", "refine"))

    def rate(section: dict[str, Any], key: str) -> str:
        if section[key] is None:
            return "not measured"
        low, high = section.get(f"{key}_ci95", (None, None))
        return f"{section[key]:.3f}" + (f"  [{low:.3f}, {high:.3f}]" if low is not None else "")

    rows = [
        ("rationalize", f"{rationales['kept']} of {rationales['pairs']} pairs kept", rate(rationales, "kept_rate")),
        ("critic", f"accuracy on {critic['n_pairs']} held-out pairs", rate(critic, "pair_accuracy")),
        ("", "accuracy before distillation", rate(critic, "untrained_pair_accuracy")),
        ("", "unscored", rate(critic, "unscored_rate")),
        ("", "within-group correlation with the truth", rate(critic, "within_group_corr")),
        ("RL", f"exact match before ({rl['n']} pictures)", rate(rl, "exact_before")),
        ("", f"exact match after {rl['updates']} updates", rate(rl, "exact_after")),
        ("", "true reward before", rate(rl, "truth_before")),
        ("", "true reward after", rate(rl, "truth_after")),
        *[
            ("refine" if arm == "base" else "", f"exact match, {arm} ({refine['n']} requests)", rate(refine, arm))
            for arm in ("base", "best_of_n", "blind_rewrite_best_of_n", "refine_always_accept", "refine_keep_best")
            if arm in refine
        ],
        ("", "refine_keep_best less best_of_n, paired", rate(refine, "gain")),
        ("", "harm rate of refine_keep_best", rate(refine, "harm_rate")),
        ("all", "minutes", f"{sum(summary['wall_seconds'].values()) / 60:.1f}"),
        ("", "peak memory, GB", f"{summary['peak_rss_gb']:.2f}"),
    ]
    width = max(len(row[1]) for row in rows)
    return "\n".join(f"{stage:<12} {what:<{width}}  {value}" for stage, what, value in rows)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, run the job, print the table."""
    parser = argparse.ArgumentParser(prog="python -m rationalrewards.quickstart", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder of everything (default: quickstart)")
    parser.add_argument("--seed", type=int, default=42, help="seed of everything (default: 42)")
    for field in fields(Sizes):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=_positive, default=field.default, help=f"{HELP[field.name]} (default: {field.default})")
    parser.add_argument(
        "--any-critic", action="store_true", help="run RL and refinement even on a critic without resolution (to try tiny sizes)"
    )
    options = vars(parser.parse_args(arguments))
    # a waiting BLAS thread burns a core of two; torch does the heavy work here, and it has threads of its own
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    out, seed, any_critic = options.pop("out"), options.pop("seed"), options.pop("any_critic")
    sys.argv = sys.argv[:1]  # LightningCLI warns when it is given arguments while the process has others
    summary = Quickstart(out, seed, Sizes(**options), any_critic).run()
    print(table(summary))
    print(f"\nReport: {out / 'report.html'}   runs: mlflow ui --backend-store-uri sqlite:///{out / 'mlflow.db'}")


if __name__ == "__main__":
    main()
