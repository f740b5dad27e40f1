"""Train one step with TRL on ``FOLDER/datasets``; its batches must be those that our own training sees."""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tiny
import torch
from datasets import load_dataset
from rationalrewards.components.shapes.tiny_critic import CRITIC_FOLDER
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

folder = Path(sys.argv[1])
rows = load_dataset(str(folder / "datasets"), split="train", cache_dir="cache")
processor = AutoProcessor.from_pretrained(CRITIC_FOLDER)
model = AutoModelForImageTextToText.from_pretrained(CRITIC_FOLDER, dtype=torch.float32)
before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
options = SFTConfig(
    output_dir="out",
    max_length=None,
    max_steps=1,
    per_device_train_batch_size=2,
    report_to=[],
    use_cpu=True,
    save_strategy="no",
    bf16=False,
)
trainer = SFTTrainer(model, options, train_dataset=rows, processing_class=processor)

module = tiny.distill_module()
module.configure_model()
ours = tiny.distill_data(folder / "rationales.jsonl")
ours.setup("fit")
assert len(rows) == len(ours.rows) > 0
line_end = processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
for start in range(0, len(rows), 4):
    part = range(start, min(start + 4, len(rows)))
    theirs = trainer.data_collator([rows[index] for index in part])
    expected = module.encode([ours.rows[index].load(module.format) for index in part])
    assert torch.equal(theirs["pixel_values"], expected["pixel_values"])
    for index in range(len(part)):
        found = theirs["input_ids"][index][theirs["attention_mask"][index].bool()].tolist()
        learnt = [label for label in theirs["labels"][index].tolist() if label != -100]
        wanted = expected["input_ids"][index][expected["attention_mask"][index].bool()].tolist()
        # they learn the line end after the end of the turn too
        assert found == wanted + line_end and processor.image_token_id in found
        assert learnt == [label for label in expected["labels"][index].tolist() if label != -100] + line_end
assert math.isfinite(trainer.train().training_loss)
assert any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
print(f"{len(rows)} rows alike")
