"""Generating pictures with any diffusers flow pipeline, and recording what training on them needs."""

from .encoders import EncoderSavings
from .generator import FlowGenerator
from .sde_scheduler import FlowMatchSDEScheduler, SDEStep, draw_window, log_probability, sde_transition, stochastic_steps
from .tape import PipelineTape, Recording, UnprovenPipelineError

__all__ = [
    "EncoderSavings",
    "FlowGenerator",
    "FlowMatchSDEScheduler",
    "PipelineTape",
    "Recording",
    "SDEStep",
    "UnprovenPipelineError",
    "draw_window",
    "log_probability",
    "sde_transition",
    "stochastic_steps",
]
