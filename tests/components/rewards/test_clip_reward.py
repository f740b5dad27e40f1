"""CLIP scores as their authors define them, on a tiny CLIP of the real classes."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from clip import tiny_clip
from PIL import Image
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.rewards import CLIPReward
from rationalrewards.components.rewards.clip_reward import CLIP_KINDS
from torchmetrics.functional.multimodal import clip_score
from transformers import AutoProcessor, CLIPModel

PROMPTS = ("a red circle", "two blue squares beside a letter", "x", "a green triangle at the top")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def requests() -> list[CritiqueRequest]:
    return [CritiqueRequest("t2i", prompt, image) for prompt, image in zip(PROMPTS, tiny.drawings(4), strict=True)]


def cosine(folder: Path, text: str, image: Image.Image) -> float:
    """By the towers themselves, one text and one picture at a time."""
    model, processor = CLIPModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        words = processor.tokenizer([text], return_tensors="pt")
        pixels = processor.image_processor([image], return_tensors="pt")
        text_state = model.text_projection(model.text_model(**words).pooler_output)
        image_state = model.visual_projection(model.vision_model(**pixels).pooler_output)
    return float(torch.nn.functional.cosine_similarity(text_state, image_state))


def test_each_score_is_its_authors(folder: Path, requests: list[CritiqueRequest]) -> None:
    plain = [cosine(folder, r.prompt, r.image) for r in requests]
    prefixed = [cosine(folder, f"A photo depicts {r.prompt}", r.image) for r in requests]
    # a clamp that is never reached would not be tested
    assert min(plain) < 0 < max(plain) and min(prefixed) < 0 < max(prefixed)
    expected = {
        "clipscore": [2.5 * max(0.0, one) for one in prefixed],
        "torchmetrics": [100.0 * max(0.0, one) for one in plain],
        "pickscore": [math.exp(3.0) * one for one in plain],
    }
    for kind in CLIP_KINDS:
        rewards = CLIPReward(str(folder), kind, batch_size=3).score(requests)
        # padding changes the order of float32 sums; of scores up to 100
        assert rewards.total.tolist() == pytest.approx(expected[kind], abs=2e-4)
        assert rewards.aspects == ("score", "cosine") and rewards.reasons == [""] * 4
        assert rewards.values[:, 0].tolist() == rewards.total.tolist()
        assert rewards.values[:, 1].tolist() == pytest.approx(prefixed if kind == "clipscore" else plain, abs=2e-6)


class CLIPOfOld(CLIPModel):
    """Features as transformers 4 gave them, which torchmetrics 1.9 divides by their norm."""

    def get_text_features(self, *args: Any, **kwargs: Any) -> Any:
        return super().get_text_features(*args, **kwargs).pooler_output

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        return super().get_image_features(*args, **kwargs).pooler_output


def test_torchmetrics_gives_the_same(folder: Path, requests: list[CritiqueRequest]) -> None:
    def loaded() -> tuple[Any, Any]:
        return CLIPOfOld.from_pretrained(folder), AutoProcessor.from_pretrained(folder)

    mine = CLIPReward(str(folder), "torchmetrics").score(requests)
    for request, score in zip(requests, mine.total.tolist(), strict=True):
        pixels = torch.tensor(list(request.image.tobytes()), dtype=torch.uint8).reshape(32, 32, 3).permute(2, 0, 1)
        theirs = clip_score(pixels, request.prompt, model_name_or_path=loaded)
        assert score == pytest.approx(float(theirs.detach()), abs=2e-4)  # of scores up to 100


def test_a_text_is_compared_with_its_own_picture_in_any_batch(folder: Path, requests: list[CritiqueRequest]) -> None:
    reward = CLIPReward(str(folder), "pickscore", batch_size=32)
    together = reward.score(requests)
    reward.batch_size = 1
    assert together.total.tolist() == pytest.approx(reward.score(requests).total.tolist(), abs=1e-4)  # as above
    backwards = reward.score(requests[::-1])
    assert backwards.total.tolist() == pytest.approx(together.total.tolist()[::-1], abs=1e-4)
    assert len(set(together.total.tolist())) == 4


def test_what_is_put_before_a_text_can_be_chosen(folder: Path, requests: list[CritiqueRequest]) -> None:
    bare = CLIPReward(str(folder), "clipscore", prefix="").score(requests).values[:, 1]
    assert bare.tolist() == pytest.approx([cosine(folder, r.prompt, r.image) for r in requests], abs=2e-6)


def test_a_long_text_is_cut_and_counted_and_said(
    folder: Path, requests: list[CritiqueRequest], caplog: pytest.LogCaptureFixture
) -> None:
    # each letter is a token, and there are two more: 75 letters fill the 77 positions
    full, over = "a" * 75, "a" * 75 + "bc"
    image = requests[0].image
    asked = [CritiqueRequest("t2i", text, image) for text in (full, over, PROMPTS[0])]
    reward = CLIPReward(str(folder), "pickscore")
    with caplog.at_level(logging.WARNING):
        rewards = reward.score(asked[:1])
        assert reward.cut == 0 and not caplog.records
        rewards = reward.score(asked)
    assert reward.lengths([full, over]) == [77, 79]
    assert reward.cut == 1 and len(caplog.records) == 1
    assert "reads 77 tokens: 1 of 3 texts are longer and were cut, the longest has 79 (1 texts so far)" in caplog.text
    # what was cut is all that they differ in; rows of one batch are not summed up alike to the last bit
    assert float(rewards.total[0]) == pytest.approx(float(rewards.total[1]), abs=1e-3)
    strict = CLIPReward(str(folder), "pickscore", overlong="unscored").score(asked)
    assert strict.valid.tolist() == [True, False, True] and strict.values[1].isnan().all()
    assert strict.reasons == ["", "the text has 79 tokens, more than the 77 that the model reads", ""]


def test_a_model_that_reads_more_cuts_later(tmp_path: Path, requests: list[CritiqueRequest]) -> None:
    longer = CLIPReward(str(tiny_clip(tmp_path / "long", positions=120)), "pickscore")
    rewards = longer.score([CritiqueRequest("t2i", text, requests[0].image) for text in ("a" * 75, "a" * 75 + "bc" * 20)])
    # an end that is read matters more than rounding
    assert longer.positions == 120 and longer.cut == 0 and abs(float(rewards.total[0] - rewards.total[1])) > 0.01


def test_sources_are_not_seen_and_that_is_said_once(
    folder: Path, requests: list[CritiqueRequest], caplog: pytest.LogCaptureFixture
) -> None:
    edit = CritiqueRequest("edit", PROMPTS[0], requests[0].image, (requests[1].image,))
    reward = CLIPReward(str(folder), "pickscore")
    with caplog.at_level(logging.WARNING):
        first, second = reward.score([edit]), reward.score([edit])
    assert caplog.text.count("sees no source pictures") == 1
    assert first.total.tolist() == second.total.tolist() == reward.score(requests[:1]).total.tolist()


def test_a_model_that_breaks_leaves_its_pictures_unscored(folder: Path, requests: list[CritiqueRequest]) -> None:
    reward = CLIPReward(str(folder), "pickscore")
    reward.load("cpu")
    reward.model.logit_scale.data.fill_(float("nan"))
    rewards = reward.score(requests)
    assert not rewards.valid.any() and rewards.reasons == ["the score is nan, no finite number"] * 4
    assert rewards.values.isnan().all()


def test_what_makes_no_sense_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="score is one of clipscore, torchmetrics, pickscore and overlong cut or unscored, got 'cos'"
    ):
        CLIPReward(str(folder), "cos")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'pickscore' and 'drop'"):
        CLIPReward(str(folder), "pickscore", overlong="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="embedded:shapes-critic is a Qwen3VLModel, no CLIP model"):
        CLIPReward("embedded:shapes-critic", "pickscore").load()


def test_the_processor_may_lie_elsewhere(folder: Path, tmp_path: Path, requests: list[CritiqueRequest]) -> None:
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path / "weights")
    apart = CLIPReward(str(tmp_path / "weights"), "pickscore", processor=str(folder))
    assert apart.score(requests).total.tolist() == CLIPReward(str(folder), "pickscore").score(requests).total.tolist()
