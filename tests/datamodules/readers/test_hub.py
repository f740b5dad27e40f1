"""Sets on a hub, at a commit: the hub's own client against a server that speaks its protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub import COMMIT, environment, of_folder, serving
from rationalrewards.components.pictures import picture_bytes
from set_reading import Read
from support import run_python


@pytest.mark.slow
def test_a_set_on_the_hub_reads_like_its_folder(public: dict[str, Read], tmp_path: Path) -> None:
    read = public["zai-org.ImageRewardDB-validation"]
    program = f"""
import json
from rationalrewards.components.pictures import picture_bytes
from rationalrewards.datamodules.readers import PreferenceSet
stream = PreferenceSet({read.case.id!r}, revision={COMMIT!r}, split="validation").read()
pairs = [(pair.id, pair.label, pair.origin, len(picture_bytes(pair.candidates[0]))) for pair in stream]
print(json.dumps(pairs))
"""
    with serving(of_folder(read.case.id, read.root)) as hub:
        done = run_python(["-c", program], timeout=240, env=environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    pairs = json.loads(done.stdout)
    assert [tuple(pair[:2]) for pair in pairs] == [(pair.id, pair.label) for pair in read.pairs]
    assert pairs[0][2].startswith(f"zai-org/ImageRewardDB@{COMMIT[:7]} (Apache-2.0), validation row ")
    assert [pair[3] for pair in pairs] == [len(picture_bytes(pair.candidates[0])) for pair in read.pairs]
    assert hub.downloaded() == {"metadata-validation.parquet", "validation_1.zip", "validation_2.zip"}  # and no other split's
