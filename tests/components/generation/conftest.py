"""Real diffusers pipelines with random weights, as small as their classes allow; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from rationalrewards.components.checkpoints import resolve
from rationalrewards.components.shapes.tiny_generator import build_text_encoder, build_tokenizer, build_vae
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
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


def build_klein() -> Any:
    """The embedded generator."""
    return DiffusionPipeline.from_pretrained(resolve("embedded:shapes-generator"), dtype=torch.float32)


@cache
def _words() -> Qwen2Tokenizer:
    return build_tokenizer()


def _with_tokens(*tokens: str) -> Qwen2Tokenizer:
    """A byte-level tokenizer that knows some special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *tokens]
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate([*special, *letters])},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=special[1:],
    )


def build_flux2() -> Flux2Pipeline:
    tokenizer = _with_tokens("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    vae = build_vae()
    channels = 4 * vae.config.latent_channels
    config = Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "max_position_embeddings": 128,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "sliding_window": None,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
    )
    processor = PixtralProcessor(
        PixtralImageProcessor(patch_size=8, size={"longest_edge": 32}),
        tokenizer,
        patch_size=8,
        chat_template="{% for message in messages %}{{ message['role'] }}: {{ message['content'][0]['text'] }}<|im_end|>{% endfor %}",
    )
    return Flux2Pipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=channels,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=Mistral3ForConditionalGeneration(config).eval(),
        tokenizer=processor,
    )


_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def _qwen_parts() -> dict[str, Any]:
    tokenizer = _with_tokens(*_VISION)
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(
            ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"), _VISION, strict=True
        )
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [1, 1, 2]},
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [0],
        },
        **ids,
    )
    return {
        "transformer": QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        "vae": AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval(),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config).eval(),
        "tokenizer": tokenizer,
    }


def _qwen_processor(tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
    sizes = {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 32 * 32, "longest_edge": 32 * 32}}
    return Qwen2VLProcessor(Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(patch_size=8))


def build_qwen() -> QwenImagePipeline:
    return QwenImagePipeline(**_qwen_parts())


def build_qwen_edit() -> QwenImageEditPipeline:
    parts = _qwen_parts()
    return QwenImageEditPipeline(**parts, processor=_qwen_processor(parts["tokenizer"]))


def build_qwen_edit_plus() -> QwenImageEditPlusPipeline:
    parts = _qwen_parts()
    return QwenImageEditPlusPipeline(**parts, processor=_qwen_processor(parts["tokenizer"]))


@pytest.fixture(scope="session", autouse=True)
def small_references() -> Iterator[None]:
    """Qwen-Image-Edit enlarges every source to a megapixel, a number in its code; here to 32 x 32."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
            original = module.calculate_dimensions
            patch.setattr(module, "calculate_dimensions", lambda area, ratio, original=original: original(32 * 32, ratio))
        yield


def _gemma(vocabulary: int) -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation="eager",
    )
    return Gemma2Model(config).eval()


def build_sana() -> SanaPipeline:
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )
    return SanaPipeline(
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=32,
            patch_size=1,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=_gemma(len(_words())),
        tokenizer=_words(),
    )


def build_lumina2() -> Lumina2Pipeline:
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(128, 32, 32),
            cap_feat_dim=16,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(),
        text_encoder=_gemma(len(_words())),
        tokenizer=_words(),
    )


def build_chroma() -> ChromaPipeline:
    return ChromaPipeline(
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=_t5_encoder(),
        tokenizer=_t5_tokenizer(),
    )


def _umt5_encoder() -> UMT5EncoderModel:
    config = UMT5Config(vocab_size=40, d_model=_WIDTH, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return UMT5EncoderModel(config).eval()


def build_aura_flow() -> AuraFlowPipeline:
    return AuraFlowPipeline(
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_projection_dim=_WIDTH,
            joint_attention_dim=_WIDTH,
            out_channels=4,
            pos_embed_max_size=64,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.7),
        vae=_vae(),
        text_encoder=_umt5_encoder(),
        tokenizer=_t5_tokenizer(),
    )


def build_hidream() -> HiDreamImagePipeline:
    clip = _clip_tokenizer()
    llama = LlamaConfig(
        vocab_size=len(_words()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        attn_implementation="eager",
    )
    return HiDreamImagePipeline(
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=(_WIDTH, 16),
            text_emb_dim=32,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(16, 16),
            llama_layers=(0, 1),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=_clip_encoder(CLIPTextModelWithProjection, clip),
        tokenizer=clip,
        text_encoder_2=_clip_encoder(CLIPTextModelWithProjection, clip),
        tokenizer_2=clip,
        text_encoder_3=_t5_encoder(),
        tokenizer_3=_t5_tokenizer(),
        text_encoder_4=LlamaForCausalLM(llama).eval(),
        tokenizer_4=build_tokenizer(),
    )


def build_ovis() -> OvisImagePipeline:
    config = Qwen3Config(
        vocab_size=len(_words()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        pad_token_id=0,
    )
    return OvisImagePipeline(
        transformer=OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(),
        text_encoder=Qwen3Model(config).eval(),
        tokenizer=_words(),
    )


def build_wan() -> WanPipeline:
    return WanPipeline(
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=_WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKLWan(
            base_dim=3,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval(),
        text_encoder=_umt5_encoder(),
        tokenizer=_t5_tokenizer(),
    )


def build_sdxl() -> StableDiffusionXLPipeline:
    """Not flow matching, and no transformer."""
    clip = _clip_tokenizer()
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(
            block_out_channels=(8, 8),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
            cross_attention_dim=32,
        ),
        scheduler=DDIMScheduler(),
        vae=_vae(),
        text_encoder=_clip_encoder(CLIPTextModel, clip),
        tokenizer=clip,
        text_encoder_2=_clip_encoder(CLIPTextModelWithProjection, clip),
        tokenizer_2=clip,
    )


def build_dit(prediction_type: str = "epsilon") -> DiTPipeline:
    """Not flow matching: DDIM on predicted noise."""
    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=10
        ),
        vae=_vae(),
        scheduler=DDIMScheduler(prediction_type=prediction_type),
    )


@pytest.fixture(scope="session")
def build() -> Callable[[str], Any]:
    """Builds a pipeline by name; its weights are always the same."""
    builders: dict[str, Callable[[], Any]] = {
        "sd3": build_sd3,
        "flux": build_flux,
        "kontext": build_kontext,
        "z-image": build_z_image,
        "klein": build_klein,
        "flux2": build_flux2,
        "qwen": build_qwen,
        "qwen-edit": build_qwen_edit,
        "qwen-edit-plus": build_qwen_edit_plus,
        "sana": build_sana,
        "lumina2": build_lumina2,
        "chroma": build_chroma,
        "aura-flow": build_aura_flow,
        "hidream": build_hidream,
        "ovis": build_ovis,
        "wan": build_wan,
        "sdxl": build_sdxl,
        "dit": build_dit,
        "v-prediction": lambda: build_dit("v_prediction"),
    }

    def build(name: str) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipeline = builders[name]()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build
