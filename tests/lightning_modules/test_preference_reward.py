"""A scalar head learns from pairs: what its loss is, what trains, what is kept, what comes out, and where it goes from there."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rationalrewards.callbacks import CriticExport
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat, check_fingerprint
from rationalrewards.components.objectives import bradley_terry_loss, gaussian_loss, rao_kupper_loss
from rationalrewards.components.records import Preference, open_pictures, read_jsonl
from rationalrewards.components.rewards import PreferenceHeadReward
from rationalrewards.components.rewards.preference_head import HEAD_FILE
from rationalrewards.components.shapes.pairs import write_preferences
from rationalrewards.datamodules import Batch, PreferenceDataModule
from rationalrewards.datamodules.preferences import ShownPair, show
from rationalrewards.lightning_modules import PreferenceRewardModule
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText

pytestmark = tiny.QUIET

LOSSES = ("bradley_terry", "ties", "gaussian", "gaussian_expected", "thurstone")


def make(**changes: Any) -> PreferenceRewardModule:
    options = {
        "path": "embedded:shapes-critic",
        "format": CritiqueFormat("shapes"),
        "optimizer": tiny.adamw,
        "freeze_vision": False,
        "freeze_projector": False,
        "max_length": 512,
    }
    return PreferenceRewardModule(**{**options, **changes})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pairs(tmp_path_factory.mktemp("pairs"), 8)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Batch[ShownPair]:
    """A tie, decided pairs, votes, and an edit."""
    rows = read_jsonl(tiny.pairs(tmp_path_factory.mktemp("more"), 40), Preference)
    kinds = {(pair.winner, pair.task): pair for pair in rows}
    chosen = [pair for kind, pair in sorted(kinds.items()) if kind != ("tie", "edit")]
    assert len(chosen) >= 5 and {pair.winner for pair in chosen} == {"A", "B", "tie"}
    return show([*chosen, replace(rows[0], label=0.7)])


def scores(module: PreferenceRewardModule, pairs: Sequence[Preference]) -> Tensor:
    """What the reward model itself says of both pictures of each pair ``[n, 2, values]``."""
    assert module.model is not None
    reward = PreferenceHeadReward(module.path, module.format).attach(module.model, module.processor)
    requests = [
        CritiqueRequest(pair.task, pair.prompt, image, open_pictures(pair, pair.sources))
        for pair in pairs
        for image in open_pictures(pair, pair.candidates)
    ]
    return reward.score(requests).values.reshape(len(pairs), 2, -1)


# -- the loss -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_taken_of_the_scores_that_the_reward_gives(loss: Any, shown: Batch[ShownPair]) -> None:
    module = make(loss=loss, tie_threshold=0.8)
    module.configure_model()
    with torch.no_grad():
        found = module.losses(*module(shown), module._label(shown))
    values = scores(module, [one.pair for one in shown])
    label = torch.tensor([one.pair.label for one in shown])
    a, b = values[:, 0, 0], values[:, 1, 0]
    if loss == "bradley_terry":
        expected = bradley_terry_loss(a, b, label)
    elif loss == "ties":
        expected = rao_kupper_loss(a, b, label, 0.8)
    else:
        form = {"gaussian": "marginal", "gaussian_expected": "expected"}.get(loss, loss)
        expected = gaussian_loss(a, b, values[:, 0, 1].log(), values[:, 1, 1].log(), label, form)
    # other batches, so other padding, in float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_a_picture_of_several_pairs_is_looked_at_once(pairs: Path) -> None:
    first, second, third = read_jsonl(pairs, Preference)[:3]
    ranked = [
        Preference("ab", "t2i", "a red circle", first.candidates, 1.0),
        Preference("ac", "t2i", "a red circle", (first.candidates[0], second.candidates[0]), 0.0),
        # another request is another question, about the same picture
        Preference("ax", "t2i", "a blue square", (first.candidates[0], third.candidates[0]), 1.0),
    ]
    module = make()
    module.configure_model()
    assert module.model is not None
    sizes = []
    hook = module.model.register_forward_pre_hook(lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    with torch.no_grad():
        outputs = torch.stack(module(show(ranked)), dim=1)
    hook.remove()
    assert sizes == [5]
    torch.testing.assert_close(outputs, scores(module, ranked), atol=1e-4, rtol=0)  # other batches, in float32


def test_a_request_that_is_too_long_is_named(shown: Batch[ShownPair]) -> None:
    module = make(max_length=30)
    module.configure_model()
    with pytest.raises(ValueError, match=r"a request has \d+ tokens, more than max_length 30: '"):
        module(shown)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="loss is one of bradley_terry, ties, .*, got 'hinge'"):
        make(loss="hinge")
    with pytest.raises(ValueError, match="tie_threshold is a difference of scores above 0"):
        make(loss="ties", tie_threshold=0.0)


# -- training -----------------------------------------------------------------------------------------------------------------


class Watch(Callback):
    """The logged numbers of every step, and of every validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations.append(
            {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_eight_pairs_are_learnt_by_heart_and_the_export_scores_as_the_module(loss: Any, pairs: Path, tmp_path: Path) -> None:
    module, watch, folder = make(loss=loss, freeze_vision=True, freeze_projector=True), Watch(), tmp_path / "head"
    module.configure_model()
    assert module.model is not None
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    data = PreferenceDataModule(train=str(pairs), batch_size=8)
    trainer = tiny.trainer(max_steps=10, callbacks=[watch, CriticExport(str(folder))])
    trainer.fit(module, data)
    # all pairs in every step
    assert watch.steps[-1]["train/loss"] < 0.9 * watch.steps[0]["train/loss"]
    assert ("train/tie_threshold" in watch.steps[0]) == (loss == "ties")
    assert ("train/sigma" in watch.steps[0]) == (loss in LOSSES[2:])
    for name, value in module.named_parameters():
        # a bias of the mean is lost in the difference, and AdamW takes a share of zero from it
        still = ".visual." in name or (name == "model.head.bias" and module.outputs == 1)
        assert torch.equal(value, before[name]) == still, name

    rows = read_jsonl(pairs, Preference)
    expected = scores(module, rows)
    reward = PreferenceHeadReward(str(folder), CritiqueFormat("shapes"))
    requests = [
        CritiqueRequest(pair.task, pair.prompt, image, open_pictures(pair, pair.sources))
        for pair in rows
        for image in open_pictures(pair, pair.candidates)
    ]
    assert torch.equal(reward.score(requests).values.reshape(expected.shape), expected)
    check_fingerprint(folder, CritiqueFormat("shapes"))
    with safe_open(str(folder / HEAD_FILE), framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["loss"] == loss and about["base"] == "embedded:shapes-critic"
    if loss == "ties":
        assert module.tie is not None
        assert about["tie_threshold"] == float(module.tie().detach()) != pytest.approx(0.5, abs=1e-3)
    # the backbone is transformers' own
    assert type(AutoModelForImageTextToText.from_pretrained(str(folder))).__name__ == "Qwen3VLForConditionalGeneration"


def test_a_threshold_may_stay_what_it_is(pairs: Path) -> None:
    module = make(loss="ties", tie_threshold=math.log(5.0), learn_tie_threshold=False)
    tiny.trainer(max_steps=2).fit(module, PreferenceDataModule(train=str(pairs), batch_size=4))
    assert module.tie is not None and float(module.tie().detach()) == pytest.approx(math.log(5.0), rel=1e-6)


def test_validation_counts_every_decided_pair(pairs: Path, tmp_path: Path) -> None:
    watch = Watch()
    held_out = tiny.pairs(tmp_path / "val", 7, seed=9)
    module = make()
    data = PreferenceDataModule(train=str(pairs), val=str(held_out), batch_size=3)
    tiny.trainer(max_steps=1, val_check_interval=1, callbacks=[watch]).fit(module, data)
    rows = read_jsonl(held_out, Preference)
    assert module.model is not None
    module.model.eval()
    values = scores(module, rows)[:, :, 0]
    right = [bool(a > b) == (pair.winner == "A") for pair, (a, b) in zip(rows, values, strict=True) if pair.winner != "tie"]
    losses = bradley_terry_loss(values[:, 0], values[:, 1], torch.tensor([pair.label for pair in rows]))
    (found,) = watch.validations
    assert found["val/pair_accuracy"] == pytest.approx(sum(right) / len(right))
    assert found["val/loss"] == pytest.approx(float(losses.mean()), abs=1e-4)  # other batches, in float32


def lora(**changes: Any) -> PreferenceRewardModule:
    return make(**{"lora_rank": 2, "lora_alpha": 4, **changes})


def train(module: PreferenceRewardModule, data: Path, steps: int, folder: Path, resume: Path | None = None) -> dict[str, Tensor]:
    """Train, with a checkpoint after every step, and return what trained."""
    torch.manual_seed(0)  # a LoRA starts from it
    every = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = tiny.trainer(max_steps=steps, enable_checkpointing=True, callbacks=[every])
    trainer.fit(module, PreferenceDataModule(train=str(data), batch_size=2, together=True, seed=1), ckpt_path=resume)
    return {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2, "loss": "ties"}], ids=["full", "lora"])
def test_resumed_in_the_middle_of_an_epoch_equals_undisturbed(options: Any, pairs: Path, tmp_path: Path) -> None:
    # four batches an epoch: the checkpoint of step 6 lies in the middle of the second
    straight = train(make(**options), pairs, 9, tmp_path / "straight")
    half = train(make(**options), pairs, 6, tmp_path / "other")
    resumed = train(make(**options), pairs, 9, tmp_path / "other", resume=tmp_path / "other" / "step=6.ckpt")
    assert straight.keys() == resumed.keys()
    assert not all(torch.equal(half[name], straight[name]) for name in straight)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_a_lora_checkpoint_holds_what_trains_and_is_merged_on_export(pairs: Path, tmp_path: Path) -> None:
    module = lora(gradient_checkpointing=True)
    trained = train(module, pairs, 4, tmp_path)
    stored = torch.load(tmp_path / "step=4.ckpt")
    assert set(stored["state_dict"]) == set(trained)
    assert all("lora_" in name or name.startswith("model.head.") for name in trained)
    module.export(str(tmp_path / "head"))
    rows = read_jsonl(pairs, Preference)
    reward = PreferenceHeadReward(str(tmp_path / "head"), CritiqueFormat("shapes"))
    images = [CritiqueRequest("t2i", pair.prompt, open_pictures(pair, pair.candidates)[0]) for pair in rows if pair.task == "t2i"]
    assert module.model is not None
    module.model.eval()
    own = PreferenceHeadReward(module.path, module.format).attach(module.model, module.processor).score(images)
    # W x + B A x against (W + B A) x in float32
    torch.testing.assert_close(reward.score(images).total, own.total, atol=1e-3, rtol=0)
    base = lora()
    base.configure_model()
    assert base.model is not None
    first = PreferenceHeadReward(module.path, module.format).attach(base.model.eval(), base.processor).score(images)
    assert (own.total - first.total).abs().max() > 0.02

    name = next(iter(stored["state_dict"]))
    del stored["state_dict"][name]
    torch.save(stored, tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match="lacks 1 weights, first"):
        tiny.trainer(max_steps=5).fit(lora(), PreferenceDataModule(train=str(pairs)), ckpt_path=tmp_path / "cut.ckpt")


@pytest.mark.slow
def test_a_trained_head_is_better_than_chance(tmp_path: Path) -> None:
    """A hundred steps: far from done, and yet no coin."""
    torch.manual_seed(0)
    learnt = write_preferences(
        tmp_path / "train", 800, 11, label_noise=0.0, changes=(0, 2, 3, 4), letter_rate=0.0, edit_share=0.0
    )
    held_out = write_preferences(tmp_path / "val", 200, 12, label_noise=0.0, changes=(0, 4), letter_rate=0.0, edit_share=0.0)
    steps = 100

    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))

    def cycle(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)

    module = make(optimizer=adamw, scheduler=cycle)
    data = PreferenceDataModule(train=str(learnt), val=str(held_out), batch_size=16, seed=3)
    trainer = tiny.trainer(max_steps=steps, gradient_clip_val=1.0, limit_val_batches=0)
    trainer.fit(module, data)
    (found,) = tiny.trainer().validate(module, data, verbose=False)
    decided = sum(pair.winner != "tie" for pair in read_jsonl(held_out, Preference))
    # three standard errors of a coin
    assert found["val/pair_accuracy"] > 0.5 + 3 * 0.5 / decided**0.5
