"""Test-time refinement: generate, critique, rewrite, generate again; ``docs/refine.md`` tells how to use it."""

from .images import FunctionImages, ImageSource, PipelineImages, Sampled, image_source
from .loop import refine
from .openai_images import OpenAIImages
from .options import ARMS, STOPS, UNWRITTEN, Arm, RefineOptions, Stop
from .search import check_arms, run_arm, run_arms
from .shelf import Shelf
from .studio import Shot, Studio
from .trace import Made, Trace, accepted, best

__all__ = [
    "ARMS",
    "STOPS",
    "UNWRITTEN",
    "Arm",
    "FunctionImages",
    "ImageSource",
    "Made",
    "OpenAIImages",
    "PipelineImages",
    "RefineOptions",
    "Sampled",
    "Shelf",
    "Shot",
    "Stop",
    "Studio",
    "Trace",
    "accepted",
    "best",
    "check_arms",
    "image_source",
    "refine",
    "run_arm",
    "run_arms",
]
