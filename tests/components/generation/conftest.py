"""Real diffusers pipelines with random weights, as small as their classes allow; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from rationalrewards.components.shapes.tiny_generator import build_text_encoder, build_tokenizer
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SIDE = 16
"""Side of the pictures in pixels."""
_WIDTH = 32


def _clip_tokenizer() -> CLIPTokenizer:
    """Byte-level, without a single merge."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=24)


def _t5_tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz, "]
    return T5Tokenizer(vocab=[(piece, -1.0 * (index > 2)) for index, piece in enumerate(pieces)], extra_ids=0)


def _clip_encoder(kind: type[Any], tokenizer: CLIPTokenizer) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config).eval()


def _t5_encoder() -> T5EncoderModel:
    config = T5Config(vocab_size=40, d_model=_WIDTH, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5EncoderModel(config).eval()


def _vae(channels: int = 4) -> AutoencoderKL:
    """Halves the sides once."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        shift_factor=0.1,
        scaling_factor=0.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).eval()


def build_sd3() -> StableDiffusion3Pipeline:
    tokenizer = _clip_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=SIDE // 2,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_WIDTH,
            caption_projection_dim=_WIDTH,
            pooled_projection_dim=32,
            out_channels=4,
            pos_embed_max_size=16,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=_clip_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_clip_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=_t5_encoder(),
        tokenizer_3=_t5_tokenizer(),
    )


def _flux_parts() -> dict[str, Any]:
    tokenizer = _clip_tokenizer()
    return {
        "transformer": FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_WIDTH,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=16, max_image_seq_len=64
        ),
        "vae": _vae(),
        "text_encoder": _clip_encoder(CLIPTextModel, tokenizer),
        "tokenizer": tokenizer,
        "text_encoder_2": _t5_encoder(),
        "tokenizer_2": _t5_tokenizer(),
    }


def build_flux() -> FluxPipeline:
    return FluxPipeline(**_flux_parts())


def build_kontext() -> FluxKontextPipeline:
    return FluxKontextPipeline(**_flux_parts())


def build_z_image() -> ZImagePipeline:
    tokenizer = build_tokenizer()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=build_text_encoder(tokenizer).eval(),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=_WIDTH,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=48,
            axes_dims=(4, 6, 6),
            axes_lens=(64, 32, 32),
        ).eval(),
    )


def build_dit() -> DiTPipeline:
    """Not flow matching: DDIM on predicted noise."""
    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=10
        ),
        vae=_vae(),
        scheduler=DDIMScheduler(),
    )


@pytest.fixture(scope="session")
def build() -> Callable[[str], Any]:
    """Builds a pipeline by name; its weights are always the same."""
    builders: dict[str, Callable[[], Any]] = {
        "sd3": build_sd3,
        "flux": build_flux,
        "kontext": build_kontext,
        "z-image": build_z_image,
        "dit": build_dit,
    }

    def build(name: str) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipeline = builders[name]()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build
