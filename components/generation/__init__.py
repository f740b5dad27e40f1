"""Generating pictures with any diffusers flow pipeline, and recording what training on them needs."""

from .encoders import EncoderSavings
from .generator import FlowGenerator
from .sde_scheduler import (
    FlowMatchSDEScheduler,
    SDEStep,
    draw_window,
    join_steps,
    log_probability,
    sde_transition,
    stochastic_steps,
)
from .tape import PipelineTape, Recording, UnprovenPipelineError
from .velocities import PolicyVelocities, Savers

__all__ = [
    "EncoderSavings",
    "FlowGenerator",
    "FlowMatchSDEScheduler",
    "PipelineTape",
    "PolicyVelocities",
    "Recording",
    "SDEStep",
    "Savers",
    "UnprovenPipelineError",
    "draw_window",
    "join_steps",
    "log_probability",
    "sde_transition",
    "stochastic_steps",
]
