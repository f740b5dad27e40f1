"""The tape learns real pipelines from their own steps, proves what it learned, and refuses what it cannot prove."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UNet2DModel,
)
from PIL import Image
from rationalrewards.components.checkpoints import resolve
from rationalrewards.components.generation import PipelineTape, Recording, UnprovenPipelineError
from rationalrewards.components.generation.tape import contact_sheet, pictures_of
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import Scene, Shape
from rationalrewards.components.shapes.tiny_generator import PIPELINE_KWARGS, upscale_source
from torch import Tensor

SOURCE = Image.effect_mandelbrot((16, 16), (-2, -1.5, 1, 1.5), 30).convert("RGB")
SMALL = {"height": 16, "width": 16, "max_sequence_length": 32}
CALLS: dict[str, dict[str, Any]] = {
    "sd3": {**SMALL, "guidance_scale": 1.0},
    "flux": {**SMALL, "guidance_scale": 2.5},  # embedded guidance: a number given to the denoiser, no second call
    "kontext": {**SMALL, "guidance_scale": 2.5, "image": SOURCE, "max_area": 256, "_auto_resize": False},
    "z-image": {**SMALL, "guidance_scale": 0.0},
    "klein": PIPELINE_KWARGS,
    "klein edit": {**PIPELINE_KWARGS, "image": upscale_source(draw(Scene((Shape("red", "circle"), None, None, None))))},
}
# the table of docs/architecture.md: where the sample goes in, the time, how the velocity comes out
RULES = {
    "sd3": ("whole", "t", "output"),
    "flux": ("whole", "t/1000", "output"),
    "kontext": ("first tokens", "t/1000", "first tokens of output"),
    "z-image": ("list", "(1000-t)/1000", "-stacked list"),
    "klein": ("whole", "t/1000", "output"),
    "klein edit": ("first tokens", "t/1000", "first tokens of output"),
}


def _klein() -> Any:
    pipe = DiffusionPipeline.from_pretrained(resolve("embedded:shapes-generator"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipelines(build: Callable[[str], Any]) -> Callable[[str], Any]:
    """Pipelines by name, built once; tests that change one build their own."""
    built: dict[str, Any] = {}

    def get(name: str) -> Any:
        kind = name.split()[0]
        if kind not in built:
            built[kind] = _klein() if kind == "klein" else build(kind)
        return built[kind]

    return get


def _arguments(name: str, steps: int = 3, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": ["red circle top left", "turn it blue"],
        "num_inference_steps": steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in (5, 6)],
        **CALLS[name],
        **changes,
    }


def _untouched(pipe: Any) -> bool:
    return "step" not in vars(pipe.scheduler) and not pipe.transformer._forward_hooks


@pytest.mark.parametrize("name", RULES)
def test_a_pipeline_is_learned_and_proven(pipelines: Callable[[str], Any], name: str) -> None:
    pipe = pipelines(name)
    recording = PipelineTape(pipe).record(**_arguments(name))
    rule = recording.rule
    assert (rule.sample_rule, rule.time_rule, rule.output_rule) == RULES[name]
    assert recording.prove() == 0.0
    assert len(recording.images) == len(recording.x0) == 2 and len(recording.sigmas) == 3
    assert recording.sigmas == sorted(recording.sigmas, reverse=True) and recording.sigmas[0] == 1.0
    assert recording.x0.dtype == torch.float32
    # recording is watching: the pictures are those of an ordinary call, and nothing is left behind
    ordinary = pipe(**_arguments(name)).images
    assert [image.tobytes() for image in recording.images] == [image.tobytes() for image in ordinary]
    assert _untouched(pipe)


@pytest.mark.parametrize("name", RULES)
def test_the_velocity_at_a_recorded_point_is_the_recorded_one(pipelines: Callable[[str], Any], name: str) -> None:
    recording = PipelineTape(pipelines(name)).record(**_arguments(name))
    log = recording._log
    assert log is not None
    with torch.no_grad():
        for sigma, step in zip(recording.sigmas, log.steps, strict=True):
            assert torch.equal(recording.velocity(step.sample, sigma), step.model_output.float())
            assert torch.equal(recording.velocity(step.sample, torch.full((2,), sigma)), step.model_output.float())


@pytest.mark.parametrize("name", RULES)
def test_integrating_the_velocity_leads_from_noise_to_x0(pipelines: Callable[[str], Any], name: str) -> None:
    """``v = eps - x0`` with sigma from 1 to 0: sign, scale and direction of time at once."""
    recording = PipelineTape(pipelines(name)).record(**_arguments(name))
    assert recording._log is not None
    x = recording._log.steps[0].sample.float()
    with torch.no_grad():
        for sigma, following in zip(recording.sigmas, [*recording.sigmas[1:], 0.0], strict=True):
            x = x + (following - sigma) * recording.velocity(x, sigma)
    assert torch.allclose(x, recording.x0, atol=1e-4)  # float32 rounding over three steps


@pytest.mark.parametrize("name", ["sd3", "kontext", "z-image", "klein"])
def test_every_sample_has_its_own_noise_level(pipelines: Callable[[str], Any], name: str) -> None:
    recording = PipelineTape(pipelines(name)).record(**_arguments(name))
    x_t = torch.randn(recording.x0.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mixed = recording.velocity(x_t, torch.tensor([0.2, 0.9]))
        low, high = recording.velocity(x_t, 0.2), recording.velocity(x_t, 0.9)
    # equal but for the order of sums inside a batched matrix product
    assert torch.allclose(mixed[0], low[0], atol=1e-5) and torch.allclose(mixed[1], high[1], atol=1e-5)
    assert not torch.allclose(low[0], high[0], atol=1e-3)


def test_the_conditioning_is_that_of_the_recorded_requests(pipelines: Callable[[str], Any]) -> None:
    tape = PipelineTape(pipelines("klein"))
    first = tape.record(**_arguments("klein"))
    other = tape.record(**_arguments("klein", prompt=["green square bottom right"] * 2))
    with torch.no_grad():
        assert not torch.allclose(first.velocity(first.x0, 0.5), other.velocity(first.x0, 0.5), atol=1e-2)


def test_gradients_flow_through_the_velocity_alone(pipelines: Callable[[str], Any]) -> None:
    pipe = pipelines("kontext")
    recording = PipelineTape(pipe).record(**_arguments("kontext"))
    assert not recording.x0.requires_grad
    x_t = recording.x0.clone().requires_grad_()
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    (gradient, to_x) = torch.autograd.grad(recording.velocity(x_t, 0.5).square().mean(), [weight, x_t])
    assert gradient.abs().max() > 0 and to_x.abs().max() > 0


def test_what_training_does_not_need_is_not_kept(pipelines: Callable[[str], Any]) -> None:
    tape = PipelineTape(pipelines("flux"))
    kept = tape.record(**_arguments("flux"))
    for _ in range(2):  # also when the rule is known already
        lean = tape.record(keep_steps=False, **_arguments("flux"))
        assert lean._log is None
        assert torch.equal(lean.x0, kept.x0) and lean.sigmas == kept.sigmas and lean.rule == kept.rule
        with torch.no_grad():
            assert torch.equal(lean.velocity(kept.x0, 0.4), kept.velocity(kept.x0, 0.4))
        with pytest.raises(ValueError, match="kept no steps; record with keep_steps=True"):
            lean.prove()
    first = PipelineTape(pipelines("flux")).record(keep_steps=False, **_arguments("flux"))
    assert first._log is None and torch.equal(first.x0, kept.x0)


def test_text_to_image_and_editing_are_learned_apart(pipelines: Callable[[str], Any]) -> None:
    tape = PipelineTape(pipelines("klein"))
    plain, edit = tape.record(**_arguments("klein")), tape.record(**_arguments("klein edit"))
    assert plain.rule != edit.rule and len(tape.rules) == 2
    assert tape.record(**_arguments("klein")).rule == plain.rule and len(tape.rules) == 2


# diffusers 0.42 converts tensors the NumPy 1 way here
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("kind", ["dpm", "heun"])
def test_other_solvers_of_the_same_flow(build: Callable[[str], Any], kind: str) -> None:
    """Forward-process objectives need clean latents and conditioning, not Euler steps (DiffusionNFT, arXiv 2509.16117)."""
    pipe = build("sd3")
    if kind == "dpm":
        pipe.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    else:
        pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    recording = PipelineTape(pipe).record(**_arguments("sd3", steps=4))
    assert recording.prove() == 0.0 and recording.rule.output_rule == "output"
    assert recording._log is not None
    with torch.no_grad():
        for sigma, step in zip(recording.sigmas, recording._log.steps, strict=True):
            # DPM-Solver rounds its times to whole numbers: half a thousandth of noise level
            assert torch.allclose(recording.velocity(step.sample, sigma), step.model_output, atol=1e-2)


# -- refusals ----------------------------------------------------------------------------------------------------------


GUIDED = [
    ("sd3", {"guidance_scale": 4.0}),  # one call of doubled batch
    ("z-image", {"guidance_scale": 4.0}),  # likewise
    ("flux", {"true_cfg_scale": 4.0, "negative_prompt": ["ugly", "ugly"]}),  # two calls a step
]


@pytest.mark.parametrize(("name", "changes"), GUIDED)
def test_guidance_by_a_second_call_is_refused_and_says_what_to_do(
    pipelines: Callable[[str], Any], name: str, changes: dict[str, Any]
) -> None:
    pipe = pipelines(name)
    for keep in (True, False):
        with pytest.raises(UnprovenPipelineError, match="guidance off") as caught:
            PipelineTape(pipe).record(keep_steps=keep, **_arguments(name, **changes))
        assert type(pipe).__name__ in str(caught.value)
        assert _untouched(pipe)


@pytest.mark.parametrize(("name", "changes"), GUIDED)
def test_guidance_is_refused_once_the_rule_is_known_too(
    pipelines: Callable[[str], Any], name: str, changes: dict[str, Any]
) -> None:
    """The same arguments with other values: conditioning and pictures would no longer belong together."""
    tape = PipelineTape(pipelines(name))
    off = {"true_cfg_scale": 1.0, "negative_prompt": ["ugly", "ugly"]} if name == "flux" else {}
    tape.record(**_arguments(name, **off))
    for keep in (True, False):
        with pytest.raises(UnprovenPipelineError, match="guidance off"):
            tape.record(keep_steps=keep, **_arguments(name, **changes))
        assert tape.record(keep_steps=keep, **_arguments(name, **off)).images  # back to what was learned


def test_a_pipeline_of_another_kind_is_refused_by_name(build: Callable[[str], Any]) -> None:
    with pytest.raises(UnprovenPipelineError, match=r"DiTPipeline with DDIMScheduler \(prediction_type 'epsilon'\) is not flow"):
        PipelineTape(build("dit"))
    with pytest.raises(UnprovenPipelineError, match=r"DiTPipeline .*\(prediction_type 'v_prediction'\) is not flow matching"):
        PipelineTape(build("v-prediction"))
    with pytest.raises(UnprovenPipelineError, match=r"StableDiffusionXLPipeline with DDIMScheduler .* is not flow matching"):
        PipelineTape(build("sdxl"))


def test_what_cannot_be_recorded_is_refused(build: Callable[[str], Any]) -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    with pytest.raises(UnprovenPipelineError, match="DDPMPipeline has no `transformer`"):
        PipelineTape(DDPMPipeline(unet=unet, scheduler=FlowMatchEulerDiscreteScheduler()))
    with pytest.raises(UnprovenPipelineError, match="SimpleNamespace has no `scheduler`"):
        PipelineTape(SimpleNamespace(transformer=unet))


def test_a_second_denoiser_is_refused(build: Callable[[str], Any]) -> None:
    """Wan 2.2: one model for high noise, another for low."""
    pipe = build("wan")
    pipe.register_modules(transformer_2=copy.deepcopy(pipe.transformer))
    pipe.register_to_config(boundary_ratio=0.5)
    arguments = {**SMALL, "height": 32, "width": 32, "num_frames": 5, "guidance_scale": 1.0}
    with pytest.raises(UnprovenPipelineError, match="WanPipeline called its `transformer` 2 times for 3 steps: another denoiser"):
        PipelineTape(pipe).record(prompt=["a"], num_inference_steps=3, **arguments)
    assert _untouched(pipe)


# -- videos ------------------------------------------------------------------------------------------------------------


def test_a_video_is_recorded_as_a_sheet_of_its_frames(build: Callable[[str], Any]) -> None:
    arguments = {
        **SMALL,
        "prompt": ["red circle", "blue square"],
        "height": 32,
        "width": 16,
        "num_frames": 9,
        "guidance_scale": 1.0,
        "num_inference_steps": 2,
    }
    pipe = build("wan")
    recording = PipelineTape(pipe).record(generator=torch.Generator().manual_seed(0), **arguments)
    assert recording.frames is not None and [len(video) for video in recording.frames] == [9, 9]
    for sheet, video in zip(recording.images, recording.frames, strict=True):
        assert video[0].size == (16, 32) and sheet.size == (32, 64)
        corners = [(0, 0), (16, 0), (0, 32), (16, 32)]
        tiles = [sheet.crop((x, y, x + 16, y + 32)) for x, y in corners]
        assert [tile.tobytes() for tile in tiles] == [video[index].tobytes() for index in (0, 3, 5, 8)]
    # what the pipeline returns by itself are arrays of values in [0, 1]
    ordinary = pipe(generator=torch.Generator().manual_seed(0), **arguments)
    _, frames = pictures_of(ordinary)
    assert frames is not None and frames[1][4].tobytes() == recording.frames[1][4].tobytes()


@pytest.mark.parametrize(("count", "size"), [(1, (4, 6)), (2, (8, 6)), (3, (12, 6)), (4, (8, 12)), (50, (8, 12))])
def test_short_videos_stand_in_a_row(count: int, size: tuple[int, int]) -> None:
    frames = [Image.new("RGB", (4, 6), (index, 0, 0)) for index in range(count)]
    sheet = contact_sheet(frames)
    assert sheet.size == size
    reds = sheet.getchannel("R").tobytes()
    assert reds[0] == 0 and reds[-1] == count - 1


def test_one_step_is_too_few_to_learn_from(pipelines: Callable[[str], Any]) -> None:
    with pytest.raises(UnprovenPipelineError, match="FluxPipeline: record at least 2 steps to learn from, got 1"):
        PipelineTape(pipelines("flux")).record(**_arguments("flux", steps=1))


def test_a_denoiser_that_cannot_be_replayed_is_refused(build: Callable[[str], Any]) -> None:
    pipe = build("flux")
    noise = torch.Generator().manual_seed(0)

    def jitter(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return (output[0] + 0.01 * torch.randn(output[0].shape, generator=noise),)

    handle = pipe.transformer.register_forward_hook(jitter)
    tape = PipelineTape(pipe)
    with pytest.raises(UnprovenPipelineError, match=r"FluxPipeline: replaying its steps .* is off by 0\.\d+.*cannot be trained"):
        tape.record(**_arguments("flux"))
    assert tape.rules == {}
    # where such a difference is known and meant, as in half precision, it can be allowed
    assert 0 < PipelineTape(pipe, tolerance=1.0).record(**_arguments("flux")).prove() < 1.0
    handle.remove()
    assert tape.record(**_arguments("flux")).prove() == 0.0


class FlowMatchEulerBackwards(FlowMatchEulerDiscreteScheduler):
    """Takes the denoiser's output for x0 - eps."""

    def step(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().step(-model_output, *args, **kwargs)


def test_a_scheduler_that_steps_another_way_is_refused(build: Callable[[str], Any]) -> None:
    pipe = build("sd3")
    pipe.scheduler = FlowMatchEulerBackwards(shift=3.0)
    with pytest.raises(UnprovenPipelineError, match="StableDiffusion3Pipeline: its scheduler does not step along v = eps - x0"):
        PipelineTape(pipe).record(**_arguments("sd3"))
    assert _untouched(pipe)


def test_an_error_inside_the_pipeline_leaves_it_as_it_was(pipelines: Callable[[str], Any]) -> None:
    pipe = pipelines("flux")

    def stop(*args: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PipelineTape(pipe).record(**_arguments("flux", callback_on_step_end=stop))
    assert _untouched(pipe)
    recording = PipelineTape(pipe).record(**_arguments("flux"))
    assert isinstance(recording, Recording) and recording.prove() == 0.0
