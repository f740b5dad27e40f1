"""Distillation of the embedded critic: what the loss is taken over, what trains, what is kept and what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rationalrewards.callbacks import CriticExport
from rationalrewards.components.chat import ChatRequest, TransformersChat
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat, check_fingerprint
from rationalrewards.components.distillation import Row
from rationalrewards.components.records import Rationale, read_jsonl, write_jsonl
from rationalrewards.datamodules import RationaleDataModule, SupervisedRow
from rationalrewards.lightning_modules import RationaleDistillModule
from safetensors.torch import load_file
from support import OWN_WORDING, needs_compiler, run_python
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration

pytestmark = tiny.QUIET


@pytest.fixture(scope="module")
def rationales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.rationales(tmp_path_factory.mktemp("rationales"), 24)


@pytest.fixture(scope="module")
def rows(rationales: Path) -> list[Row]:
    """Requests of unequal length: points and pairs, with and without a source picture."""
    data = tiny.distill_data(rationales)
    data.setup("fit")
    formats = CritiqueFormat("shapes")
    edit = next(row for row in data.rows if row.rationale.pair.task == "edit" and row.kind == "point")
    drawn = [row for row in data.rows if row.rationale.pair.task == "t2i"]
    chosen: list[SupervisedRow] = [drawn[0], edit, next(row for row in drawn if row.kind == "pair")]
    return [row.load(formats) for row in chosen]


@pytest.fixture(scope="module")
def module() -> RationaleDistillModule:
    made = tiny.distill_module()
    made.configure_model()
    return made


def eight_rows(path: Path, rationales: Path) -> Path:
    """Four rationales: eight pointwise rows."""
    lines = rationales.read_text().splitlines()
    assert len(lines) > 4
    # pictures are named relative to the file
    copy = rationales.with_name(f"{path.name}.jsonl")
    copy.write_text("".join(line + "\n" for line in lines[:4]))
    return copy


# -- what the student is shown, and what counts -------------------------------------------------------------------------


def test_labels_are_the_answers_tokens_and_nothing_else(module: RationaleDistillModule, rows: list[Row]) -> None:
    encoded = module.encode(rows)
    tokenizer = module.processor.tokenizer
    for index, (_, answer) in enumerate(rows):
        ids, labels = encoded["input_ids"][index], encoded["labels"][index]
        length = int(encoded["attention_mask"][index].sum())
        expected = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        assert encoded["attention_mask"][index].tolist() == [1] * length + [0] * (len(ids) - length)
        assert labels[length - len(expected) : length].tolist() == expected
        assert (labels != -100).sum() == len(expected)
        assert torch.equal(ids[labels != -100], labels[labels != -100])
        assert tokenizer.decode(ids[:length]).endswith(f"<|im_start|>assistant\n{answer}{tokenizer.eos_token}")
    assert len({int(mask.sum()) for mask in encoded["attention_mask"]}) == 3


def test_the_student_is_shown_what_generation_shows(module: RationaleDistillModule, rows: list[Row]) -> None:
    ids: list[list[int]] = []
    pixels: list[Tensor] = []
    # generation may run the vision tower by itself
    hooks = [
        module.student.register_forward_pre_hook(
            lambda _, args, given: ids.append(given["input_ids"][0].tolist()), with_kwargs=True
        ),
        module.student.model.visual.register_forward_pre_hook(
            lambda _, args, given: pixels.append(given.get("hidden_states", *args[:1])), with_kwargs=True
        ),
    ]
    encoded = module.encode(rows)
    patches = 0
    try:
        for index, (messages, _) in enumerate(rows):
            ids.clear()
            pixels.clear()
            chat = TransformersChat(module.path).attach(module.student, module.processor)
            chat.complete([ChatRequest(messages, max_tokens=2)])
            prompt = int((encoded["labels"][index] == -100).sum() - (encoded["attention_mask"][index] == 0).sum())
            assert ids[0] == encoded["input_ids"][index, :prompt].tolist()
            assert torch.equal(pixels[0], encoded["pixel_values"][patches : patches + len(pixels[0])])
            patches += len(pixels[0])
    finally:
        for hook in hooks:
            hook.remove()
    assert patches == len(encoded["pixel_values"])


def test_loss_is_the_summed_cross_entropy_over_answer_tokens(module: RationaleDistillModule, rows: list[Row]) -> None:
    encoded = module.encode(rows)
    labels = encoded.pop("labels")
    with torch.no_grad():
        logits = module.student(**encoded).logits.double()
        loss, tokens = module._loss(rows)
        alone = [module._loss([row]) for row in rows]
    losses = [
        -torch.log_softmax(logits[row, position - 1], dim=0)[labels[row, position]]
        for row, position in (labels != -100).nonzero().tolist()
    ]
    assert tokens == len(losses)
    # the loss is taken in float32 over logits of size ten
    assert float(loss) == pytest.approx(float(torch.stack(losses).sum()), rel=1e-5)
    # neighbours change nothing; attention sums in float32 over other shapes
    assert float(loss) == pytest.approx(sum(float(one) for one, _ in alone), rel=1e-5)


def test_a_row_that_is_too_long_is_named(rows: list[Row]) -> None:
    module = tiny.distill_module(max_length=64)
    module.configure_model()
    prompt = rows[2][0][1]["content"][-1]["text"]
    with pytest.raises(ValueError, match=r"a row has \d+ tokens, more than max_length 64") as error:
        module.encode(rows)
    assert prompt[:80] in str(error.value)


# -- what trains ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("projector", [False, True])
def test_freezing(vision: bool, projector: bool) -> None:
    module = tiny.distill_module(freeze_vision=vision, freeze_projector=projector)
    module.configure_model()
    trains = {name: parameter.requires_grad for name, parameter in module.student.named_parameters()}
    # in a Qwen3-VL: the projector is `merger` and `deepstack_merger_list`, inside the tower
    mergers = {name: on for name, on in trains.items() if name.startswith("model.visual.") and "merger" in name}
    tower = {name: on for name, on in trains.items() if name.startswith("model.visual.") and "merger" not in name}
    language = {name: on for name, on in trains.items() if not name.startswith("model.visual.")}
    assert mergers and tower and language
    assert set(mergers.values()) == {not projector}
    assert set(tower.values()) == {not vision}
    assert set(language.values()) == {True}


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def test_loss_falls_frozen_parts_stay_and_the_export_is_the_student(rationales: Path, tmp_path: Path) -> None:
    data = tiny.distill_data(eight_rows(tmp_path, rationales), batch_size=8, pairwise=False)
    module = tiny.distill_module(freeze_vision=True, freeze_projector=True)
    module.configure_model()
    before = {name: value.detach().clone() for name, value in module.student.named_parameters()}
    losses, folder = Losses(), tmp_path / "critic"
    trainer = tiny.trainer(max_steps=20, callbacks=[losses, CriticExport(str(folder))])
    trainer.fit(module, data)
    assert len(losses.values) == 20
    # eight short answers by heart, of which headings alone are half
    assert losses.values[-1] < 0.5 * losses.values[0]
    for name, value in module.student.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("model.visual."), name

    exported = AutoModelForImageTextToText.from_pretrained(str(folder))
    assert isinstance(exported, Qwen3VLForConditionalGeneration)
    for name, value in exported.state_dict().items():
        assert torch.equal(value, module.student.state_dict()[name]), name
    processor = AutoProcessor.from_pretrained(str(folder))
    assert processor.tokenizer.padding_side == "left"
    check_fingerprint(folder, CritiqueFormat("shapes"))
    with pytest.raises(ValueError, match="was trained on format 'shapes'"):
        check_fingerprint(folder, CritiqueFormat("default"))
    assert json.loads((folder / "critique_format.json").read_text())["fingerprint"] == CritiqueFormat("shapes").fingerprint


def test_a_student_of_a_template_is_asked_in_its_words_only(rationales: Path, tmp_path: Path) -> None:
    own, path, folder = CritiqueFormat("shapes", OWN_WORDING), tmp_path / "own.jsonl", tmp_path / "critic"
    # a template changes what is asked, not what is answered
    write_jsonl(path, [replace(rationale, format=own.fingerprint) for rationale in read_jsonl(rationales, Rationale)])
    trainer = tiny.trainer(max_steps=2, callbacks=[CriticExport(str(folder))])
    trainer.fit(tiny.distill_module(format=own, max_length=1024), tiny.distill_data(path, format=own))
    assert trainer.global_step == 2

    Critic(TransformersChat(str(folder)), CritiqueFormat("shapes", OWN_WORDING)).load()
    trained = rf"trained on format 'shapes' with template '.*own_wording\.yaml' \({own.fingerprint}\), but is asked in format 'shapes' \("
    with pytest.raises(ValueError, match=trained):
        Critic(TransformersChat(str(folder)), CritiqueFormat("shapes")).load()


# -- the loss of a step -----------------------------------------------------------------------------------------------------


class WholeSteps(Callback):
    """``train/loss`` at the end of every step."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step > len(self.values):
            self.values[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


def steps_of(data: Any, micro_batches: int) -> tuple[dict[str, Tensor], dict[int, float]]:
    """Three steps of eight rows each, in float64; what trained, and the loss of every step."""
    module, losses = tiny.distill_module(optimizer=tiny.smooth, dtype="float64"), WholeSteps()
    tiny.trainer(max_steps=3, accumulate_grad_batches=micro_batches, gradient_clip_val=1.0, callbacks=[losses]).fit(module, data)
    return {name: value.detach() for name, value in module.named_parameters()}, losses.values


def test_a_step_is_the_same_however_its_rows_are_split(rationales: Path, tmp_path: Path) -> None:
    # comparisons have half as many tokens again as points, so that micro-batches differ
    path = eight_rows(tmp_path, rationales)
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:2]))
    whole, losses = steps_of(tiny.distill_data(path, batch_size=8), 1)
    for size in (2, 3):  # 4 of two rows; 3, 3 and 2
        split, split_losses = steps_of(tiny.distill_data(path, batch_size=size), -(-8 // size))
        # sums of float64 in another order, magnified by three steps
        assert max(float((split[name] - whole[name]).abs().max()) for name in whole) < 1e-9
        # Lightning logs in float32
        assert split_losses == pytest.approx(losses, rel=1e-6)

    class Plain(RationaleDataModule):
        """Batches that do not know their step."""

        def train_dataloader(self) -> Any:
            batches = [list(batch) for batch in super().train_dataloader()]
            return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]

    data = Plain(str(path), CritiqueFormat("shapes"), batch_size=2, seed=1)
    with pytest.warns(UserWarning, match="do not know their step"):
        uneven, _ = steps_of(data, 4)
    assert max(float((uneven[name] - whole[name]).abs().max()) for name in whole) > 1e-6


def test_a_last_step_of_fewer_micro_batches_is_the_mean_of_its_own_tokens(rationales: Path, tmp_path: Path) -> None:
    path = eight_rows(tmp_path, rationales)
    data = tiny.distill_data(path, batch_size=2, pairwise=False)
    module, losses = tiny.distill_module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0)), WholeSteps()
    gradients: list[float] = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            gradients.append(float(pl_module.student.lm_head.weight.grad.norm()))

    # an epoch of four batches: a step of three, and one of one
    tiny.trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=[losses, Norms()]).fit(module, data)
    batches = [list(batch) for batch in data.train_dataloader()]
    for step, rows in ((1, [row for batch in batches[:3] for row in batch]), (2, batches[3])):
        module.zero_grad()
        loss, tokens = module._loss(rows)
        (loss / tokens).backward()
        assert losses.values[step] == pytest.approx(float(loss.detach()) / tokens, rel=1e-6)
        # float32 sums over 1,500 tokens in another order
        assert gradients[step - 1] == pytest.approx(float(module.student.lm_head.weight.grad.norm()), rel=1e-4)


# -- checkpoints ----------------------------------------------------------------------------------------------------------


def lora(**changes: Any) -> RationaleDistillModule:
    return tiny.distill_module(lora_rank=2, lora_alpha=4, **changes)


def train(module: RationaleDistillModule, data: Path, steps: int, folder: Path, resume: Path | None = None) -> dict[str, Tensor]:
    """Train, with a checkpoint after every step, and return what trained."""
    torch.manual_seed(0)  # a LoRA starts from it
    every = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = tiny.trainer(max_steps=steps, enable_checkpointing=True, callbacks=[every])
    trainer.fit(module, tiny.distill_data(data, pairwise=False), ckpt_path=resume)
    return {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("make", [tiny.distill_module, lora], ids=["full", "lora"])
def test_resumed_in_the_middle_of_an_epoch_equals_undisturbed(make: Any, rationales: Path, tmp_path: Path) -> None:
    data = eight_rows(tmp_path, rationales)
    # four batches an epoch: the checkpoint of step 6 lies in the middle of the second
    straight = train(make(), data, 9, tmp_path / "straight")
    half = train(make(), data, 6, tmp_path / "other")
    resumed = train(make(), data, 9, tmp_path / "other", resume=tmp_path / "other" / "step=6.ckpt")
    assert straight.keys() == resumed.keys()
    assert not all(torch.equal(half[name], straight[name]) for name in straight)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_a_lora_checkpoint_holds_the_lora_only(rationales: Path, tmp_path: Path) -> None:
    module = lora(gradient_checkpointing=True)
    trained = train(module, eight_rows(tmp_path, rationales), 2, tmp_path)
    checkpoint = tmp_path / "step=2.ckpt"
    stored = torch.load(checkpoint)
    assert set(stored["state_dict"]) == set(trained)
    assert all("lora_" in name and ".language_model." in name for name in trained)
    # the LoRA and the two moments of AdamW; 100 kB for names and loop states
    assert checkpoint.stat().st_size < 3 * 4 * sum(value.numel() for value in trained.values()) + 100_000

    name = next(iter(stored["state_dict"]))
    del stored["state_dict"][name]
    torch.save(stored, tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match="lacks 1 LoRA weights, first"):
        tiny.trainer(max_steps=3).fit(lora(), tiny.distill_data(rationales), ckpt_path=tmp_path / "cut.ckpt")


def test_an_exported_lora_is_merged(rationales: Path, rows: list[Row], tmp_path: Path) -> None:
    module = lora()
    train(module, eight_rows(tmp_path, rationales), 4, tmp_path)
    module.export(str(tmp_path / "critic"))
    merged = AutoModelForImageTextToText.from_pretrained(str(tmp_path / "critic"))
    base = tiny.distill_module()
    base.configure_model()
    encoded = module.encode(rows)
    with torch.no_grad():
        outputs = [model(**encoded).logits for model in (merged.eval(), module.student.eval(), base.student.eval())]
    assert (outputs[1] - outputs[2]).abs().max() > 0.1
    # W x + B A x against (W + B A) x in float32, through a few layers, on logits of size ten
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-3, rtol=0)


def test_a_full_checkpoint_without_all_weights_is_refused(rationales: Path, tmp_path: Path) -> None:
    train(tiny.distill_module(), eight_rows(tmp_path, rationales), 1, tmp_path)
    stored = torch.load(tmp_path / "step=1.ckpt")
    del stored["state_dict"]["student.lm_head.weight"]
    torch.save(stored, tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match=r"lacks 1 weights, first 'student\.lm_head\.weight'"):
        tiny.trainer(max_steps=2).fit(tiny.distill_module(), tiny.distill_data(rationales), ckpt_path=tmp_path / "cut.ckpt")


PROGRAM = """
import sys
import tiny
from lightning.pytorch.callbacks import ModelCheckpoint
from pathlib import Path
from rationalrewards.callbacks import CriticExport, WeightEMA

data, out, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
every = ModelCheckpoint(out, "{step}", save_top_k=-1, every_n_train_steps=1)
callbacks = [every, CriticExport(str(out / "critic")), WeightEMA(0.5, output_dir=str(out / "average"))]
trainer = tiny.trainer(max_steps=12, accumulate_grad_batches=2, enable_checkpointing=True, callbacks=callbacks)
options = {"freeze_vision": True, "freeze_projector": True}
trainer.fit(tiny.distill_module(**options), tiny.distill_data(data), ckpt_path=str(resume[0]) if resume else None)
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_and_resumed_equals_undisturbed(rationales: Path, tmp_path: Path) -> None:
    data = eight_rows(tmp_path, rationales)  # eight batches and so four steps an epoch
    command = [sys.executable, "-c", PROGRAM, str(data)]
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny.__file__).parent)}
    victim = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "killed" / "step=6.ckpt").is_file():  # in the second epoch
            assert victim.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        victim.kill()
        victim.wait()
    assert not (tmp_path / "killed" / "critic" / "config.json").exists()
    # the newest may be half written
    checkpoint = tmp_path / "killed" / "step=5.ckpt"
    for name, more in (("killed", [checkpoint]), ("straight", [])):
        done = run_python(
            ["-c", PROGRAM, data, tmp_path / name, *more], timeout=300, env={"PYTHONPATH": environment["PYTHONPATH"]}
        )
        assert done.returncode == 0, done.stderr[-4000:]
    for part in ("critic", "average"):
        resumed, straight = (load_file(tmp_path / name / part / "model.safetensors") for name in ("killed", "straight"))
        assert resumed.keys() == straight.keys()
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)


# -- validation -----------------------------------------------------------------------------------------------------------


def test_validation_logs_loss_and_generated_accuracy(rationales: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preferences = tiny.pairs(tmp_path / "pairs", 12, seed=1)
    decided = tiny.decided(preferences)
    # a student that has learned to answer, but for one request: the embedded one has not
    truth = tiny.truthful(lambda request: decided[0].prompt in request.text())
    monkeypatch.setattr(TransformersChat, "complete", lambda self, requests: truth.complete(requests))
    module = tiny.distill_module()
    data = tiny.distill_data(rationales, val=str(rationales), val_preferences=str(preferences), batch_size=4, limit_val=12)
    trainer = tiny.trainer(max_steps=1, val_check_interval=1)
    trainer.fit(module, data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    with torch.no_grad():
        batches = [
            [row.load(data.format) for row in data.val_rows[start : start + 4]] for start in range(0, len(data.val_rows), 4)
        ]
        losses = [module._loss(batch) for batch in batches]
    # the same weights; Lightning adds up in float32
    mean = sum(float(loss) for loss, _ in losses) / sum(tokens for _, tokens in losses)
    assert metrics["val/loss"] == pytest.approx(mean, rel=1e-5)
    assert truth.asked == 2 * 12  # type: ignore[attr-defined]
    assert len(decided) < 12  # a tie has no right answer
    assert metrics["val/unscored_rate"] == pytest.approx(1 / len(decided))
    # the ground truth agrees with its own labels on every pair that it could read
    assert metrics["val/pair_accuracy"] == pytest.approx((len(decided) - 1) / len(decided))


@pytest.mark.parametrize(("options", "expected"), [({"val_constrained": True}, "written"), ({"val_expected": True}, "weighed")])
def test_validation_may_force_the_form_and_weigh_scores(
    options: dict[str, bool], expected: str, rationales: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preferences = tiny.pairs(tmp_path / "pairs", 3, seed=1)
    asked: list[Critic] = []
    critique = Critic.critique

    def listen(self: Critic, *args: Any, **kwargs: Any) -> Any:
        asked.append(self)
        return critique(self, *args, **kwargs)

    monkeypatch.setattr(Critic, "critique", listen)
    module = tiny.distill_module(val_max_tokens=320, **options)
    data = tiny.distill_data(rationales, val_preferences=str(preferences), val_batch_size=8)
    trainer = tiny.trainer(max_steps=1, val_check_interval=1)
    trainer.fit(module, data)
    assert len(asked) == 1 and asked[0].chat.batch_size == 2 * 3  # type: ignore[attr-defined] # all at once
    assert (asked[0].constrained, asked[0].expected) == (expected == "written", expected == "weighed")
    unscored = float(trainer.callback_metrics["val/unscored_rate"])
    # one step is not enough to learn the form; forced into it, every answer can be read
    assert unscored == (0.0 if expected == "written" else 1.0)


def test_the_best_is_exported_and_not_the_last(rationales: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.5, 0.75, 0.75, 0.25])
    seen: list[Tensor] = []

    def validated(self: RationaleDistillModule) -> None:
        self.log("val/pair_accuracy", next(accuracies))
        seen.append(self.student.lm_head.weight.detach().clone())

    monkeypatch.setattr(RationaleDistillModule, "on_validation_epoch_end", validated)
    module = tiny.distill_module()
    best = ModelCheckpoint(tmp_path / "checkpoints", "{step}", monitor="val/pair_accuracy", mode="max")
    export = CriticExport(str(tmp_path / "critic"), monitor="val/pair_accuracy")
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic" / "notes.txt").write_text("not of the critic")
    data = tiny.distill_data(eight_rows(tmp_path, rationales), val=str(rationales), limit_val=1)
    trainer = tiny.trainer(
        max_steps=4,
        accumulate_grad_batches=2,
        val_check_interval=2,  # at 1, ModelCheckpoint takes it for once an epoch
        enable_checkpointing=True,
        callbacks=[best, export],
    )
    trainer.fit(module, data)
    written = load_file(tmp_path / "critic" / "model.safetensors")
    tied = next(name for name in ("lm_head.weight", "model.language_model.embed_tokens.weight") if name in written)
    assert torch.equal(written[tied], seen[1])  # the first of the best
    assert not torch.equal(seen[1], seen[3])
    assert best.best_model_path.endswith("step=2.ckpt") and export.best == 0.75
    check_fingerprint(tmp_path / "critic", CritiqueFormat("shapes"))
    # what else was there stays, and nothing is left of writing it
    assert (tmp_path / "critic" / "notes.txt").exists() and not list(tmp_path.glob(".critic*"))

    resumed = CriticExport(str(tmp_path / "critic"), monitor="val/pair_accuracy")
    resumed.load_state_dict(export.state_dict())
    assert resumed.best == 0.75


def test_without_anything_monitored_the_last_is_exported_with_a_warning(rationales: Path, tmp_path: Path) -> None:
    module = tiny.distill_module()
    export = CriticExport(str(tmp_path / "critic"), monitor="val/pair_accuracy")
    with pytest.warns(UserWarning, match="val/pair_accuracy was never validated"):
        tiny.trainer(max_steps=1, callbacks=[export]).fit(module, tiny.distill_data(rationales))
    exported = AutoModelForImageTextToText.from_pretrained(str(tmp_path / "critic"))
    assert torch.equal(exported.lm_head.weight, module.student.lm_head.weight)


# -- compiled -------------------------------------------------------------------------------------------------------------


COMPILED = """
import json
import sys
import tiny
from pathlib import Path
from lightning.pytorch import Callback

class Losses(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        losses[-1].append(float(trainer.callback_metrics["train/loss"]))

rationales, pairs = sys.argv[1:]
losses = []
for compile in (False, True):
    losses.append([])
    module = tiny.distill_module(optimizer=tiny.smooth, val_max_tokens=8, compile=compile)
    trainer = tiny.trainer(max_steps=3, val_check_interval=3, callbacks=[Losses()])
    trainer.fit(module, tiny.distill_data(Path(rationales), val_preferences=pairs))
    names = [name for name in module.state_dict() if "_orig_mod" in name]
from torch._dynamo.utils import counters
print(json.dumps({"losses": losses, "names": names, "graphs": counters["stats"]["unique_graphs"]}))
"""


@pytest.mark.slow
@needs_compiler
def test_compiled_layers_train_alike(rationales: Path, tmp_path: Path) -> None:
    """In a process of its own: the compiler leaves variables behind."""
    arguments = ["-c", COMPILED, eight_rows(tmp_path, rationales), tiny.pairs(tmp_path / "pairs", 2)]
    done = run_python(arguments, timeout=580, env={"PYTHONPATH": str(Path(tiny.__file__).parent)})
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    # fused kernels round otherwise
    assert said["losses"][1] == pytest.approx(said["losses"][0], rel=1e-4)
    # it is compiled, a few times for all layers and lengths; and checkpoints hold the names that they hold without
    assert 0 < said["graphs"] < 20 and not said["names"]
