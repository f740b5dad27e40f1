"""Generating pictures with any diffusers flow pipeline, and recording what training on them needs."""

from .encoders import EncoderSavings
from .generator import FlowGenerator
from .tape import PipelineTape, Recording, UnprovenPipelineError

__all__ = ["EncoderSavings", "FlowGenerator", "PipelineTape", "Recording", "UnprovenPipelineError"]
