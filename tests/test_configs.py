"""Every file in configs/: parsed and instantiated by the real command line, without loading a weight."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from jsonargparse import Namespace
from rationalrewards.components.chat import ChatRequest, OpenAIChat, TransformersChat
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.generation import FlowGenerator, policies
from rationalrewards.components.parrot.estimate import Load, planned_calls
from rationalrewards.components.rewards import CritiqueReward
from rationalrewards.lightning_modules import RefineLoop, RewardEvaluationModule, RewardRLModule
from support import OWN_WORDING, ROOT

from rationalrewards import cli

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.glob("*/*.yaml"))
# what a file runs; the others are fragments for a further -c
RECIPES = [path for path in FILES if "model" in yaml.safe_load(path.read_text(encoding="utf-8"))]
FRAGMENTS = [path for path in FILES if path not in RECIPES]
COMMANDS = {
    "rationalize": "predict",
    "distill": "fit",
    "preference": "fit",
    "evaluate": "test",
    "attack": "test",
    "rl": "fit",
    "refine": "predict",
}


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


RL = [path for path in RECIPES if name(path).startswith("rl/")]
DISTILLING = [path for path in RECIPES if name(path).startswith("distill/")]
GENERATING = [path for path in RECIPES if name(path).startswith(("rl/", "refine/"))]

PIPELINES = {
    "embedded:shapes-generator": diffusers.Flux2KleinPipeline,
    "black-forest-labs/FLUX.1-dev": diffusers.FluxPipeline,
    "black-forest-labs/FLUX.1-Kontext-dev": diffusers.FluxKontextPipeline,
    "stabilityai/stable-diffusion-3.5-medium": diffusers.StableDiffusion3Pipeline,
    "Qwen/Qwen-Image": diffusers.QwenImagePipeline,
    "Qwen/Qwen-Image-Edit-2509": diffusers.QwenImageEditPlusPipeline,
    "black-forest-labs/FLUX.2-klein-4B": diffusers.Flux2KleinPipeline,
}
"""The pipeline class in each model's model_index.json."""


def _flux() -> torch.nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    )


def _flux2() -> torch.nn.Module:
    return diffusers.Flux2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
    )


def _qwen() -> torch.nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=4,
        out_channels=1,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )


def _sd35() -> torch.nn.Module:
    # two attentions in the first block and none of the text in the last, as in 3.5 medium
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


DENOISERS: dict[type, Callable[[], torch.nn.Module]] = {
    diffusers.FluxPipeline: _flux,
    diffusers.FluxKontextPipeline: _flux,
    diffusers.Flux2KleinPipeline: _flux2,
    diffusers.QwenImagePipeline: _qwen,
    diffusers.QwenImageEditPlusPipeline: _qwen,
    diffusers.StableDiffusion3Pipeline: _sd35,
}
"""A small denoiser with the layers of each pipeline's."""


@dataclass
class Built:
    """What the command line made of a file."""

    cli: cli.RationalRewardsCLI
    trainer: Namespace
    """The trainer's arguments as the file gives them; the trainer itself is on the CPU."""


Build = Callable[..., Built]


@pytest.fixture(scope="module")
def build() -> Iterator[Build]:
    """``build(command, *arguments)``: the command line up to, but without, the run; without a GPU, a logger or the hub.

    The same arguments are built once: nothing here changes what it is given.
    """
    seen: list[Namespace] = []

    def without_hardware(self: cli.RationalRewardsCLI) -> None:
        trainer = self.config[self.subcommand].trainer
        seen.append(trainer.clone())
        for key, value in {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"}.items():
            trainer[key] = value
        trainer.logger = False

    @cache
    def run(command: str, *arguments: str | Path) -> Built:
        made = cli.run([command, *map(str, arguments)])
        return Built(made, seen[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.RationalRewardsCLI, "before_instantiate_classes", without_hardware, raising=False)
        patch.setattr(cli.RationalRewardsCLI, "_run_subcommand", lambda self, subcommand: None)
        yield run


def command_of(path: Path) -> str:
    return COMMANDS[path.parent.name]


def generator_of(model: Any) -> FlowGenerator:
    assert isinstance(model, (RefineLoop, RewardRLModule))
    assert isinstance(model.generator, FlowGenerator)
    return model.generator


def chats_of(model: Any) -> list[OpenAIChat | TransformersChat]:
    """The chat models of a module that ask a network."""
    found = [getattr(model, "teacher", None)]
    for holder in (getattr(model, "judge", None), getattr(model, "critic", None)):
        found.append(getattr(holder, "chat", None))
    reward = getattr(model, "reward", None)
    if isinstance(reward, CritiqueReward):
        found.append(reward.critic.chat)
    return [chat for chat in found if isinstance(chat, (OpenAIChat, TransformersChat))]


def test_every_file_is_a_recipe_of_a_stage_or_a_fragment() -> None:
    assert {path.parent.name for path in RECIPES} == set(COMMANDS)
    # tests/test_trainer_configs.py tests these
    assert {path.parent.name for path in FRAGMENTS} <= {"trainer", "logger"}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_begins_with_its_command(path: Path) -> None:
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first == f"# rationalrewards {command_of(path)} -c configs/{name(path)}.yaml"
    if path.stem != "shapes":
        assert second.startswith("# Not run on a GPU here"), second


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_built_without_weights(path: Path, build: Build) -> None:
    # the hub is off and the models are not on this machine: loading one would fail
    built = build(command_of(path), "-c", path)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    model = built.cli.model
    assert f"{type(model).__module__}.".startswith(written["model"]["class_path"].rpartition(".")[0])
    assert type(model).__name__ == written["model"]["class_path"].rpartition(".")[2]
    assert type(built.cli.datamodule).__name__ == written["data"]["class_path"].rpartition(".")[2]
    # the trainer's values are those of the file, however much was overridden to build it here
    for key in set(written["trainer"]) - {"callbacks", "strategy"}:
        assert built.trainer[key] == written["trainer"][key], key
    made = [type(callback).__name__ for callback in built.cli.trainer.callbacks]  # type: ignore[attr-defined]
    for callback in written["trainer"]["callbacks"]:
        assert callback["class_path"].rpartition(".")[2] in made
    if path in GENERATING:
        assert generator_of(model).pipe is None
    for chat in chats_of(model):
        assert (chat.model is None) if isinstance(chat, TransformersChat) else not chat._connection.is_open


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=name)
def test_a_fragment_goes_on_top_of_a_recipe(fragment: Path, build: Build) -> None:
    built = build("fit", "-c", CONFIGS / "distill" / "shapes.yaml", "-c", fragment)
    for key, value in yaml.safe_load(fragment.read_text(encoding="utf-8"))["trainer"].items():
        if key in ("strategy", "logger") and isinstance(value, dict):
            assert built.trainer[key].class_path.endswith(value["class_path"].rpartition(".")[2])
        else:
            assert built.trainer[key] == value, key


def test_the_full_fine_tuning_recipe_is_the_papers(build: Build) -> None:
    built = build("fit", "-c", CONFIGS / "distill" / "qwen3vl_8b.yaml")
    model, data, trainer = built.cli.model, built.cli.datamodule, built.trainer
    assert (model.freeze_vision, model.freeze_projector, model.lora_rank) == (True, True, None)
    assert data.batch_size * trainer.accumulate_grad_batches * trainer.devices == 128
    assert trainer.strategy.class_path.endswith("DeepSpeedStrategy") and trainer.strategy.init_args.stage == 3
    # 57,600 pairs, 2 critiques and 2 orders each, 3 epochs
    assert trainer.max_steps == 57_600 * 4 * trainer.max_epochs // 128
    optimizer = model.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["weight_decay"] == 1e-6
    scheduler = model.scheduler(optimizer)
    factor = scheduler.lr_lambdas[0]
    # warm-up over 5 % of the steps, so 270, up to 1e-5; zero at the end
    assert (factor(0), factor(135), factor(270), factor(trainer.max_steps)) == (0.0, 0.5, 1.0, 0.0)
    assert scheduler.base_lrs == [1e-5]


def test_the_schedule_follows_the_steps_of_the_command_line(build: Build) -> None:
    built = build("fit", "-c", CONFIGS / "distill" / "qwen3vl_8b.yaml", "--trainer.max_steps=40")
    scheduler = built.cli.model.scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    assert scheduler.lr_lambdas[0](40) == 0.0 < scheduler.lr_lambdas[0](39)


@pytest.mark.parametrize("path", DISTILLING, ids=name)
def test_a_student_and_its_rationales_have_one_format(path: Path, build: Build) -> None:
    distill = build("fit", "-c", path).cli
    teacher = "shapes" if path.stem == "shapes" else "qwen3vl_32b_server"
    rationalize = build("predict", "-c", CONFIGS / "rationalize" / f"{teacher}.yaml").cli
    assert rationalize.model.format == distill.datamodule.format == distill.model.format
    assert distill.model.format == CritiqueFormat("shapes" if path.stem == "shapes" else "default")


def test_a_template_is_given_beside_the_rubric(build: Build, tmp_path: Path) -> None:
    own, recipe = CritiqueFormat("shapes", OWN_WORDING), CONFIGS / "distill" / "shapes.yaml"
    here, there = (f"--{part}.init_args.format.template={OWN_WORDING}" for part in ("model", "data"))
    both = build("fit", "-c", recipe, here, there).cli
    assert both.model.format == both.datamodule.format == own
    assert build("predict", "-c", CONFIGS / "rationalize" / "shapes.yaml", here).cli.model.format == own
    # or once, and followed by the data
    following = recipe.read_text(encoding="utf-8").split("\ndata:")
    following[1] = following[1].replace("format: {rubric: shapes}", "format: ${model.init_args.format}")
    (tmp_path / "once.yaml").write_text("\ndata:".join(following), encoding="utf-8")
    assert build("fit", "-c", tmp_path / "once.yaml", here).cli.datamodule.format == own


@pytest.mark.parametrize("path", GENERATING, ids=name)
def test_pipeline_arguments_are_the_pipelines_own(path: Path, build: Build) -> None:
    generator = generator_of(build(command_of(path), "-c", path).cli.model)
    parameters = inspect.signature(PIPELINES[generator.path].__call__).parameters
    assert set(generator.pipeline_kwargs) <= set(parameters)
    # what the generator itself passes
    assert {"prompt", "generator", "num_inference_steps"} <= set(parameters)
    assert not {"prompt", "generator", "num_inference_steps", "image"} & set(generator.pipeline_kwargs)


@pytest.mark.parametrize("path", RL, ids=name)
def test_no_second_denoiser_call_while_training(path: Path, build: Build) -> None:
    generator = generator_of(build("fit", "-c", path).cli.model)
    pipeline, arguments = PIPELINES[generator.path], generator.pipeline_kwargs
    parameters = inspect.signature(pipeline.__call__).parameters
    assert "negative_prompt" not in arguments
    if "true_cfg_scale" in parameters:  # FLUX.1 and Qwen-Image: a second call above 1
        assert arguments.get("true_cfg_scale", parameters["true_cfg_scale"].default) == 1.0
    else:  # SD3 and FLUX.2 klein: guidance_scale is that of the second call
        assert arguments.get("guidance_scale", parameters["guidance_scale"].default) <= 1.0


@pytest.mark.parametrize("path", RL, ids=name)
def test_lora_targets_are_the_denoisers_layers(path: Path, build: Build) -> None:
    generator = generator_of(build("fit", "-c", path).cli.model)
    denoiser = DENOISERS[PIPELINES[generator.path]]()
    linear = [key for key, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)]
    unused = [target for target in generator.targets if not any(f".{key}".endswith(f".{target}") for key in linear)]
    assert unused == []
    # no attention projection is left out
    missed = [key for key in linear if "attn" in key and ".norm" not in key and "add_q_norm" not in key]
    missed = [key for key in missed if not any(f".{key}".endswith(f".{target}") for target in generator.targets)]
    assert missed == []
    policies.add_policies(denoiser, 2, 4, generator.targets, seed=0)
    assert policies.parameters_of(denoiser, policies.POLICY)


@pytest.mark.parametrize("path", RL, ids=name)
def test_a_round_is_whole_optimizer_steps_on_every_process(path: Path, build: Build) -> None:
    built = build("fit", "-c", path)
    data, processes = built.cli.datamodule, built.trainer.devices * built.trainer.num_nodes
    assert data.groups_per_epoch % processes == 0
    pictures = data.groups_per_epoch // processes * data.group_size
    assert pictures % data.batch_size == 0
    batches = pictures // data.batch_size * data.visits
    assert batches % built.trainer.accumulate_grad_batches == 0
    # a visit is another noise level of the sampler's schedule
    assert data.visits <= generator_of(built.cli.model).steps
    if path.stem != "shapes":
        # the paper: one step a round
        assert batches == built.trainer.accumulate_grad_batches
    edits = PIPELINES[generator_of(built.cli.model).path] in (
        diffusers.FluxKontextPipeline,
        diffusers.QwenImageEditPlusPipeline,
    )
    if edits:
        # a pipeline call takes one set of sources
        assert data.batch_size <= data.group_size


@pytest.mark.parametrize("path", RL, ids=name)
def test_checkpoints_are_taken_after_the_old_policy_followed(path: Path, build: Build) -> None:
    # Lightning saves with the validation instead, before on_train_epoch_end, when that is not run every round
    built = build("fit", "-c", path)
    saving = built.cli.trainer.checkpoint_callback
    assert saving is not None
    assert built.cli.datamodule.val_path is None or saving._save_on_train_epoch_end  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_checkpoints_are_taken_on_the_way(path: Path) -> None:
    """With ``save_top_k: 0`` Lightning 2.6 writes ``last.ckpt`` at the very end only: a killed run would start anew."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    for callback in recipe["trainer"].get("callbacks", ()):
        if callback["class_path"].endswith("ModelCheckpoint"):
            assert callback["init_args"]["save_last"] and callback["init_args"]["save_top_k"] != 0


def test_qwen_image_edit_gets_one_picture_a_call(build: Build) -> None:
    # "QwenImageEditPlusPipeline currently only supports batch_size=1" (diffusers)
    rl = build("fit", "-c", CONFIGS / "rl" / "qwen_image_edit_2509.yaml").cli
    assert rl.datamodule.batch_size == rl.datamodule.eval_batch_size == 1
    refine = build("predict", "-c", CONFIGS / "refine" / "qwen_image_edit_2509.yaml").cli.model
    assert refine.options.pictures_per_call == 1


PAID = {
    # what its pictures of 1024 x 1024 take, and what it may think about a call, in tokens, as the file has it; then what is sent
    "openai_api": (
        1229,
        0,
        {"max_completion_tokens": 4096, "temperature": 0.7, "reasoning_effort": "none"},
        {"max_tokens", "seed"},
    ),
    "gemini_api": (1120, 500, {"max_tokens": 8192, "reasoning_effort": "low"}, {"seed", "temperature"}),
}


def test_every_recipe_with_a_price_is_looked_at() -> None:
    priced = {path.stem for path in RECIPES if "price:" in path.read_text(encoding="utf-8")}
    assert priced == set(PAID)


@pytest.mark.parametrize("recipe", PAID)
def test_a_paid_api_is_sent_what_it_takes(recipe: str, build: Build) -> None:
    _, _, sent, refused = PAID[recipe]
    model = build("predict", "-c", CONFIGS / "rationalize" / f"{recipe}.yaml").cli.model
    teacher, options = model.teacher, model.options
    request = ChatRequest([{"role": "user", "content": []}], options.max_tokens, options.temperature, seed=7)
    body = teacher._body(request)
    body |= body.pop("extra_body")
    assert {key: body.get(key) for key in sent} == sent
    assert not refused & set(body)
    assert teacher.api_key_env.endswith("_API_KEY") and teacher.max_pixels == 1024 * 1024


@pytest.mark.parametrize("recipe", PAID)
def test_the_cost_that_a_recipe_tells_follows_from_its_options_and_price(recipe: str, build: Build) -> None:
    picture, thinking, _, _ = PAID[recipe]
    path = CONFIGS / "rationalize" / f"{recipe}.yaml"
    told = " ".join(line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines())
    model = build("predict", "-c", path).cli.model
    assert re.search(r"\b20\d\d\b", model.price.stated) and "check" in model.price.stated
    # tokens of text of a request and of an answer, as the file has them; the audit's are too few to count
    text = {"anchor": (450, 900), "check": (800, 10), "project": (1350, 600), "refine": (700, 250), "audit": (0, 0)}
    assert "450 anchor, 800 check, 1,350 project, 700 refine" in told
    assert "900 anchor, 10 check, 600 project, 250 refine" in told
    for sources in (0, 1):
        plan = planned_calls(Load.of_size(1000, model.options, sources), model.options)
        pictures = sum(plan.expected_images.values())
        prompt, answer = pictures * picture, sum(plan.expected_calls.values()) * thinking
        for stage, calls in plan.expected_calls.items():
            asked, written = text[stage.removeprefix("control-")]
            prompt, answer = prompt + calls * asked, answer + calls * written
        assert f"{pictures:,.0f}" in told
        assert f"about {model.price.of(round(prompt), round(answer)):.0f} USD" in told


def test_both_ways_of_evaluating_are_there(build: Build) -> None:
    kinds = set()
    for path in (CONFIGS / "evaluate").glob("*.yaml"):
        model = build("test", "-c", path).cli.model
        assert isinstance(model, RewardEvaluationModule)
        kinds.add("pointwise" if model.reward is not None else "pairwise")
    assert kinds == {"pointwise", "pairwise"}


# -- a typo ends the run ------------------------------------------------------------------------------------------------


def refused(build: Build, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command line says before it exits."""
    with pytest.raises(SystemExit) as exit:
        build(*arguments)
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("freeze_visoin", "freeze_vision"),
        ("batchsize", "batch_size"),
        ("max_step", "max_steps"),
        ("outputdir", "output_dir"),
        ("weightdecay", "weight_decay"),
        ("seed_everythin", "seed_everything"),
    ],
)
def test_an_unknown_key_is_named(
    wrong: str, right: str, build: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = (CONFIGS / "distill" / "shapes.yaml").read_text(encoding="utf-8")
    assert f"{right}: " in text
    # max_steps is interpolated elsewhere in the file; an unresolved name there would be the error instead
    text = text.replace("${trainer.max_steps}", "450").replace(f"{right}: ", f"{wrong}: ", 1)
    (tmp_path / "typo.yaml").write_text(text, encoding="utf-8")
    assert re.search(rf"\b{wrong}\b", refused(build, capsys, "fit", "-c", tmp_path / "typo.yaml"))


def test_an_unknown_key_deep_in_a_recipe_is_named(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = CONFIGS / "rl" / "flux1_dev.yaml"
    for path in ("generator.init_args.ranks=4", "reward.init_args.critic.init_args.chat.init_args.api_key=secret"):
        message = refused(build, capsys, "fit", "-c", recipe, f"--model.init_args.{path}")
        assert path.split("=")[0].split(".")[-1] in message


@pytest.mark.parametrize("part", ["model", "data"])
def test_a_rubric_outside_its_format_is_named(part: str, build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(build, capsys, "fit", "-c", CONFIGS / "distill" / "shapes.yaml", f"--{part}.init_args.rubric=shapes")
    assert "'rubric' is not accepted" in message


def test_an_unknown_class_and_a_wrong_type_are_named(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = CONFIGS / "evaluate" / "shapes.yaml"
    wrong = "--model.init_args.reward=rationalrewards.components.rewards.CritiqueRewards"
    assert "CritiqueRewards" in refused(build, capsys, "test", "-c", recipe, wrong)
    assert "batch_size" in refused(build, capsys, "test", "-c", recipe, "--data.init_args.batch_size=many")


def test_a_missing_file_and_a_missing_section_are_named(build: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nowhere.yaml" in refused(build, capsys, "fit", "-c", "nowhere.yaml")
    text = yaml.safe_load((CONFIGS / "evaluate" / "shapes.yaml").read_text(encoding="utf-8"))
    del text["data"]
    (tmp_path / "half.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    assert "test.data" in refused(build, capsys, "test", "-c", tmp_path / "half.yaml")
