"""Every flow pipeline of diffusers that the documentation names: learned, proven, trained one step, saved, loaded, batched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rationalrewards.components.generation import FlowGenerator, PipelineTape, PolicyVelocities, Recording, Savers
from rationalrewards.components.generation.noise import normal
from rationalrewards.components.generation.policies import OLD, POLICY, parameters_of, use
from rationalrewards.components.objectives import nft_loss
from torch import Tensor, nn

PROMPTS = ["red circle top left", "turn it"]
SOURCES = [Image.effect_mandelbrot((64, 64), corners, 30).convert("RGB") for corners in ((-2, -1.5, 1, 1.5), (-1, -1, 0.5, 0.5))]
STEPS = 3


@dataclass(frozen=True)
class Case:
    """One way of using a pipeline.

    Args:
        build: The builder in conftest.
        call: Arguments of the pipeline's call.
        rule: What the tape must learn: where the sample goes in, the time, how the velocity comes out.
        sources: Source pictures of the call.
        settings: Attributes that shorten what the pipeline does by default.
        one_prompt: The pipeline takes one prompt per call.
        unreached: Layers of the LoRA that the picture does not depend on: the text's half of a last block leads nowhere.
    """

    build: str
    call: dict[str, Any]
    rule: tuple[str, str, str]
    sources: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    one_prompt: bool = False
    unreached: tuple[str, ...] = ()

    @property
    def prompts(self) -> list[str]:
        return [PROMPTS[0]] * 2 if self.one_prompt else PROMPTS


SMALL = {"height": 16, "width": 16, "max_sequence_length": 32}
NO_CFG = {**SMALL, "guidance_scale": 1.0}
KLEIN = {**NO_CFG, "height": 32, "width": 32, "max_sequence_length": 40, "text_encoder_out_layers": (1, 2, 3)}
FLUX2 = {**SMALL, "height": 32, "width": 32, "guidance_scale": 2.5, "max_sequence_length": 64, "text_encoder_out_layers": (1,)}
QWEN = {"height": 16, "width": 16, "true_cfg_scale": 1.0}
LAST = ("transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.to_add_out")
PLAIN = ("whole", "t", "output")
SCALED = ("whole", "t/1000", "output")
APPENDED = ("first tokens", "t/1000", "first tokens of output")
CASES = {
    "sd3": Case("sd3", NO_CFG, PLAIN, unreached=("transformer_blocks.1.attn.add_q_proj",)),
    "flux": Case("flux", {**SMALL, "guidance_scale": 2.5}, SCALED),
    "kontext": Case("kontext", {**SMALL, "guidance_scale": 2.5, "max_area": 256, "_auto_resize": False}, APPENDED, sources=1),
    "flux2": Case("flux2", FLUX2, SCALED, settings={"system_message": "Draw."}),
    "flux2 edit": Case("flux2", FLUX2, APPENDED, sources=1, settings={"system_message": "Draw."}),
    "klein": Case("klein", KLEIN, SCALED),
    "klein edit": Case("klein", KLEIN, APPENDED, sources=1),
    "klein edit of two": Case("klein", KLEIN, APPENDED, sources=2),
    "qwen": Case("qwen", QWEN, SCALED, unreached=LAST),
    "qwen edit": Case("qwen-edit", QWEN, APPENDED, sources=1, one_prompt=True, unreached=LAST),
    "qwen edit plus": Case("qwen-edit-plus", QWEN, APPENDED, sources=2, one_prompt=True, unreached=LAST),
    "z-image": Case("z-image", {**SMALL, "guidance_scale": 0.0}, ("list", "(1000-t)/1000", "-stacked list")),
    "sana": Case(
        "sana",
        {**NO_CFG, "height": 32, "width": 32, "complex_human_instruction": None, "use_resolution_binning": False},
        PLAIN,
    ),
    "lumina2": Case(
        "lumina2", {**NO_CFG, "height": 64, "width": 64, "system_prompt": "Draw."}, ("whole", "(1000-t)/1000", "-output")
    ),
    "chroma": Case("chroma", NO_CFG, SCALED),
    "aura-flow": Case("aura-flow", NO_CFG, SCALED),
    # it scales every request to the area of a picture of so many latents
    "hidream": Case(
        "hidream", {**NO_CFG, "max_sequence_length": 24}, ("whole", "t", "-output"), settings={"default_sample_size": 8}
    ),
    "ovis": Case("ovis", {**NO_CFG, "max_sequence_length": 64}, SCALED, settings={"system_prompt": "Describe the image: "}),
    "wan": Case("wan", {**NO_CFG, "height": 32, "width": 32, "num_frames": 5}, PLAIN),
}
# diffusers' own Chroma takes it from there
_deprecated = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
every_case = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=_deprecated) if name == "chroma" else name for name in CASES]
)


@pytest.fixture(scope="module")
def folder(build: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saved pipelines, each once: what a user has."""
    saved: dict[str, Path] = {}

    def get(name: str) -> Path:
        kind = CASES[name].build
        if kind not in saved:
            saved[kind] = tmp_path_factory.mktemp(kind) / "pipeline"
            build(kind).save_pretrained(saved[kind])
        return saved[kind]

    return get


@pytest.fixture(scope="module")
def recipe(folder: Callable[[str], Path]) -> Callable[..., FlowGenerator]:
    def make(name: str, **options: Any) -> FlowGenerator:
        case = CASES[name]
        made = FlowGenerator(str(folder(name)), steps=STEPS, pipeline_kwargs=case.call, rank=2, alpha=6, **options)
        made.load()
        for setting, value in case.settings.items():
            setattr(made.pipe, setting, value)
        return made

    return make


@pytest.fixture(scope="module")
def trained(recipe: Callable[..., FlowGenerator]) -> Callable[[str], FlowGenerator]:
    """Generators with policies, all three different."""
    made: dict[str, FlowGenerator] = {}

    def get(name: str) -> FlowGenerator:
        if name not in made:
            generator = made[name] = recipe(name)
            generator.prepare_training(seed=1)
            noise = torch.Generator().manual_seed(2)
            with torch.no_grad():
                for policy, size in ((POLICY, 0.3), (OLD, 0.1)):
                    for parameter_name, parameter in parameters_of(generator.denoiser, policy).items():
                        if "lora_B" in parameter_name:
                            parameter.copy_(size * torch.randn(parameter.shape, generator=noise))
        return made[name]

    return get


@pytest.fixture(scope="module")
def recorded(trained: Callable[[str], FlowGenerator]) -> Callable[[str], Recording]:
    """A recording of every case, made once."""
    made: dict[str, Recording] = {}

    def get(name: str) -> Recording:
        if name not in made:
            case = CASES[name]
            made[name] = trained(name).record(case.prompts, SOURCES[: case.sources], [5, 6], keep_steps=True)
        return made[name]

    return get


def _pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.convert("RGB"), dtype=np.int16) for image in images])


@every_case
def test_its_own_steps_prove_what_was_learned(recorded: Callable[[str], Recording], name: str) -> None:
    recording = recorded(name)
    rule = recording.rule
    assert (rule.sample_rule, rule.time_rule, rule.output_rule) == CASES[name].rule
    assert recording.prove() == 0.0
    assert len(recording.images) == len(recording.x0) == 2 and recording.x0.dtype == torch.float32
    assert recording.sigmas == sorted(recording.sigmas, reverse=True) and len(recording.sigmas) == STEPS
    assert recording._log is not None
    x = recording._log.steps[0].sample.float()
    steps = zip(recording.sigmas, [*recording.sigmas[1:], 0.0], recording._log.steps, strict=True)
    with torch.no_grad():
        for sigma, following, step in steps:
            per_sample = recording.velocity(step.sample, torch.full((2,), sigma))
            # sigma times 1000 and back to the model's scale: the recorded time to its last bit or one beside it
            assert torch.allclose(per_sample, step.model_output.float(), atol=1e-4)
            x = x + (following - sigma) * recording.velocity(x, sigma)
    # sign, scale and direction of time at once; float32 rounding over three steps
    assert torch.allclose(x, recording.x0, atol=1e-4)


def _every_parameter(generator: FlowGenerator) -> dict[str, nn.Parameter]:
    return {
        f"{part}.{name}": parameter
        for part, module in generator.pipe.components.items()
        if isinstance(module, nn.Module)
        for name, parameter in module.named_parameters()
    }


@every_case
def test_a_step_reaches_the_lora_and_nothing_else(
    recorded: Callable[[str], Recording], trained: Callable[[str], FlowGenerator], name: str
) -> None:
    case, recording, generator = CASES[name], recorded(name), trained(name)
    policy = {f"transformer.{name}" for name in parameters_of(generator.denoiser, POLICY)}
    before = {name: parameter.detach().clone() for name, parameter in _every_parameter(generator).items()}
    sigma = torch.tensor([0.9, 0.4])
    wide = sigma.view(-1, *[1] * (recording.x0.ndim - 1))
    x_t = (1 - wide) * recording.x0 + wide * normal(recording.x0, [(0, 0), (0, 1)])
    with torch.no_grad(), use(generator.denoiser, OLD):
        v_old = recording.velocity(x_t, sigma)
    v = recording.velocity(x_t, sigma)
    assert not torch.equal(v, v_old)
    nft_loss(v, v_old, x_t, recording.x0, sigma, torch.tensor([1.0, 0.2]), nft_beta=1.0).mean().backward()
    gradients = {name: p.grad for name, p in _every_parameter(generator).items() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    optimizer = torch.optim.SGD(parameters_of(generator.denoiser, POLICY).values(), lr=1.0)
    optimizer.step()
    optimizer.zero_grad()
    after = _every_parameter(generator)
    changed = {name for name, parameter in after.items() if not torch.equal(parameter, before[name])}
    with torch.no_grad():  # the generator is shared by all tests
        for key, value in before.items():
            after[key].copy_(value)
    unreached = {name for name in policy if any(f".{layer}.lora_" in name for layer in case.unreached)}
    assert set(gradients) <= policy and changed == policy - unreached


@every_case
def test_a_saved_lora_makes_the_same_picture_where_the_pipeline_loads_it(
    tmp_path: Path, recipe: Callable[..., FlowGenerator], trained: Callable[[str], FlowGenerator], name: str
) -> None:
    case, generator = CASES[name], trained(name)

    def latents(made: FlowGenerator) -> Tensor:
        """Finer than pixels, and by the pipeline alone."""
        arguments = made._arguments(STEPS, case.prompts[:1], SOURCES[: case.sources], [7])
        return PipelineTape(made.pipe).record(**arguments).x0

    expected = latents(generator)
    with use(generator.denoiser, None):
        base = latents(generator)
    loaded = latents(recipe(name, adapter=str(generator.save_adapter(tmp_path / "lora"))))
    difference, effect = (loaded - expected).abs().max(), (expected - base).abs().max()
    assert effect > 1e-3
    assert difference < 1e-5  # the same numbers in the same order; a pipeline may scale the two matrices another way


@every_case
def test_some_samples_of_a_recording_have_the_velocities_that_they_have_in_it(
    recorded: Callable[[str], Recording], name: str
) -> None:
    recording = recorded(name)
    rows, sigma = [1, 0, 1], torch.tensor([0.9, 0.4])
    wide = sigma.view(-1, *[1] * (recording.x0.ndim - 1))
    x_t = (1 - wide) * recording.x0 + wide * normal(recording.x0, [(0, 0), (0, 1)])
    chosen = recording.select(rows)
    assert [id(image) for image in chosen.images] == [id(recording.images[row]) for row in rows]
    assert torch.equal(chosen.x0, recording.x0[rows])
    with torch.no_grad():
        whole = recording.velocity(x_t, sigma)
        # the order of float32 sums in a matrix product of another batch size
        assert torch.allclose(chosen.velocity(x_t[rows], sigma[rows]), whole[rows], atol=1e-4)
        one = recording.select([1]).velocity(x_t[1:], sigma[1:])
    assert torch.allclose(one, whole[1:], atol=1e-4)
    assert float((whole[0] - whole[1]).abs().max()) > 1e-2  # samples do differ


@every_case
def test_what_policies_share_changes_no_velocity(
    recorded: Callable[[str], Recording], trained: Callable[[str], FlowGenerator], name: str
) -> None:
    recording, denoiser = recorded(name), trained(name).denoiser
    sigma = torch.tensor([0.9, 0.4])
    wide = sigma.view(-1, *[1] * (recording.x0.ndim - 1))
    x_t = (1 - wide) * recording.x0 + wide * normal(recording.x0, [(0, 0), (0, 1)])

    def velocities(**savers: Any) -> list[Tensor]:
        found = PolicyVelocities(denoiser, Savers(**savers))(recording, x_t, sigma, old=True, reference=True)
        assert found.old is not None and found.reference is not None
        assert found.policy.requires_grad and not found.old.requires_grad and not found.reference.requires_grad
        return [found.policy.detach(), found.old, found.reference]

    plain = velocities(share_prefix=False)
    assert min(float((plain[a] - plain[b]).abs().max()) for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-4  # three policies
    for mine, own in zip(velocities(share_prefix=True), plain, strict=True):
        assert torch.equal(mine, own)
    for one_forward in ("frozen", "all"):
        for mine, own in zip(velocities(one_forward=one_forward), plain, strict=True):
            # the order of float32 sums in a matrix product of another batch size
            assert torch.allclose(mine, own, atol=1e-4), (one_forward, float((mine - own).abs().max()))


@every_case
def test_a_batch_of_unequal_prompts_is_its_prompts_one_by_one(
    trained: Callable[[str], FlowGenerator], recorded: Callable[[str], Recording], name: str
) -> None:
    case = CASES[name]
    sources = SOURCES[: case.sources]
    together = recorded(name)
    for index, (prompt, seed) in enumerate(zip(case.prompts, (5, 6), strict=True)):
        alone = trained(name).record([prompt], sources, [seed])
        # the order of float32 sums in a matrix product of another batch size, over three steps
        assert torch.allclose(alone.x0[0], together.x0[index], atol=1e-4), float((alone.x0[0] - together.x0[index]).abs().max())
        assert np.abs(_pixels(alone.images)[0] - _pixels(together.images)[index]).max() <= 1
    if case.one_prompt:  # diffusers' own limit; copies of one prompt make a group all the same
        with pytest.raises(ValueError, match=r"batch_size=1|number of images"):
            trained(name).record(PROMPTS, sources, [5, 6])
