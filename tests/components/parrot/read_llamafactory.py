"""Read ``FOLDER/sharegpt.json`` with LLaMA-Factory's own loader; its rows must be those that our own training sees.

LLaMA-Factory pins older versions of what we use, so it is installed without its dependencies, and its check of versions is off.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path

os.environ["DISABLE_VERSION_CHECK"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tiny
import torch
import transformers.models.mllama  # noqa: F401 (looks for torchaudio, as LLaMA-Factory does afterwards)

if importlib.util.find_spec("torchaudio") is None:  # for sounds, of which there are none here
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)

from llamafactory.data.loader import get_dataset
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import Seq2SeqTrainingArguments

folder = Path(sys.argv[1])
module = tiny.distill_module()
module.configure_model()
processor, tokenizer = module.processor, module.processor.tokenizer
ours = tiny.distill_data(folder / "rationales.jsonl")
ours.setup("fit")

model = ModelArguments(model_name_or_path="unused")
# as its `patch_processor` does
for name in ("image_max_pixels", "image_min_pixels", "image_do_pan_and_scan", "crop_to_patches"):
    setattr(processor, name, getattr(model, name))
data = DataArguments(dataset="rationales", dataset_dir=str(folder), template="qwen3_vl_nothink", cutoff_len=4096)
template = get_template_and_fix_tokenizer(tokenizer, data)
training = Seq2SeqTrainingArguments(output_dir="unused", report_to=[], use_cpu=True)
theirs = get_dataset(template, model, data, training, "sft", tokenizer, processor)["train_dataset"]

assert len(theirs) == len(ours.rows) > 0
line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
for row, found in zip(ours.rows, theirs, strict=True):
    expected = module.encode([row.load(module.format)])
    # they learn the line end after the end of the turn too
    assert found["input_ids"] == expected["input_ids"][0].tolist() + line_end
    assert found["labels"] == expected["labels"][0].tolist() + line_end
    shown = template.mm_plugin.get_mm_inputs(
        found["images"], [], [], [len(found["images"])], [0], [0], [found["input_ids"]], processor
    )
    assert torch.equal(shown["pixel_values"], expected["pixel_values"])
print(f"{len(theirs)} rows alike")
