"""Asking anything for pictures: pipelines of diffusers, functions, generators."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers
import pytest
import tiny
import torch
import transformers
from PIL import Image
from rationalrewards.components.records import Unscored
from rationalrewards.components.refine import FunctionImages, PipelineImages, image_source
from rationalrewards.components.refine.images import identity_of


@pytest.fixture(scope="module")
def stable_diffusion() -> Any:
    """A Stable Diffusion of random weights: a U-Net that predicts noise, no flow matching anywhere."""
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=1000,
        max_position_embeddings=77,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, latent_channels=4, sample_size=8)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=Words(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Words:
    """A tokenizer of bytes, as far as the pipeline asks."""

    model_max_length = 77
    added_tokens_encoder: ClassVar[dict[str, int]] = {}

    def __call__(self, text: Any, **further: Any) -> Any:
        texts = [text] if isinstance(text, str) else text
        ids = [[*one.encode()[:76]] + [0] * (77 - len(one.encode()[:76])) for one in texts]
        return SimpleNamespace(input_ids=torch.tensor(ids), attention_mask=None)

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def batch_decode(self, ids: Any) -> list[str]:
        return ["" for _ in ids]


def test_a_pipeline_that_is_not_flow_matching_samples(stable_diffusion: Any) -> None:
    source = image_source(stable_diffusion, num_inference_steps=2, height=16, width=16, guidance_scale=1.0)
    assert isinstance(source, PipelineImages)
    together = source.sample(["a", "b", "a"], (), [1, 2, 3])
    assert [one.size for one in together if isinstance(one, Image.Image)] == [(16, 16)] * 3
    (alone,) = source.sample(["b"], (), [2])
    assert isinstance(alone, Image.Image) and isinstance(together[1], Image.Image)
    # a picture depends on its own seed and request: one grey level where float sums of another batch round the other way
    assert max(abs(a - b) for a, b in zip(alone.tobytes(), together[1].tobytes(), strict=True)) <= 1
    assert len({one.tobytes() for one in together if isinstance(one, Image.Image)}) == 3
    refused = source.sample(["a"], (alone,), [1])
    assert refused == [Unscored("StableDiffusionPipeline takes no source picture: it does not edit")]
    assert source.identity != image_source(stable_diffusion, num_inference_steps=3).identity  # type: ignore[union-attr]


class OneByOne:
    """A pipeline that takes one prompt a call, refuses one, and has a safety checker."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, prompt: Any, image: Any = None, generator: Any = None, output_type: str = "np", strength: float = 1.0
    ) -> Any:
        self.calls.append({"image": image, "strength": strength, "output_type": output_type})
        if len(prompt) > 1:
            raise ValueError("only batch_size=1")
        if prompt == ["broken"]:
            raise RuntimeError("nothing comes of it")
        colour = int(torch.randint(255, (1,), generator=generator[0]))
        return SimpleNamespace(images=[Image.new("RGB", (4, 4), (colour, 0, 0))], nsfw_content_detected=[prompt == ["rude"]])


def test_what_cannot_be_made_has_a_reason_and_the_rest_is_made(caplog: pytest.LogCaptureFixture) -> None:
    pipe, source = OneByOne(), Image.new("RGB", (4, 4))
    with caplog.at_level(logging.WARNING):
        made = PipelineImages(pipe, strength=0.5).sample(["a", "broken", "rude", "a"], (source,), [1, 2, 3, 1])
    assert made[1:3] == [
        Unscored("RuntimeError: nothing comes of it"),
        Unscored("the pipeline's safety checker withheld it"),
    ]
    first, last = made[0], made[3]
    assert isinstance(first, Image.Image) and isinstance(last, Image.Image) and first.tobytes() == last.tobytes()
    assert "a picture could not be made: RuntimeError: nothing comes of it" in caplog.text
    assert [call["image"] is source for call in pipe.calls] == [True] * 5  # together, then each alone
    assert {(call["strength"], call["output_type"]) for call in pipe.calls} == {(0.5, "pil")}
    two = PipelineImages(OneByOne())
    two.sample(["a"], (source, source), [1])
    assert two.pipe.calls[0]["image"] == [source, source]


def test_any_function_makes_pictures() -> None:
    def paint(prompts: Any, sources: Any, seeds: Any) -> Any:
        if "trouble" in prompts:
            raise OSError("the printer is on fire")
        return [
            Image.new("RGB", (2, 2), (seed % 256, len(sources), 0)) if prompt else None
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    source = image_source(paint)
    assert isinstance(source, FunctionImages)
    made = source.sample(["a", "trouble", ""], (Image.new("RGB", (2, 2)),), [5, 6, 7])
    assert isinstance(made[0], Image.Image) and made[0].getpixel((0, 0)) == (5, 1, 0)
    assert made[1:] == [Unscored("OSError: the printer is on fire"), Unscored("NoneType came back instead of a picture")]
    short = FunctionImages(lambda prompts, sources, seeds: [])
    assert short.sample(["a"], (), [1]) == [Unscored("ValueError: 0 pictures came back for 1 requests")]
    assert "test_any_function_makes_pictures" in source.identity
    assert FunctionImages(paint, "the printer, colour").identity == "the printer, colour"


def test_a_generator_and_a_source_are_taken_as_they_are() -> None:
    generator = tiny.generator()
    assert image_source(generator) is generator
    # settings that change a picture change what it is kept under, others do not
    same = identity_of(generator)
    assert identity_of(tiny.generator(rank=8)) == same
    assert identity_of(tiny.generator(steps=4)) != same
    source = FunctionImages(lambda prompts, sources, seeds: [])
    assert image_source(source) is source


@pytest.mark.parametrize(
    ("pipe", "arguments", "message"),
    [
        (3, {}, "int makes no pictures: give a FlowGenerator, an ImageSource, a diffusers pipeline, or a function"),
        (
            lambda a, b, c: [],
            {"steps": 3},
            "'steps' is an argument of a diffusers pipeline's call; function has its settings already",
        ),
    ],
)
def test_what_makes_no_pictures_is_refused(pipe: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_source(pipe, **arguments)
