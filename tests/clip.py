"""A tiny CLIP model with a real tokenizer and a real processor, as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path


def tiny_clip(folder: Path, seed: int = 0, positions: int = 77, scale: float = 3.0) -> Path:
    """Write it: 32 x 32 pixels, byte-level BPE without merges, so that a word is as many tokens as it has letters.

    Args:
        folder: Where to.
        seed: Seed of the weights.
        positions: Most tokens of a text.
        scale: ``logit_scale``; scores are multiplied by its exponential.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    # CLIP's alphabet: each byte, and each byte at the end of a word
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=positions)
    towers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    config = CLIPConfig(
        text_config={**towers, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": positions},
        vision_config={**towers, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        logit_scale_init_value=scale,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        # as they come, weights are so small that all pictures look alike
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data *= 8.0
    model.save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder
