"""What reward logging leaves of rounds whose rewards are known."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import RandomDataset
from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image
from rationalrewards.callbacks import RewardLogging, read_history
from rationalrewards.callbacks.rewards import _log_table
from rationalrewards.components.records import AspectCritique, Critique, NotApplicable, Unscored
from rationalrewards.components.rewards import Advantages, Rewards, critique_rewards, group_advantages
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene
from support import run_python
from torch.utils.data import DataLoader

pytestmark = [
    # one batch an epoch is the point here
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # a resumed run finds the checkpoints of the first
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

OPTIONS: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


@dataclass
class Round:
    """What the RL module keeps of a round."""

    epoch: int
    prompts: list[str]
    groups: list[str]
    images: list[Image.Image]
    rewards: Rewards
    witness: Rewards | None
    advantages: Advantages


def critique(faithfulness: float, quality: float | Unscored, lettering: float | NotApplicable) -> Critique:
    scores = {"text_faithfulness": faithfulness, "physical_quality": quality, "text_rendering": lettering}
    return Critique({key: AspectCritique("seen", score) for key, score in scores.items()}, text=f"quality {quality}")


def make_round(epoch: int) -> Round:
    """Three groups of two: one scored, one with a picture unscored and so starved, one flat."""
    rng = random.Random(epoch)
    said = [
        critique(4.0, 1.0 + 0.1 * epoch, NotApplicable()),
        critique(2.0, 2.0, 3.0),
        critique(1.0, 1.0, NotApplicable()),
        critique(4.0, Unscored("cut off"), NotApplicable()),
        critique(3.0, 3.0, NotApplicable()),
        critique(3.0, 3.0, NotApplicable()),
    ]
    groups = ["a", "a", "b", "b", "c", "c"]
    rewards = critique_rewards(said)
    witness = Rewards(torch.tensor([1.0, 0.5, 0.0, 0.0, float("nan"), 0.5]), (), torch.zeros(6, 0), [""] * 6)
    images = [draw(random_scene(rng)) for _ in groups]
    prompts = [f"prompt {group}" for group in groups]
    return Round(epoch, prompts, groups, images, rewards, witness, group_advantages(rewards.total, groups))


class Rounds(LightningModule):
    """Holds one known round per epoch, and logs at every point where a module may."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 1)
        self.last_rollout: Round | None = None

    def on_train_epoch_start(self) -> None:
        self.last_rollout = make_round(self.current_epoch)
        self.log("train/reward", self.last_rollout.rewards.total.nanmean())

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.log("train/loss", 1.0 + self.current_epoch)
        return self.layer(batch).square().mean()

    def on_train_epoch_end(self) -> None:
        self.log("train/late", 10.0 * self.current_epoch)
        if self.current_epoch == 1:
            self.log("train/undefined", math.nan)

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/exact", 0.1 * self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(RandomDataset(32, 2))

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(RandomDataset(32, 1))


def fit(
    folder: Path, *, ckpt_path: Path | None = None, logger: Any = False, at_epoch_end: bool = True, **options: Any
) -> Trainer:
    checkpoints = ModelCheckpoint(
        folder / "checkpoints", "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=at_epoch_end
    )
    settings = {"max_epochs": 4, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 1, **OPTIONS, **options}
    callback = settings.pop("callback", None) or RewardLogging(str(folder))
    trainer = Trainer(callbacks=[callback, checkpoints], logger=logger, **settings)
    trainer.fit(Rounds(), ckpt_path=ckpt_path)
    return trainer


def test_aspects_are_counted_over_scored_pictures_only(tmp_path: Path) -> None:
    metrics = fit(tmp_path, max_epochs=1).callback_metrics
    # the fourth picture is unscored: its faithfulness of 4 does not count although it was read
    expected = {
        "text_faithfulness": [4.0, 2.0, 1.0, 3.0, 3.0],
        "physical_quality": [1.0, 2.0, 1.0, 3.0, 3.0],
        "text_rendering": [3.0],
    }
    for aspect, scores in expected.items():
        values = torch.tensor(scores, dtype=torch.float64)
        # Lightning keeps what is logged as float32
        assert float(metrics[f"train/aspect/{aspect}"]) == pytest.approx(float(values.mean()), rel=1e-6)
        assert float(metrics[f"train/aspect_std/{aspect}"]) == pytest.approx(float(values.std(correction=0)), rel=1e-6)
    assert float(metrics["train/starved_groups"]) == pytest.approx(1 / 3, rel=1e-6)
    ours = {name for name in metrics if name not in ("train/reward", "train/loss", "train/late")}
    assert ours == {f"train/{kind}/{aspect}" for kind in ("aspect", "aspect_std") for aspect in expected} | {
        "train/starved_groups"
    }


def test_history_has_what_was_logged_in_each_epoch(tmp_path: Path) -> None:
    fit(tmp_path)
    lines = read_history(tmp_path / "history.jsonl")
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 2), (1, 4), (2, 6), (3, 8)]
    assert [line["train/loss"] for line in lines] == [1.0, 2.0, 3.0, 4.0]
    # logged by the module after the callback's turn
    assert [line["train/late"] for line in lines] == [0.0, 10.0, 20.0, 30.0]
    # validated in epochs 1 and 3, defined in neither: a value of another epoch is not repeated, NaN is not a number
    assert ["val/exact" in line for line in lines] == [False, True, False, True]
    assert ["train/undefined" in line for line in lines] == [False, True, False, False]
    assert lines[1]["train/undefined"] is None
    # (1 + 2 + 1 + 3 + 3) / 5 and a fifth of what quality gains per epoch; float32
    quality = [line["train/aspect/physical_quality"] for line in lines]
    assert quality == pytest.approx([2.0, 2.02, 2.04, 2.06], rel=1e-6)


@pytest.mark.parametrize("at_epoch_end", [True, False], ids=["checkpoint at epoch end", "checkpoint after validation"])
@pytest.mark.parametrize("epochs", [2, 4], ids=["stopped at once", "went on"])
def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(epochs: int, at_epoch_end: bool, tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    # ended after `epochs`, and goes on from the checkpoint of the second
    fit(tmp_path / "cut", max_epochs=epochs, at_epoch_end=at_epoch_end)
    fit(tmp_path / "cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "epoch=1.ckpt")
    whole, cut = (read_history(tmp_path / name / "history.jsonl") for name in ("whole", "cut"))
    assert [line["epoch"] for line in whole] == [0, 1, 2, 3]
    assert cut == whole


def test_a_resumed_run_under_max_steps_counts_on(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=-1, max_steps=6)
    fit(tmp_path, max_epochs=-1, max_steps=8, ckpt_path=tmp_path / "checkpoints" / "epoch=1.ckpt")
    lines = read_history(tmp_path / "history.jsonl")
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 2), (1, 4), (2, 6), (3, 8)]


def test_a_fresh_run_starts_a_fresh_history(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("of another run\n")
    fit(tmp_path, max_epochs=1)
    assert len(read_history(tmp_path / "history.jsonl")) == 1


@pytest.mark.parametrize(
    ("row", "message"), [("{cut", "row 2: not JSON"), ('{"step": 3}', "row 2: not an object with a whole 'epoch'")]
)
def test_a_broken_history_is_named(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"epoch": 0, "step": 1}\n' + row + "\n")
    with pytest.raises(ValueError, match=f"history.jsonl, {message}.*; remove the row or the file"):
        read_history(path)


def test_nothing_is_written_without_a_folder_or_in_a_trial_run(tmp_path: Path) -> None:
    fit(tmp_path / "a", max_epochs=1, callback=RewardLogging())
    fit(tmp_path / "b", fast_dev_run=True)
    assert not list(tmp_path.rglob("history*"))


def test_a_module_without_rounds_is_left_alone(tmp_path: Path) -> None:
    class Silent(Rounds):
        def on_train_epoch_start(self) -> None:
            pass

    trainer = Trainer(max_epochs=1, callbacks=[RewardLogging(str(tmp_path))], logger=False, limit_val_batches=0, **OPTIONS)
    trainer.fit(Silent())
    assert not [name for name in trainer.callback_metrics if "aspect" in name]
    assert [line["epoch"] for line in read_history(tmp_path / "history.jsonl")] == [0]


@pytest.mark.parametrize("name", ["every_n_epochs", "max_groups", "max_copies"])
def test_counts_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        RewardLogging(**{name: 0})


def test_pictures_table_and_histogram_reach_mlflow(mlflow_uri: str, tmp_path: Path) -> None:
    logger = MLFlowLogger("tests", tracking_uri=mlflow_uri, artifact_location=(tmp_path / "artifacts").as_uri())
    fit(tmp_path, logger=logger, max_epochs=3, callback=RewardLogging(every_n_epochs=2, max_groups=2))
    client, run_id = mlflow.MlflowClient(mlflow_uri), logger.run_id or ""
    made = sorted(entry.path for entry in client.list_artifacts(run_id, "rollouts"))
    aspects = [f"aspect_{name}.png" for name in ("physical_quality", "text_faithfulness", "text_rendering")]
    kinds = (*aspects, "critiques.html", "pictures.png", "rewards.png", "table.json")
    assert made == [f"rollouts/{epoch:05d}_{kind}" for epoch in (0, 2) for kind in kinds]

    table = client.load_table(logger.experiment_id or "", "rollouts/00002_table.json")
    assert table["prompt"].tolist() == make_round(2).prompts
    assert table["unscored"].tolist() == ["", "", "", "cut off", "", ""]
    assert table["critique"].tolist()[1] == "quality 2.0"
    # unscored is empty, not a number; (4 + 1.2) / 2 and (2 + 2 + 3) / 3, mapped from 1...4 to 0...1
    raw = json.loads(Path(client.download_artifacts(run_id, "rollouts/00002_table.json")).read_text())
    rewards = [row[raw["columns"].index("reward")] for row in raw["data"]]
    assert rewards[3] is None and rewards[:2] == pytest.approx([(2.6 - 1) / 3, (7 / 3 - 1) / 3], rel=1e-6)
    assert [row[raw["columns"].index("trained_on")] for row in raw["data"]] == [True, True, False, False, False, False]

    with Image.open(client.download_artifacts(run_id, "rollouts/00002_pictures.png")) as sheet:
        # the best picture of group a stands first: 32 pixels, three times as large, below the heading
        tile = sheet.convert("RGB").crop((16, 36, 16 + 96, 36 + 96))
    assert tile.tobytes() == make_round(2).images[0].resize((96, 96), Image.Resampling.NEAREST).tobytes()
    assert client.get_metric_history(run_id, "train/aspect/text_rendering")[0].value == 3.0


def bars(picture: Path) -> list[int]:
    """Lefts of a histogram's bars."""
    with Image.open(picture) as image:
        coloured = [any(image.getpixel((x, y)) == (11, 98, 196) for y in range(image.height)) for x in range(image.width)]
    return [x for x in range(1, len(coloured)) if coloured[x] and not coloured[x - 1]]


def test_a_page_of_critiques_and_a_histogram_of_every_aspect_reach_mlflow(mlflow_uri: str, tmp_path: Path) -> None:
    class Hostile(Rounds):
        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            made = self.last_rollout
            assert made is not None and made.rewards.critiques is not None
            made.prompts[:2] = ["<b>prompt</b>"] * 2
            made.rewards.critiques[0] = dataclasses.replace(made.rewards.critiques[0], text="</pre><script>alert(1)</script>")
            made.rewards.aspects = ("a/b", *made.rewards.aspects[1:])

    logger = MLFlowLogger("tests", tracking_uri=mlflow_uri, artifact_location=(tmp_path / "artifacts").as_uri())
    trainer = Trainer(
        max_epochs=1,
        callbacks=[RewardLogging(max_groups=2)],
        logger=logger,
        limit_val_batches=0,
        enable_checkpointing=False,
        **OPTIONS,
    )
    trainer.fit(Hostile())
    client, run_id = mlflow.MlflowClient(mlflow_uri), logger.run_id or ""
    files = {
        name: Path(client.download_artifacts(run_id, f"rollouts/00000_{name}")) for name in ("critiques.html", "aspect_a_b.png")
    }
    page = files["critiques.html"].read_text(encoding="utf-8")
    # two groups of three, each with its two pictures
    assert page.count("<img") == page.count('src="data:image/png;base64,') == 4
    assert "&lt;b&gt;prompt&lt;/b&gt;" in page and "<b>" not in page
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)" in page and "<script" not in page
    assert "prompt b" in page and "prompt c" not in page
    # the better picture of group a stands first, the unscored one of group b last
    order = ["alert(1)", "quality 2.0", "quality 1.0", "unscored: cut off"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "reward 0.500" in page and "witness 0.500" in page
    # 4 and 1, 2, 3 (twice) on an axis from 1 to 4
    assert len(bars(files["aspect_a_b.png"])) == 4
    assert len(bars(Path(client.download_artifacts(run_id, "rollouts/00000_aspect_text_rendering.png")))) == 1


def test_a_reward_without_critiques_has_no_page(mlflow_uri: str, tmp_path: Path) -> None:
    class Silent(Rounds):
        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            assert self.last_rollout is not None
            self.last_rollout.rewards.critiques = None

    logger = MLFlowLogger("tests", tracking_uri=mlflow_uri, artifact_location=(tmp_path / "artifacts").as_uri())
    trainer = Trainer(
        max_epochs=1, callbacks=[RewardLogging()], logger=logger, limit_val_batches=0, enable_checkpointing=False, **OPTIONS
    )
    trainer.fit(Silent())
    made = [entry.path for entry in mlflow.MlflowClient(mlflow_uri).list_artifacts(logger.run_id or "", "rollouts")]
    assert "rollouts/00000_pictures.png" in made and not [path for path in made if path.endswith(".html")]


def test_tables_replace_each_other_and_the_tag_stays_short(mlflow_uri: str, tmp_path: Path) -> None:
    # load_table below searches the store of the fluent API
    mlflow.set_tracking_uri(mlflow_uri)
    client = mlflow.MlflowClient(mlflow_uri)
    experiment = client.create_experiment("tests", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    for epoch in [*range(60), 59]:
        _log_table(client, run_id, {"epoch": [epoch]}, f"rollouts/{epoch:05d}_table.json")
    assert client.load_table(experiment, "rollouts/00059_table.json")["epoch"].tolist() == [59]
    listed = [entry["path"] for entry in json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])]
    assert listed == [f"rollouts/{epoch:05d}_table.json" for epoch in range(10, 60)]
    assert len(client.list_artifacts(run_id, "rollouts")) == 60


TWO = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_rewards import Rounds, RewardLogging, Trainer, make_round, OPTIONS
    from lightning.pytorch.strategies import DDPStrategy


    class Uneven(Rounds):
        def on_train_epoch_start(self):
            self.last_rollout = made = make_round(self.current_epoch)
            if self.global_rank == 1:
                # one picture only, and an aspect that the other process does not know
                made.rewards.total, made.rewards.values = made.rewards.total[:1], made.rewards.values[:1, :2] + 0.5
                made.rewards.aspects = ("text_faithfulness", "other")


    if __name__ == "__main__":
        trainer = Trainer(
            max_epochs=1, devices=2, strategy=DDPStrategy(process_group_backend="gloo"), logger=False,
            limit_val_batches=0, callbacks=[RewardLogging("out")], enable_checkpointing=False, **OPTIONS,
        )
        trainer.fit(Uneven())
"""


@pytest.mark.slow
def test_two_processes_log_one_mean(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(textwrap.dedent(TWO).format(tests=str(Path(__file__).parent)))
    done = run_python(["project.py"], timeout=300, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    (line,) = read_history(tmp_path / "out" / "history.jsonl")
    # six scores, not the mean of the two processes' means: (4 + 2 + 1 + 3 + 3 + 4.5) / 6
    assert line["train/aspect/text_faithfulness"] == pytest.approx(17.5 / 6, rel=1e-6)
    assert line["train/aspect/other"] == 1.5
    assert line["train/aspect/text_rendering"] == 3.0
    assert line["train/starved_groups"] == pytest.approx(1 / 3, rel=1e-6)
