"""Driving any diffusers flow-matching pipeline without adapter code.

A pipeline touches its denoiser in two places only: it calls ``pipe.transformer(...)`` and gives the result to
``pipe.scheduler.step(model_output, t, sample)``. :class:`PipelineTape` records both during ordinary sampling, learns from the
recording where sample and time go in and how the velocity comes out, and proves it by replaying every recorded step. A pipeline
whose steps cannot be reproduced is refused; nothing is guessed (``docs/architecture.md``).

Convention: ``x_t = (1 - sigma) x0 + sigma eps``, ``v = eps - x0``; sigma comes from the pipeline's own scheduler.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from math import ceil
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class UnprovenPipelineError(ValueError):
    """A pipeline whose own steps the tape cannot reproduce."""


class GuidedPipelineError(UnprovenPipelineError):
    """Classifier-free guidance was on: the recorded steps are a mixture of two velocities, and no policy's own."""


@dataclass
class _Call:
    kwargs: dict[str, Any]
    output: Any


@dataclass
class _Step:
    model_output: Tensor
    time: Tensor
    sample: Tensor
    prev_sample: Tensor
    sigma: float
    next_sigma: float


@dataclass
class _Log:
    calls: list[_Call] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    calls_made: int = 0
    steps_made: int = 0


# How the sample sits in the denoiser's input: (name, take it out of the argument, put another one in).
_INPUT_RULES: dict[str, tuple[Callable[[Any, Tensor], Tensor | None], Callable[[Any, Tensor], Any]]] = {
    "whole": (
        lambda argument, sample: argument if _same_shape(argument, sample) else None,
        lambda argument, x: x,
    ),
    "first tokens": (
        lambda argument, sample: (
            argument[:, : sample.shape[1]]
            if isinstance(argument, Tensor) and argument.ndim == sample.ndim == 3 and argument.shape[1] > sample.shape[1]
            else None
        ),
        lambda argument, x: torch.cat([x, argument[:, x.shape[1] :]], dim=1),
    ),
    "list": (
        lambda argument, sample: (
            torch.stack(list(argument)).reshape(sample.shape)
            if isinstance(argument, (list, tuple)) and len(argument) == len(sample) and argument[0].numel() == sample[0].numel()
            else None
        ),
        lambda argument, x: [part.reshape(old.shape) for part, old in zip(x.unbind(0), argument, strict=True)],
    ),
}

# Scheduler time (0...1000) to model time, each in the arithmetic that pipelines use, so that replay can be exact.
_TIME_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "t": lambda t: t,
    "t/1000": lambda t: t / 1000,
    "(1000-t)/1000": lambda t: (1000 - t) / 1000,
    "1-t/1000": lambda t: 1 - t / 1000,
}


def _first_tokens(output: Tensor, sample: Tensor) -> Tensor:
    return output[:, : sample.shape[1]]


def _stacked(output: Any, sample: Tensor) -> Tensor:
    parts = list(output) if isinstance(output, (list, tuple)) else list(output.unbind(0))
    return torch.stack(parts).reshape(sample.shape)


_OUTPUT_RULES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "output": lambda output, sample: output,
    "-output": lambda output, sample: -output,
    "first tokens of output": _first_tokens,
    "first channels of output": lambda output, sample: output[:, : sample.shape[1]],  # of a model that also predicts variances
    "-first tokens of output": lambda output, sample: -_first_tokens(output, sample),
    "stacked list": _stacked,
    "-stacked list": lambda output, sample: -_stacked(output, sample),
}


@dataclass(frozen=True)
class Rule:
    """What the tape learned about a pipeline."""

    sample_name: str
    sample_rule: str
    time_name: str
    time_rule: str
    output_rule: str

    def __str__(self) -> str:
        return (
            f"sample = {self.sample_name} ({self.sample_rule}), time = {self.time_name} ({self.time_rule}), "
            f"velocity = {self.output_rule}"
        )


@dataclass
class Recording:
    """One sampled batch: its pictures and all that training on them needs.

    Args:
        images: One picture per sample, in the batch's order. Of a video it is a sheet of at most four of its frames, the first and
            the last among them, evenly spaced in time and in reading order: what a critic of pictures is shown.
        x0: Clean latents in the pipeline's own layout, ``float32 [B, ...]``.
        sigmas: Noise levels of the sampler's steps, first to last, without the final 0.
        rule: What the tape learned about the pipeline.
        frames: All frames of each video; ``None`` for pictures.
    """

    images: list[Image.Image]
    x0: Tensor
    sigmas: list[float]
    rule: Rule
    frames: list[list[Image.Image]] | None = field(repr=False)
    _denoiser: torch.nn.Module = field(repr=False)
    _conditioning: dict[str, Any] = field(repr=False)
    _log: _Log | None = field(repr=False)
    _train_timesteps: int = 1000
    # per batch size, along which axis arguments hold one part per sample; shared by the recordings of one kind
    _axes: dict[int, dict[str, int]] = field(default_factory=dict, repr=False)

    def velocity(self, x_t: Tensor, sigma: Tensor | float) -> Tensor:
        """The denoiser on new latents under the recorded conditioning.

        Args:
            x_t: Noisy latents, the shape of :attr:`x0`.
            sigma: Noise level in (0, 1], one number or one per sample ``[B]``.

        Returns:
            ``v = eps - x0`` as ``float32``, the shape of :attr:`x0`; gradients flow.
        """
        sigmas = torch.as_tensor(sigma, dtype=torch.float32, device=x_t.device)
        time = sigmas * self._train_timesteps
        return self._run(self._conditioning, x_t, time).float()

    def _run(self, kwargs: dict[str, Any], x_t: Tensor, time: Tensor) -> Tensor:
        argument, recorded_time = kwargs[self.rule.sample_name], kwargs[self.rule.time_name]
        put = _INPUT_RULES[self.rule.sample_rule][1]
        dtype = argument.dtype if isinstance(argument, Tensor) else argument[0].dtype
        model_time = _TIME_RULES[self.rule.time_rule](time.to(recorded_time.dtype))
        if recorded_time.numel() == 1 and model_time.numel() > 1:
            raise ValueError("this pipeline's denoiser takes one time for the whole batch; give one sigma")
        arguments = {
            **kwargs,
            self.rule.sample_name: put(argument, x_t.to(dtype)),
            self.rule.time_name: model_time.expand(recorded_time.shape),
        }
        return _OUTPUT_RULES[self.rule.output_rule](_primary(self._denoiser(**arguments)), x_t)

    def select(self, rows: Sequence[int]) -> Recording:
        """The recording of some of its samples, e.g. of those that have a reward.

        Which of the denoiser's arguments hold one part per sample is tried out once per kind of call and batch size, by comparing
        velocities.

        Args:
            rows: Positions of samples, in any order; one may come several times.

        Returns:
            A recording of ``len(rows)`` samples without recorded steps.

        Raises:
            UnprovenPipelineError: If no way to split the recorded conditioning gives the same velocities.
        """
        if not rows:
            raise ValueError("no rows to select")
        count = len(self.x0)
        if count not in self._axes:
            self._axes[count] = self._learn_axes()
        return self._select(rows, self._axes[count])

    def _select(self, rows: Sequence[int], axes: Mapping[str, int]) -> Recording:
        conditioning = {
            name: _pick(value, rows, axes[name]) if name in axes else value for name, value in self._conditioning.items()
        }
        return replace(
            self,
            images=[self.images[row] for row in rows],
            x0=self.x0[list(rows)],
            frames=None if self.frames is None else [self.frames[row] for row in rows],
            _conditioning=conditioning,
            _log=None,
            _axes={len(rows): dict(axes)},
        )

    @torch.no_grad()
    def _learn_axes(self) -> dict[str, int]:
        count = len(self.x0)
        found = {name: _sample_axes(value, count) for name, value in self._conditioning.items()}
        possible = {name: axes for name, axes in found.items() if axes}
        # fewer samples in another order, or the one twice: what is left whole by mistake no longer fits
        rows = list(range(count))[::-1][: max(1, count // 2)] if count > 1 else [0, 0]
        sigma = torch.full((count,), self.sigmas[0])
        whole = self.velocity(self.x0, sigma)[rows]
        # other sums in matrix products of another batch size; another sample's conditioning or position is farther away than this
        argument = self._conditioning[self.rule.sample_name]
        precise = (argument if isinstance(argument, Tensor) else argument[0]).dtype == torch.float32
        tolerance = (1e-3 if precise else 5e-2) * float(whole.abs().max())
        for chosen in _choices(possible):
            try:
                part = self._select(rows, chosen).velocity(self.x0[rows], sigma[rows])
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
                continue  # sizes no longer fit
            if part.shape == whole.shape and float((part - whole).abs().max()) <= tolerance:
                return chosen
        raise UnprovenPipelineError(
            f"the conditioning of {count} samples of this pipeline cannot be split into samples: no choice of the arguments "
            f"{', '.join(possible)} gives the same velocities"
        )

    @torch.no_grad()
    def prove(self) -> float:
        """Replay every recorded step.

        Returns:
            The largest absolute difference between a recorded and a replayed velocity; 0.0 in fp32 on the CPU.

        Raises:
            ValueError: If the steps were not kept.
        """
        if self._log is None:
            raise ValueError("this recording kept no steps; record with keep_steps=True to prove it")
        worst = 0.0
        for call, step in zip(self._log.calls, self._log.steps, strict=True):
            again = self._run(call.kwargs, step.sample, step.time)
            worst = max(worst, float((again.float() - step.model_output.float()).abs().max()))
        return worst


class PipelineTape:
    """Records a diffusers pipeline; see the module's text.

    Args:
        pipe: Any diffusers pipeline with a ``transformer`` and a flow-matching ``scheduler``.
        tolerance: Largest difference that counts as proven. 0 on the CPU in fp32; half precision on a GPU may need more.

    Raises:
        UnprovenPipelineError: If the pipeline is not flow matching.
    """

    def __init__(self, pipe: Any, tolerance: float = 0.0) -> None:
        self.pipe = pipe
        self.tolerance = tolerance
        self.name = type(pipe).__name__
        self.rules: dict[tuple[str, ...], Rule] = {}
        self._axes: dict[tuple[str, ...], dict[int, dict[str, int]]] = {}
        if getattr(pipe, "scheduler", None) is None:
            raise UnprovenPipelineError(f"{self.name} has no `scheduler` whose steps could be recorded")
        config = pipe.scheduler.config
        flow = "FlowMatch" in type(pipe.scheduler).__name__ or config.get("prediction_type") == "flow_prediction"
        if not flow:
            raise UnprovenPipelineError(
                f"{self.name} with {type(pipe.scheduler).__name__} (prediction_type {config.get('prediction_type')!r}) is not flow "
                "matching; the objectives here need v = eps - x0"
            )
        if getattr(pipe, "transformer", None) is None:
            raise UnprovenPipelineError(f"{self.name} has no `transformer`, whose calls could be recorded")

    @torch.no_grad()
    def record(self, *, keep_steps: bool = True, **pipeline_kwargs: Any) -> Recording:
        """Sample a batch and record it. The first recording of a kind (with or without pictures) learns and proves its rule.

        Args:
            keep_steps: Keep every step for :meth:`Recording.prove`; without, only what training needs stays in memory.
            **pipeline_kwargs: Arguments of the pipeline's call. Guidance by a second denoiser call must be off.

        Raises:
            UnprovenPipelineError: If the recorded steps cannot be reproduced; the message names the pipeline.
        """
        kind = tuple(sorted(name for name, value in pipeline_kwargs.items() if value is not None))
        learn = kind not in self.rules
        with self._listen(keep_all=keep_steps or learn) as log:
            images, frames = pictures_of(self.pipe(**as_pictures(self.pipe, pipeline_kwargs)))
        if log.calls_made < log.steps_made:
            raise UnprovenPipelineError(
                f"{self.name} called its `transformer` {log.calls_made} times for {log.steps_made} steps: another denoiser makes the "
                "rest, and one policy cannot be trained through two"
            )
        if log.calls_made != log.steps_made:
            raise self._guided(f"called its denoiser {log.calls_made} times for {log.steps_made} steps")
        rule = self._learn(log) if learn else self.rules[kind]
        if len(log.calls[0].kwargs[rule.sample_name]) != len(log.steps[-1].prev_sample):
            raise self._guided("gave its denoiser a doubled batch")
        recording = Recording(
            images=images,
            x0=log.steps[-1].prev_sample.float(),
            sigmas=[step.sigma for step in log.steps],
            rule=rule,
            frames=frames,
            _denoiser=self.pipe.transformer,
            _conditioning=log.calls[0].kwargs,
            _log=log if keep_steps or learn else None,
            _train_timesteps=int(self.pipe.scheduler.config.num_train_timesteps),
            _axes=self._axes.setdefault(kind, {}),
        )
        if learn:
            difference = recording.prove()
            if difference > self.tolerance:
                raise UnprovenPipelineError(
                    f"{self.name}: replaying its steps under the rule [{rule}] is off by {difference:.3g}, more than the tolerance "
                    f"{self.tolerance:g}; it cannot be trained"
                )
            self.rules[kind] = rule
            if not keep_steps:
                recording._log = None
        return recording

    @contextmanager
    def _listen(self, keep_all: bool) -> Iterator[_Log]:
        log = _Log()
        denoiser, scheduler = self.pipe.transformer, self.pipe.scheduler
        signature = inspect.signature(denoiser.forward)

        def after(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            log.calls_made += 1
            if keep_all or not log.calls:
                bound = signature.bind(*args, **kwargs)
                log.calls.append(_Call(dict(bound.arguments), _primary(output)))

        original = scheduler.step

        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            index = scheduler.step_index if scheduler.step_index is not None else scheduler.index_for_timestep(timestep)
            sigma, next_sigma = float(scheduler.sigmas[index]), float(scheduler.sigmas[index + 1])
            result = original(model_output, timestep, sample, *args, **kwargs)
            previous = result[0] if isinstance(result, tuple) else result.prev_sample
            step = _Step(model_output, torch.as_tensor(timestep), sample, previous, sigma, next_sigma)
            log.steps_made += 1
            log.steps.append(step if keep_all else _Step(previous, step.time, previous, previous, sigma, next_sigma))
            return result

        hook = denoiser.register_forward_hook(after, with_kwargs=True)
        scheduler.step = step
        try:
            yield log
        finally:
            hook.remove()
            del scheduler.step

    def _learn(self, log: _Log) -> Rule:
        if len(log.steps) < 2:
            raise UnprovenPipelineError(f"{self.name}: record at least 2 steps to learn from, got {len(log.steps)}")
        self._check_flow(log)
        call, step = log.calls[0], log.steps[0]
        sample_name, sample_rule = self._find_sample(call, step)
        time_name, time_rule = self._find_time(log)
        for output_rule, read in _OUTPUT_RULES.items():
            try:
                if torch.equal(read(call.output, step.sample).to(step.model_output.dtype), step.model_output):
                    return Rule(sample_name, sample_rule, time_name, time_rule, output_rule)
            except (RuntimeError, TypeError, AttributeError, IndexError):
                continue  # this rule does not fit the output's type or shape
        raise UnprovenPipelineError(f"{self.name}: the scheduler's input is no known function of the denoiser's output")

    def _check_flow(self, log: _Log) -> None:
        """An Euler step must be ``x + (sigma' - sigma) v``; other solvers are trusted for their declared prediction type."""
        if "Euler" not in type(self.pipe.scheduler).__name__:
            return
        step = log.steps[0]
        expected = step.sample.float() + (step.next_sigma - step.sigma) * step.model_output.float()
        # the scheduler's own arithmetic differs from ours by rounding only
        if not torch.allclose(expected, step.prev_sample.float(), atol=1e-2 if step.sample.dtype != torch.float32 else 1e-4):
            raise UnprovenPipelineError(f"{self.name}: its scheduler does not step along v = eps - x0")

    def _find_sample(self, call: _Call, step: _Step) -> tuple[str, str]:
        for name, argument in call.kwargs.items():
            for rule, (take, _) in _INPUT_RULES.items():
                try:
                    found = take(argument, step.sample)
                except (RuntimeError, TypeError, AttributeError, IndexError):
                    continue  # this rule does not fit the argument's type or shape
                if found is not None and torch.equal(found.to(step.sample.dtype), step.sample):
                    return name, rule
        if any(isinstance(value, (Tensor, list)) and len(value) == 2 * len(step.sample) for value in call.kwargs.values()):
            raise self._guided("gave its denoiser a doubled batch")
        raise UnprovenPipelineError(f"{self.name}: no argument of its denoiser holds the scheduler's sample")

    def _guided(self, what: str) -> UnprovenPipelineError:
        return GuidedPipelineError(
            f"{self.name} {what}; switch classifier-free guidance off (e.g. guidance_scale=1.0 or true_cfg_scale=1.0) while recording"
        )

    def _find_time(self, log: _Log) -> tuple[str, str]:
        for name, argument in log.calls[0].kwargs.items():
            if not isinstance(argument, Tensor) or argument.numel() not in (1, len(log.steps[0].sample)):
                continue
            for rule, convert in _TIME_RULES.items():
                pairs = [
                    (call.kwargs[name], convert(step.time.to(argument.dtype)))
                    for call, step in zip(log.calls, log.steps, strict=True)
                ]
                if all(torch.equal(seen, made.to(seen.device).expand(seen.shape)) for seen, made in pairs):
                    return name, rule
        raise UnprovenPipelineError(f"{self.name}: no argument of its denoiser is a known function of the scheduler's time")


def _sample_axes(value: Any, count: int) -> list[int]:
    """Axes of a denoiser's argument along which it may have one part per sample."""
    if isinstance(value, Tensor):  # the second axis: of hidden states of several layers
        return [axis for axis in (0, 1) if value.ndim > axis and value.shape[axis] == count]
    if isinstance(value, (list, tuple)):
        return [0] if len(value) == count else []
    if isinstance(value, dict):
        inside = [_sample_axes(part, count) for part in value.values()]
        return [0] if inside and all(0 in axes for axes in inside) else []
    return []


def _pick(value: Any, rows: Sequence[int], axis: int) -> Any:
    if isinstance(value, Tensor):
        return value.index_select(axis, torch.tensor(rows, device=value.device))
    if isinstance(value, dict):
        return {name: _pick(part, rows, axis) for name, part in value.items()}
    return type(value)(value[row] for row in rows)


def _choices(possible: Mapping[str, Sequence[int]]) -> Iterator[dict[str, int]]:
    """Each argument along its first possible axis; then with one, then with two that are split otherwise or, being of no sample, not."""
    first = {name: axes[0] for name, axes in possible.items()}
    others: dict[str, list[int | None]] = {name: [*axes[1:], None] for name, axes in possible.items()}
    for number in range(min(2, len(possible)) + 1):
        for names in combinations(possible, number):
            for changed in product(*(others[name] for name in names)):
                axes = {**first, **dict(zip(names, changed, strict=True))}
                yield {name: axis for name, axis in axes.items() if axis is not None}


def _same_shape(argument: Any, sample: Tensor) -> bool:
    return isinstance(argument, Tensor) and argument.shape == sample.shape


def _primary(output: Any) -> Any:
    """The prediction in a denoiser's output, whichever way it is returned."""
    if hasattr(output, "sample"):
        return output.sample
    return output[0] if isinstance(output, tuple) else output


def as_pictures(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments, asking for PIL pictures where the pipeline, as those for video, would return arrays."""
    if "output_type" in arguments or "output_type" not in inspect.signature(pipe.__call__).parameters:
        return arguments
    return {**arguments, "output_type": "pil"}


def pictures_of(output: Any) -> tuple[list[Image.Image], list[list[Image.Image]] | None]:
    """What a pipeline made: one picture per sample (see :class:`Recording`), and the frames where they are videos."""
    frames = getattr(output, "frames", None)
    if frames is None:
        return list(output.images), None
    videos = [[_picture(frame) for frame in video] for video in frames]
    return [contact_sheet(video) for video in videos], videos


def _picture(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return frame
    return Image.fromarray((np.asarray(frame).clip(0, 1) * 255).round().astype(np.uint8))  # [H, W, 3] in [0, 1]


def contact_sheet(frames: list[Image.Image], most: int = 4) -> Image.Image:
    """Evenly spaced frames of a video on one picture, the first and the last among them, in reading order.

    Args:
        frames: Frames of one size, in time.
        most: Frames to show at most; up to three stand in a row, four in a square.
    """
    count = min(most, len(frames))
    chosen = [frames[round(index * (len(frames) - 1) / max(count - 1, 1))] for index in range(count)]
    columns = count if count < 4 else ceil(count**0.5)
    width, height = chosen[0].size
    sheet = Image.new("RGB", (columns * width, ceil(count / columns) * height))
    for index, frame in enumerate(chosen):
        sheet.paste(frame, (index % columns * width, index // columns * height))
    return sheet
