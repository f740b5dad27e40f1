"""What a run of reward RL takes, in counts, FLOPs, hours and memory: planned before it, and used after it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .generation import FlowGenerator, policies
from .measuring import PeakBytes, flop_counter


@dataclass
class Work:
    """Counts of what was done, or is to be done, over all processes.

    Args:
        pictures: Pictures sampled for training.
        held_out: Pictures sampled in validation.
        texts: Requests of training encoded anew, with their sources, once a round each.
        critiques: Pictures that the reward is asked about, repeats and validation included.
        sampling: Forwards of one picture through the denoiser in sampling.
        policy: Forwards of one picture at one level with the trained policy, each with its backward.
        frozen: Forwards of one picture at one level with the old policy or the base.
    """

    pictures: int = 0
    held_out: int = 0
    texts: int = 0
    critiques: int = 0
    sampling: int = 0
    policy: int = 0
    frozen: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def as_dict(self) -> dict[str, int]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class UnitCosts:
    """FLOPs and bytes of one picture, measured.

    Args:
        forward: FLOPs of one forward of the denoiser.
        update: FLOPs of a forward with its backward.
        encode: FLOPs of the text encoders and of encoding the sources.
        decode: FLOPs from clean latents to a picture.
        weights: Bytes of the pipeline's weights.
        adapters: Bytes of the policies, of gradients and of two moments of the optimizer.
        activations: Most bytes that tensors of a forward and its backward hold at once.
    """

    forward: float
    update: float
    encode: float
    decode: float
    weights: int
    adapters: int
    activations: int


@dataclass(frozen=True)
class CostCard:
    """A run's bill.

    Args:
        work: Counts.
        costs: What one of each costs.
        tflops: TFLOP/s that a device is taken to achieve.
        devices: Devices.
        at_once: Pictures times levels in one forward with backward.
        backward_through_all: Whether frozen policies are in the forward that has a backward (``one_forward: all``).
    """

    work: Work
    costs: UnitCosts
    tflops: float
    devices: int
    at_once: int
    backward_through_all: bool = False
    flops: float = field(init=False)

    def __post_init__(self) -> None:
        work, costs = self.work, self.costs
        frozen = costs.update if self.backward_through_all else costs.forward
        flops = costs.forward * work.sampling + costs.decode * (work.pictures + work.held_out)
        flops += costs.encode * (work.texts + work.held_out) + costs.update * work.policy + frozen * work.frozen
        object.__setattr__(self, "flops", flops)

    @property
    def gpu_hours(self) -> float:
        """Device hours of the generator at ``tflops``, the critic's not included."""
        return self.flops / (self.tflops * 1e12 * 3600)

    @property
    def memory(self) -> float:
        """GiB on a device at the fullest moment of training: weights, adapters and activations, the critic's not included."""
        return (self.costs.weights + self.costs.adapters + self.costs.activations * self.at_once) / 2**30

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **self.work.as_dict(),
            "flops": self.flops,
            "gpu_hours": self.gpu_hours,
            "hours": self.gpu_hours / self.devices,
            "tflops": self.tflops,
            "devices": self.devices,
            "memory_gib": self.memory,
            "weights_gib": self.costs.weights / 2**30,
            "adapters_gib": self.costs.adapters / 2**30,
            "activations_gib": self.costs.activations * self.at_once / 2**30,
        }

    def __str__(self) -> str:
        work, costs = self.work, self.costs
        forwards = work.sampling + work.policy + work.frozen
        parts = (costs.weights, costs.adapters, costs.activations * self.at_once)
        weights, adapters, activations = (f"{part / 2**30:.3g}" for part in parts)
        return (
            f"{work.pictures:,} pictures and {work.held_out:,} held-out ones, {work.critiques:,} critiques, {forwards:,} forwards of a "
            f"picture ({work.sampling:,} sampling, {work.policy:,} with backward, {work.frozen:,} of frozen policies): "
            f"{self.flops / 1e15:.3g} PFLOP, {self.gpu_hours:.3g} device hours of the generator at {self.tflops:g} TFLOP/s, "
            f"{self.gpu_hours / self.devices:.3g} hours on {self.devices}; {self.memory:.3g} GiB a device (weights {weights}, adapters "
            f"{adapters}, activations {activations}), the critic's not included"
        )


def unit_costs(generator: FlowGenerator, prompt: str, sources: Any = ()) -> UnitCosts:
    """Measure one picture: samples it twice, and goes forward and backward once.

    Args:
        generator: Prepared for training, on its device.
        prompt: A typical request.
        sources: Its source pictures.
    """
    denoiser = generator.denoiser
    assert generator.tape is not None, "call prepare_training first"
    known = len(generator.tape.rules)
    with torch.no_grad():
        with flop_counter() as first:
            recording = generator.record([prompt], sources, [0])
        with flop_counter() as second:  # the encoders answer from memory, where they may
            generator.record([prompt], sources, [1])
        sigma = torch.tensor([recording.sigmas[0]]).to(recording.x0)
        with flop_counter() as once, policies.use(denoiser, policies.OLD):
            recording.velocity(recording.x0, sigma)
    trained = list(policies.parameters_of(denoiser, policies.POLICY).values())
    before = [parameter.grad for parameter in trained]
    with flop_counter() as update, PeakBytes() as memory:
        recording.velocity(recording.x0, sigma).square().mean().backward()
    for parameter, gradient in zip(trained, before, strict=True):
        parameter.grad = gradient
    forward = float(once.get_total_flops())
    whole, again = float(first.get_total_flops()), float(second.get_total_flops())
    if len(generator.tape.rules) > known:  # a first recording replays its steps as proof
        whole -= forward * len(recording.sigmas)
    adapter = sum(parameter.numel() for parameter in trained)
    parts = [part for part in generator.pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(p.numel() * p.element_size() for part in parts for name, p in part.named_parameters() if ".lora_" not in name)
    return UnitCosts(
        forward=forward,
        update=float(update.get_total_flops()),
        encode=whole - again,
        decode=again - forward * len(recording.sigmas),
        weights=weights,
        # policy and old policy, the gradient and two moments, in single precision
        adapters=5 * 4 * adapter,
        activations=memory.peak,
    )
