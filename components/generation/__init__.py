"""Generating pictures with any diffusers flow pipeline, and recording what training on them needs."""

from .generator import FlowGenerator
from .tape import PipelineTape, Recording, UnprovenPipelineError

__all__ = ["FlowGenerator", "PipelineTape", "Recording", "UnprovenPipelineError"]
