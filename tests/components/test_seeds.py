"""Seeds cost nothing to import."""

from __future__ import annotations

import subprocess
import sys

from rationalrewards.components.generation import noise
from rationalrewards.components.seeds import seed_for


def test_the_noise_of_generation_has_the_same_seeds() -> None:
    assert noise.seed_for is seed_for


def test_stages_and_readers_load_no_generator() -> None:
    program = """
import sys
from rationalrewards.components.seeds import seed_for
assert not {"torch", "numpy", "PIL"} & set(sys.modules), "seeds"
import rationalrewards.components.parrot.export, rationalrewards.datamodules
assert "diffusers" not in sys.modules, "stages and readers"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
