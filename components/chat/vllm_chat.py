"""A vision-language model in this process, through vLLM's offline engine."""

from __future__ import annotations

import asyncio
import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from ..checkpoints import fingerprint, resolve
from .base import ChatModel, ChatReply, ChatRequest, Place, Weights, in_order
from .option_weights import option_weights
from .transformers_chat import load_processor

_SHOWN = 20
"""Most probable tokens asked for at a place: the most that an engine shows by default (``max_logprobs``)."""
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as ``max_lora_rank``."""


class VLLMChat(ChatModel):
    """Continuous batching with vLLM, and prompts that begin alike computed once.

    The engine starts at the first request or :meth:`load`, on the devices that vLLM finds (``CUDA_VISIBLE_DEVICES`` chooses), and
    keeps their memory until :meth:`close`. It may start processes that import the main module again: a script needs its
    ``if __name__ == "__main__":``. vLLM and its device are the user's to install; nothing of it is imported before.

    Args:
        path: Folder, hub id or ``embedded:`` name of the model.
        dtype: Weight type, e.g. ``"bfloat16"``; ``"auto"`` takes the one in the checkpoint.
        tensor_parallel_size: Devices that share the model.
        max_model_len: Most tokens of a prompt and its answer; ``None`` takes the model's own limit, which may need more memory
            for keys and values than there is.
        gpu_memory_utilization: Share of a device's memory that the engine takes.
        max_images: Most pictures of one request; more are a failure. The engine reserves memory for them.
        chunk_size: Requests handed to the engine at once, which schedules them itself; what a chunk holds is in memory as pictures.
        adapter: Folder of a PEFT LoRA adapter to apply.
        revision: Hub revision to pin.
        max_pixels: Larger pictures are brought down to this many pixels; see :func:`.load_processor`.
        enable_prefix_caching: Whether keys and values of a common beginning, pictures included, are kept and used again.
        engine: Further arguments of ``vllm.LLM``, e.g. ``{"enforce_eager": True, "max_num_seqs": 64}``; they win over the ones here.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        max_images: int = 4,
        chunk_size: int = 256,
        adapter: str | None = None,
        revision: str | None = None,
        max_pixels: int | None = None,
        enable_prefix_caching: bool = True,
        engine: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.tensor_parallel_size = tensor_parallel_size
        self.max_model_len = max_model_len
        self.gpu_memory_utilization = gpu_memory_utilization
        self.max_images = max_images
        self.chunk_size = chunk_size
        self.adapter = adapter
        self.revision = revision
        self.max_pixels = max_pixels
        self.enable_prefix_caching = enable_prefix_caching
        self.engine = engine or {}
        self._llm: Any = None
        self._processor: Any = None
        self._lora: Any = None

    @property
    def identity(self) -> str:
        return self.path + (f"+{self.adapter}" if self.adapter else "") + (f"@{self.revision}" if self.revision else "")

    @property
    def fingerprint(self) -> str:
        engine = json.dumps(self.engine, sort_keys=True, default=str)
        return fingerprint(f"vllm {self.identity} {self.dtype} {self.max_pixels} {engine}", self.path, self.adapter)

    @property
    def weights(self) -> str | None:
        return self.path

    def load(self, device: Any = None) -> None:
        """Start the engine. ``device`` is ignored: vLLM finds its own.

        Raises:
            ImportError: If vLLM is not installed.
            ValueError: If ``max_pixels`` is given for a processor that does not count pixels, or the adapter is no LoRA.
        """
        if self._llm is not None:
            return
        try:
            import vllm
            from vllm.lora.request import LoRARequest
        except ModuleNotFoundError as error:
            if error.name != "vllm":  # it is installed, and something that it needs is not
                raise
            raise ImportError("VLLMChat needs vLLM: pip install 'rationalrewards[vllm]'") from None
        folder = resolve(self.path)
        self._processor = load_processor(self.path, self.max_pixels, self.revision)
        settings: dict[str, Any] = {
            "dtype": self.dtype,
            "tensor_parallel_size": self.tensor_parallel_size,
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "limit_mm_per_prompt": {"image": self.max_images, "video": 0},
            "revision": self.revision,
            "tokenizer_revision": self.revision,
            "enable_prefix_caching": self.enable_prefix_caching,
            # the one of its engines for grammars that reads llguidance's dialect
            "structured_outputs_config": {"backend": "guidance"},
        }
        if self.max_pixels is not None:
            settings["mm_processor_kwargs"] = {"size": dict(self._processor.image_processor.size)}
        if self.adapter is not None:
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(self.adapter)}
            self._lora = LoRARequest("adapter", 1, str(Path(self.adapter).absolute()))
        self._llm = vllm.LLM(folder, **{**settings, **self.engine})

    def close(self) -> None:
        """End the engine and free its memory; the next request starts a new one."""
        self._llm = self._processor = self._lora = None
        gc.collect()  # the engine ends when it is dropped, and it sits in reference cycles

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """Answer requests; see :meth:`.ChatModel.complete`.

        Raises:
            vllm.v1.engine.exceptions.EngineDeadError: If the engine itself died, as it does when memory runs out: no request would
                be answered any more.
        """
        return in_order(self.stream(requests))

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[list[tuple[int, ChatReply]]]:
        self.load()
        for position in range(0, len(requests), self.chunk_size):
            chunk = requests[position : position + self.chunk_size]
            outputs = _each(chunk, self._chat)
            replies = [self._reply(request, output) for request, output in zip(chunk, outputs, strict=True)]
            yield list(enumerate(replies, start=position))

    def _chat(self, requests: Sequence[ChatRequest]) -> list[Any]:
        outputs: list[Any] = []
        for continues, group in groupby(requests, key=lambda request: request.continues):
            alike = list(group)
            outputs += self._llm.chat(
                [[_turn(turn) for turn in request.messages] for request in alike],
                [_sampling(request) for request in alike],
                use_tqdm=False,
                lora_request=self._lora,
                **({"add_generation_prompt": False, "continue_final_message": True} if continues else {}),
            )
        return outputs

    def _reply(self, request: ChatRequest, output: Any) -> ChatReply:
        if isinstance(output, Exception):
            return ChatReply("", failure=_reason(output))
        (answer,) = output.outputs
        length = len(answer.token_ids)
        # the token that ends an answer is none of it; a stop string is, and has no such token
        stopped = isinstance(answer.stop_reason, str)
        ended = answer.finish_reason == "stop" and not stopped
        failure = "" if answer.finish_reason == "stop" else f"the engine gave up: {answer.finish_reason}"
        if answer.finish_reason == "length":
            room = "" if length >= request.max_tokens else " (no more fit into max_model_len)"
            failure = f"the answer was cut off after {length} tokens{room}"
        picture = getattr(self._processor, "image_token_id", None)
        return ChatReply(
            answer.text.rstrip() if stopped else answer.text,
            failure=failure,
            prompt_tokens=len(output.prompt_token_ids),
            image_tokens=0 if picture is None else output.prompt_token_ids.count(picture),
            completion_tokens=length - ended,
            reused_tokens=output.num_cached_tokens or 0,
        )

    def weigh(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> list[list[Weights]]:
        """How probable the options at some places of given answers are; see :meth:`.ChatModel.weigh`.

        All places of a chunk are walked together, token by token; see :func:`.option_weights`. With the prefix cache each step
        computes little more than one token. Probabilities are the model's own, at temperature 1 and with no form forced.
        """
        return in_order(self.stream_weights(requests, answers, places))

    def stream_weights(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> Iterator[list[tuple[int, list[Weights]]]]:
        self.load()
        work = list(zip(requests, answers, places, strict=True))
        for position in range(0, len(work), self.chunk_size):
            chunk = work[position : position + self.chunk_size]
            with ThreadPoolExecutor(1) as own:  # the caller's thread may run an event loop already, as a notebook's does
                weights = own.submit(asyncio.run, self._walk(chunk)).result()
            yield list(enumerate(weights, start=position))

    async def _walk(self, work: Sequence[tuple[ChatRequest, str, Sequence[Place]]]) -> list[list[Weights]]:
        loop = asyncio.get_running_loop()
        waiting: list[tuple[dict[str, Any], asyncio.Future[tuple[dict[str, float], int]]]] = []

        def ask() -> None:
            asked = waiting[:]
            waiting.clear()
            try:
                found = _each([prompt for prompt, _ in asked], self._next_tokens)
            except Exception as error:  # the engine died: whoever waits must hear of it
                found = [error] * len(asked)
            for (_, future), tokens in zip(asked, found, strict=True):
                if isinstance(tokens, Exception):
                    future.set_exception(tokens)
                else:
                    future.set_result(tokens)

        async def place(start: dict[str, Any], answer: str, spot: Place) -> Weights:
            read = asked = 0

            async def next_tokens(text: str) -> Mapping[str, float]:
                nonlocal read, asked
                future: asyncio.Future[tuple[dict[str, float], int]] = loop.create_future()
                if not waiting:  # all walks step together: their questions come in before the loop gets to this
                    loop.call_soon(ask)
                waiting.append(({**start, "prompt": start["prompt"] + text}, future))
                shown, length = await future
                read, asked = read + length, asked + 1  # each step writes one token
                return shown

            options: dict[str, float] = {}
            failure = ""
            try:
                options = await option_weights(next_tokens, answer[: spot.start], spot.options)
            except Exception as error:
                if _is_dead(error):
                    raise
                failure = _reason(error)
            return Weights(options, failure, read, asked)

        async def one(request: ChatRequest, answer: str, at: Sequence[Place]) -> list[Weights]:
            (start,) = _each([request], lambda some: [self._prompt(request) for request in some])
            if isinstance(start, Exception):
                return [Weights({}, _reason(start))] * len(at)
            return list(await asyncio.gather(*(place(start, answer, spot) for spot in at)))

        return list(await asyncio.gather(*(one(*piece) for piece in work)))

    def _prompt(self, request: ChatRequest) -> dict[str, Any]:
        """The text that a chat becomes, to which an answer's beginning can be added letter by letter.

        ``LLM.chat`` can continue a turn too, but then the template decides about white space at its end.
        """
        text = self._processor.apply_chat_template(list(request.messages), tokenize=False, add_generation_prompt=True)
        pictures = request.images()
        return {"prompt": text, **({"multi_modal_data": {"image": pictures}} if pictures else {})}

    def _next_tokens(self, prompts: Sequence[dict[str, Any]]) -> list[Any]:
        import vllm

        outputs = self._llm.generate(
            prompts,
            vllm.SamplingParams(max_tokens=1, temperature=0.0, logprobs=_SHOWN),
            use_tqdm=False,
            lora_request=self._lora,
            # the template wrote what special tokens there are to be
            tokenization_kwargs={"add_special_tokens": False},
        )
        return [(self._probabilities(output.outputs[0].logprobs[0]), len(output.prompt_token_ids)) for output in outputs]

    def _probabilities(self, shown: Mapping[int, Any]) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, entry in shown.items():
            text = self._processor.tokenizer.decode([token])
            found[text] = found.get(text, 0.0) + math.exp(entry.logprob)
        return found


def _each(items: Sequence[Any], ask: Callable[[Sequence[Any]], list[Any]]) -> list[Any]:
    """What ``ask`` makes of the items. If it refuses them, each is asked alone: what is wrong with one is no other's failure.

    Returns:
        One result per item, or the exception that it alone leads to.
    """
    try:
        return ask(items)
    except Exception as error:
        if _is_dead(error):
            raise
        return [error] if len(items) == 1 else [result for item in items for result in _each([item], ask)]


def _is_dead(error: Exception) -> bool:
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:  # "failed to apply ... on data=...", and why only in what it was raised from
        error = error.__cause__
    return f"{type(error).__name__}: {str(error)[:200]}"


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    parts = [{"type": "image_pil", "image_pil": part["image"]} if part["type"] == "image" else part for part in turn["content"]]
    return {"role": turn["role"], "content": parts}


def _sampling(request: ChatRequest) -> Any:
    import vllm
    from vllm.sampling_params import StructuredOutputsParams

    return vllm.SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=request.seed,
        stop=list(request.stop),
        structured_outputs=StructuredOutputsParams(grammar=request.form.lark()) if request.form else None,
    )


def _lora_rank(adapter: str) -> int:
    """The smallest ``max_lora_rank`` that an adapter fits in."""
    file = Path(adapter) / "adapter_config.json"
    try:
        config = json.loads(file.read_text())
        rank = max(int(config["r"]), *(config.get("rank_pattern") or {"": 0}).values())
        return next(most for most in _LORA_RANKS if most >= rank)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(
            f"{file}: no LoRA adapter that vLLM takes ({type(error).__name__}: {error}); merge it into a model"
        ) from None
