"""The embedded pipeline as a recipe: sampling, what a training step may touch, and a LoRA that others can load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from rationalrewards.components.checkpoints import resolve
from rationalrewards.components.generation import FlowGenerator, UnprovenPipelineError
from rationalrewards.components.generation.generator import nearest_bucket
from rationalrewards.components.generation.noise import normal
from rationalrewards.components.generation.policies import OLD, POLICY, adapter_state, parameters_of, sync_old, use
from rationalrewards.components.objectives import kl_loss, nft_loss
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import Scene, Shape
from rationalrewards.components.shapes.tiny_generator import PIPELINE_KWARGS
from safetensors.torch import load_file
from torch import Tensor, nn

PROMPTS = ["red circle top left", "blue square bottom right", "green cross top right"]
SOURCE = draw(Scene((Shape("red", "circle"), None, None, Shape("blue", "square"))))


def _recipe(**changes: Any) -> FlowGenerator:
    settings = {"steps": 3, "pipeline_kwargs": dict(PIPELINE_KWARGS), "rank": 4, "alpha": 12, "source_size": 64}
    return FlowGenerator("embedded:shapes-generator", **{**settings, **changes})


@pytest.fixture(scope="module")
def sampler() -> FlowGenerator:
    generator = _recipe()
    generator.load()
    return generator


@pytest.fixture
def trained() -> Iterator[FlowGenerator]:
    """A generator with its policies; the policy is away from the base."""
    generator = _recipe()
    generator.load()
    generator.prepare_training(seed=3)
    noise = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in parameters_of(generator.denoiser, POLICY).items():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=noise))
    yield generator


def _pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def test_a_recipe_is_light_until_it_is_loaded() -> None:
    generator = FlowGenerator("no/such/folder")
    assert generator.pipe is None and generator.tape is None


@pytest.mark.parametrize("sources", [[], [SOURCE]], ids=["text-to-image", "edit"])
def test_a_picture_depends_on_its_own_seed_and_not_on_its_batch(sampler: FlowGenerator, sources: list[Image.Image]) -> None:
    together = _pixels(sampler.sample(PROMPTS, sources, [1, 2, 1]))
    order = _pixels(sampler.sample(PROMPTS[::-1], sources, [1, 2, 1]))[::-1]
    alone = _pixels([sampler.sample([prompt], sources, [seed])[0] for prompt, seed in zip(PROMPTS, (1, 2, 1), strict=True)])
    # one step of 256: float sums of another batch size may fall on the other side when rounded to bytes
    assert np.abs(together - alone).max() <= 1 and np.abs(together - order).max() <= 1
    other_seed = _pixels(sampler.sample(PROMPTS[:1], sources, [2]))
    assert np.abs(other_seed - together[:1]).max() > 1
    torch.manual_seed(99)  # the global state plays no part
    again = _pixels(sampler.sample(PROMPTS, sources, [1, 2, 1]))
    assert np.array_equal(again, together)


def test_every_picture_needs_a_seed(sampler: FlowGenerator) -> None:
    with pytest.raises(ValueError, match="3 prompts but 2 seeds"):
        sampler.sample(PROMPTS, [], [1, 2])


@pytest.mark.parametrize(
    ("size", "expected"), [((32, 32), (64, 64)), ((32, 48), (64, 96)), ((100, 70), (100, 70)), ((64, 200), (64, 200))]
)
def test_small_sources_are_enlarged_without_inventing_colours(
    sampler: FlowGenerator, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    source = Image.effect_noise(size, 60).convert("RGB")
    enlarged = sampler._enlarge(source)
    assert enlarged.size == expected
    assert {colour for _, colour in enlarged.getcolors(10**6)} == {colour for _, colour in source.getcolors(10**6)}
    assert _recipe(source_size=None)._enlarge(source) is source


def test_training_and_an_adapter_for_sampling_exclude_each_other(tmp_path: Path) -> None:
    generator = _recipe(adapter=str(tmp_path))
    with pytest.raises(ValueError, match="`adapter` is for sampling.*--ckpt_path"):
        generator.prepare_training(0)


def test_recording_samples_what_sampling_samples(sampler: FlowGenerator) -> None:
    generator = _recipe()
    generator.load()
    generator.prepare_training(0)
    for sources in ([], [SOURCE]):
        recording = generator.record(PROMPTS, sources, [7, 8, 9])
        # the adapters are there and start as the base
        assert np.array_equal(_pixels(recording.images), _pixels(sampler.sample(PROMPTS, sources, [7, 8, 9])))


def test_rollouts_and_evaluation_have_steps_of_their_own(sampler: FlowGenerator) -> None:
    generator = _recipe(steps=2, eval_steps=3)  # the sampler of the other tests takes 3
    generator.load()
    generator.prepare_training(0)
    assert len(generator.record(PROMPTS[:1], [], [1]).sigmas) == 2
    assert np.array_equal(_pixels(generator.sample(PROMPTS, [], [7, 8, 9])), _pixels(sampler.sample(PROMPTS, [], [7, 8, 9])))


def test_requests_of_several_sizes_share_a_call_per_size(sampler: FlowGenerator) -> None:
    sizes = [(32, 32), (48, 32), (32, 32)]
    images = sampler.sample(PROMPTS, [], [1, 2, 3], sizes=sizes)
    assert [image.size for image in images] == sizes
    wide = _recipe(pipeline_kwargs={**PIPELINE_KWARGS, "width": 48, "height": 32})
    wide.load()
    assert np.array_equal(_pixels([images[1]]), _pixels(wide.sample(PROMPTS[1:2], [], [2])))
    assert np.array_equal(_pixels(images[::2]), _pixels(sampler.sample(PROMPTS[::2], [], [1, 3])))
    with pytest.raises(ValueError, match="3 prompts but 1 sizes"):
        sampler.sample(PROMPTS, [], [1, 2, 3], sizes=sizes[:1])


def test_a_recording_may_have_a_size_of_its_own() -> None:
    generator = _recipe()
    generator.load()
    generator.prepare_training(0)
    usual, wide = (generator.record(PROMPTS[:1], [], [1], size=size) for size in (None, (48, 32)))
    assert wide.images[0].size == (48, 32) and usual.images[0].size == (32, 32)
    assert 2 * wide.x0.shape[1] == 3 * usual.x0.shape[1]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 640), (32, 32)),
        ((900, 600), (48, 32)),
        ((600, 900), (32, 48)),
        ((121, 100), (32, 32)),  # log(1.21) is nearer to log(1) than to log(1.5)
        ((124, 100), (48, 32)),
    ],
)
def test_an_edit_has_the_bucket_nearest_to_its_source(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert nearest_bucket(size, [(32, 32), (48, 32), (32, 48)]) == expected


def test_of_buckets_of_one_shape_the_nearest_in_area_is_taken() -> None:
    assert nearest_bucket((512, 512), [(256, 256), (512, 512), (1024, 1024)]) == (512, 512)


def test_edits_are_made_in_buckets_and_other_requests_are_not() -> None:
    generator = _recipe(buckets=[(32, 32), (48, 32)])
    generator.load()
    wide = SOURCE.resize((96, 64))
    assert [generator.sample(PROMPTS[:1], sources, [1])[0].size for sources in ([wide], [SOURCE], [])] == [
        (48, 32),
        (32, 32),
        (32, 32),
    ]


def test_guidance_by_a_second_call_is_for_evaluation_and_the_embedded_one_is_trained_with(
    build: Callable[[str], Any], tmp_path: Path
) -> None:
    build("flux").save_pretrained(tmp_path)
    plain = {"height": 16, "width": 16, "max_sequence_length": 32, "guidance_scale": 2.5}
    cfg = {"true_cfg_scale": 4.0, "negative_prompt": "blurred"}
    pictures = {}
    for name, options in {
        "plain": {"pipeline_kwargs": plain},
        "evaluated with it": {"pipeline_kwargs": plain, "eval_kwargs": cfg},
        "always": {"pipeline_kwargs": {**plain, **cfg}},
    }.items():
        generator = FlowGenerator(str(tmp_path), steps=2, rank=2, **options)
        generator.load()
        generator.prepare_training(0)
        pictures[name] = _pixels(generator.sample(PROMPTS, [], [1, 2, 3]))
        if name == "always":
            with pytest.raises(UnprovenPipelineError, match="guidance off"):
                generator.record(PROMPTS, [], [1, 2, 3])
        else:
            recording = generator.record(PROMPTS, [], [1, 2, 3])
            assert recording._conditioning["guidance"].tolist() == [2.5] * 3
            assert np.array_equal(_pixels(recording.images), pictures["plain"])
    assert np.array_equal(pictures["evaluated with it"], pictures["always"])
    assert not np.array_equal(pictures["evaluated with it"], pictures["plain"])


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        generator = _recipe(gradient_checkpointing=checkpointing)
        generator.load()
        generator.prepare_training(seed=3)
        generator.denoiser.train()
        _step_loss(generator, torch.tensor([0.2, 0.9, 0.6]), 1e-3).backward()
        gradients.append({name: p.grad for name, p in parameters_of(generator.denoiser, POLICY).items()})
    assert generator.denoiser.is_gradient_checkpointing
    assert any(gradient.abs().max() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name  # the same operations, twice


def test_adapters_of_a_half_precision_base_keep_small_steps() -> None:
    generator = _recipe(dtype="bfloat16")
    generator.load()
    generator.prepare_training(seed=0)
    assert next(p for name, p in generator.denoiser.named_parameters() if ".lora_" not in name).dtype == torch.bfloat16
    for adapter in (POLICY, OLD):
        assert {p.dtype for p in parameters_of(generator.denoiser, adapter).values()} == {torch.float32}
    loss = _step_loss(generator, torch.tensor([0.2, 0.9, 0.6]), 0.0)
    loss.backward()
    assert loss.isfinite()


def _parameters(generator: FlowGenerator) -> dict[str, nn.Parameter]:
    """Every weight of the whole pipeline."""
    return {
        f"{part}.{name}": parameter
        for part, module in generator.pipe.components.items()
        if isinstance(module, nn.Module)
        for name, parameter in module.named_parameters()
    }


def _step_loss(generator: FlowGenerator, r: Tensor, kl_weight: float, epoch: int = 0) -> Tensor:
    """The loss of one DiffusionNFT micro-batch, as the reward RL module puts it together."""
    denoiser = generator.denoiser
    with use(denoiser, OLD):
        recording = generator.record(PROMPTS, [], [1, 2, 3])
    sigma = torch.tensor([0.9, 0.5, 0.3])
    noise = normal(recording.x0, [(0, epoch, index) for index in range(3)])
    wide = sigma.view(-1, 1, 1)
    x_t = (1 - wide) * recording.x0 + wide * noise
    v = recording.velocity(x_t, sigma)
    with torch.no_grad():
        with use(denoiser, OLD):
            v_old = recording.velocity(x_t, sigma)
        with use(denoiser, None):
            v_reference = recording.velocity(x_t, sigma)
    loss = nft_loss(v, v_old, x_t, recording.x0, sigma, r, nft_beta=1.0)
    return (loss + kl_weight * kl_loss(v, v_reference)).mean()


def test_a_step_reaches_the_policy_and_nothing_else(trained: FlowGenerator) -> None:
    policy = {f"transformer.{name}" for name in parameters_of(trained.denoiser, POLICY)}
    assert {name for name, parameter in _parameters(trained).items() if parameter.requires_grad} == policy
    before = {name: parameter.detach().clone() for name, parameter in _parameters(trained).items()}
    optimizer = torch.optim.SGD(parameters_of(trained.denoiser, POLICY).values(), lr=1e-2)
    _step_loss(trained, torch.tensor([1.0, 0.2, 0.5]), kl_weight=1e-3).backward()
    gradients = {name: parameter.grad for name, parameter in _parameters(trained).items() if parameter.grad is not None}
    assert set(gradients) == policy
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())
    optimizer.step()
    changed = {name for name, parameter in _parameters(trained).items() if not torch.equal(parameter, before[name])}
    assert changed == policy


def _gradient(generator: FlowGenerator, r: float, kl_weight: float) -> float:
    generator.denoiser.zero_grad()
    _step_loss(generator, torch.full((3,), r), kl_weight).backward()
    return max(float(p.grad.abs().max()) for p in parameters_of(generator.denoiser, POLICY).values() if p.grad is not None)


def test_without_advantage_an_on_policy_step_does_nothing_and_the_kl_term_pulls_back(trained: FlowGenerator) -> None:
    sync_old(trained.denoiser, decay=0.0)  # on policy, away from the base
    signal = _gradient(trained, r=1.0, kl_weight=0.0)
    assert _gradient(trained, r=0.5, kl_weight=0.0) < 1e-4 * signal  # (2 v_old - v) differs from v by float32 rounding
    assert _gradient(trained, r=0.5, kl_weight=1.0) > 1e-2 * signal


@pytest.mark.parametrize(("r", "sign"), [(1.0, -1), (0.0, 1)], ids=["good", "bad"])
def test_steps_make_good_pictures_more_likely_and_bad_ones_less(trained: FlowGenerator, r: float, sign: int) -> None:
    """Likely as the objective has it: the policy's error on the picture, on noise that it did not train on."""
    sync_old(trained.denoiser, decay=0.0)
    optimizer = torch.optim.AdamW(parameters_of(trained.denoiser, POLICY).values(), lr=5e-4)
    for step in range(6):
        optimizer.zero_grad()
        _step_loss(trained, torch.full((3,), r), kl_weight=0.0, epoch=step).backward()
        optimizer.step()
    with use(trained.denoiser, OLD):
        recording = trained.record(PROMPTS, [], [1, 2, 3])
    errors = {POLICY: 0.0, OLD: 0.0}
    for copy in range(4):
        noise = normal(recording.x0, [("fresh", copy, index) for index in range(3)])
        x_t = 0.5 * recording.x0 + 0.5 * noise
        for adapter in errors:
            with torch.no_grad(), use(trained.denoiser, adapter):
                predicted = x_t - 0.5 * recording.velocity(x_t, 0.5)
            errors[adapter] += ((predicted - recording.x0) ** 2).mean().item()
    assert sign * (errors[POLICY] - errors[OLD]) > 0


@pytest.mark.parametrize("adapter", [POLICY, OLD])
def test_a_saved_lora_gives_the_same_picture_wherever_it_is_loaded(
    tmp_path: Path, trained: FlowGenerator, sampler: FlowGenerator, adapter: str
) -> None:
    sync_old(trained.denoiser, decay=0.5)
    with use(trained.denoiser, adapter):
        expected = _pixels(trained.sample(PROMPTS, [], [1, 2, 3]))
    base = _pixels(sampler.sample(PROMPTS, [], [1, 2, 3]))
    assert np.abs(expected - base).max() > 8  # far enough from the base to tell the two apart
    folder = trained.save_adapter(tmp_path / "deep" / "lora", adapter)

    ours = _recipe(adapter=str(folder))
    ours.load()
    plain = DiffusionPipeline.from_pretrained(resolve("embedded:shapes-generator"))
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(folder)
    arguments = ours._arguments(3, PROMPTS, [], [1, 2, 3])
    for images in (ours.sample(PROMPTS, [], [1, 2, 3]), plain(**arguments).images):
        assert np.abs(_pixels(images) - expected).max() <= 1  # rounding to bytes
    # rank 4 and alpha 12 travel with the file: at the default scale the picture would be another
    plain.unload_lora_weights()
    arguments = ours._arguments(3, PROMPTS, [], [1, 2, 3])
    assert np.array_equal(_pixels(plain(**arguments).images), base)


def test_saving_is_not_moving(tmp_path: Path, trained: FlowGenerator) -> None:
    before = adapter_state(trained.denoiser, POLICY)
    trained.save_adapter(tmp_path / "one")
    trained.save_adapter(tmp_path / "two")
    files = [path.name for path in (tmp_path / "one").iterdir()]
    assert len(files) == 1 and files[0].endswith(".safetensors")
    one, two = (load_file(tmp_path / name / files[0]) for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert len(one) == len(before)
    assert all(torch.equal(before[name], value) for name, value in parameters_of(trained.denoiser, POLICY).items())
