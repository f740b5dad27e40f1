"""What README.md tells people to type, held against the configs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from rationalrewards.datamodules.readers import read_preferences, read_prompts
from support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## With an 8B critic")[2].partition("\n## ")[0]
COMMANDS = re.search(r"```bash\n(.*?)```", SECTION, re.DOTALL).group(1)  # type: ignore[union-attr]
RECIPES = {path: yaml.safe_load((ROOT / path).read_text("utf-8")) for path in re.findall(r"-c (configs/\S+\.yaml)", COMMANDS)}


def found(node: Any, key: str) -> list[Any]:
    """Every value of a key, however deep."""
    if isinstance(node, list):
        return [value for item in node for value in found(item, key)]
    if not isinstance(node, dict):
        return []
    here = [node[key]] if key in node else []
    return here + [value for item in node.values() for value in found(item, key)]


def by_default(text: str) -> str:
    """The text with every environment variable at its default."""
    return re.sub(r"\$\{oc\.env:\w+,([^}]*)\}", r"\1", text)


def recipe(stage: str) -> dict[str, Any]:
    """The one recipe of a stage that the commands name."""
    (content,) = [content for path, content in RECIPES.items() if path.startswith(f"configs/{stage}/")]
    return dict(content)


def served(port: int) -> tuple[str, str]:
    """``(what is served, under which name)`` at a port."""
    (line,) = re.findall(rf"^vllm serve .*--port {port}\b.*$", COMMANDS, re.MULTILINE)
    path = line.split()[2]
    name = re.search(r"--served-model-name (\S+)", line)
    return path, name.group(1) if name else path


def test_every_config_exists() -> None:
    named = re.findall(r"configs/\w+/\w+\.yaml", README)
    assert len(set(named)) > 5
    assert [path for path in named if not (ROOT / path).is_file()] == []
    fragments = re.findall(r"`(\w+\.yaml)`", SECTION)
    assert [name for name in fragments if not (ROOT / "configs" / "trainer" / name).is_file()] == []


def test_a_recipe_is_run_by_its_own_command() -> None:
    for command, path in re.findall(r"^rationalrewards (\w+) -c (\S+)", README, re.MULTILINE):
        first = (ROOT / path).read_text(encoding="utf-8").partition("\n")[0]
        assert first == f"# rationalrewards {command} -c {path}"


def test_the_critic_is_served_from_where_it_is_written_and_under_the_name_that_is_asked_for() -> None:
    (folder,) = found(recipe("distill")["trainer"]["callbacks"], "output_dir")
    path, name = served(8001)
    assert path == by_default(folder)
    assert found(recipe("evaluate")["model"], "path") == [folder]
    for stage in ("rl", "refine"):
        (base_url,) = found(recipe(stage)["model"], "base_url")
        (variable,) = re.findall(r"oc\.env:(\w+),", base_url)
        assert f"export {variable}=http://HOST:8001/v1" in COMMANDS
        assert name in found(recipe(stage)["model"], "model")


def test_the_teacher_is_served_under_the_name_that_is_asked_for() -> None:
    teacher = recipe("rationalize")["model"]["init_args"]["teacher"]["init_args"]
    assert served(8000)[1] == teacher["model"]
    (variable,) = re.findall(r"oc\.env:(\w+),", teacher["base_url"])
    assert f"export {variable}=http://HOST:8000/v1" in COMMANDS


def test_what_one_stage_writes_the_next_one_reads() -> None:
    (folder,) = {*found(recipe("rationalize")["trainer"]["callbacks"], "output_dir")}  # ledger and report lie together
    assert recipe("distill")["data"]["init_args"]["train"] == f"{folder}/rationales.jsonl"


def test_the_input_files_are_named_and_their_rows_can_be_read(tmp_path: Path) -> None:
    rows = dict(re.findall(r"^\| `(\w+)/.*\| `(\{.*\})` \|$", SECTION, re.MULTILINE))
    assert set(rows) == {"preferences", "prompts"}
    for folder, read in (("preferences", read_preferences), ("prompts", read_prompts)):
        path = tmp_path / f"{folder}.jsonl"
        path.write_text(rows[folder] + "\n", encoding="utf-8")
        (record,) = read(path)  # type: ignore[operator]
        assert record.sources == (str(tmp_path / "7.png"),)
    for content in RECIPES.values():
        values = [value for value in content["data"]["init_args"].values() if isinstance(value, str)]
        for folder, name in (file for value in values for file in re.findall(r"^\$\{oc\.env:RR_DATA,data\}/(\w+)/(.*)$", value)):
            assert re.search(rf"^\| .*`{folder}/.*\b{re.escape(name)}`", SECTION, re.MULTILINE), name
