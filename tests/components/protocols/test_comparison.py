"""Two judges on the same rows, the printed table, and both on the command line."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path

import pytest
import yaml
from rationalrewards.components.protocols import (
    PROTOCOLS,
    Judge,
    Judgement,
    Ties,
    compare,
    evaluate,
    markdown,
    published_table,
    result_from_json,
    to_row,
)
from rationalrewards.components.protocols.__main__ import main
from rationalrewards.components.protocols.published import COLUMNS, MARKS, TABLE
from rationalrewards.components.records import Unscored
from rationalrewards.datamodules.readers import PreferenceSet
from support import ROOT

RIGHT, WRONG, TIE = (0.9, 0.1), (0.1, 0.9), (0.5, 0.5)
GENAI = "TIGER-Lab/GenAI-Bench@local (CC-BY-4.0), image_edition/test_v1 row 3 of x.parquet"


def judge(said: str, pairs_per_request: int = 1) -> list[Judgement]:
    """Judgements of pairs that people decided for A: r right, w wrong, u unscored."""
    kinds = {"r": RIGHT, "w": WRONG, "u": Unscored("late")}
    return [Judgement(f"p{i}", str(i // pairs_per_request), 1.0, "", kinds[one]) for i, one in enumerate(said)]


def test_a_comparison_by_hand() -> None:
    #            both right, 6 to the first, 1 to the second, both wrong; one of the six because the second was silent
    first, second = judge("r" * 4 + "r" * 6 + "w" + "w" * 9), judge("r" * 4 + "wwwwwu" + "r" + "w" * 9)
    found = compare("pairs/decided", first, second)
    assert (found.n, found.requests, found.first, found.second) == (20, 20, 10 / 20, 5 / 20)
    assert found.difference == pytest.approx(5 / 20)
    assert (found.first_better, found.second_better, found.discordant) == (6, 1, pytest.approx(7 / 20))
    # exact McNemar: 2 (C(7,0) + C(7,1)) / 2^7
    assert found.p == pytest.approx(2 * (1 + 7) / 128)
    assert found.interval[0] < 0.25 < found.interval[1]
    assert set(found.power) == {"1", "2", "3", "5"} and found.detectable is not None
    turned = compare("pairs/decided", second, first[::-1])  # in any order
    assert (turned.difference, turned.p) == (pytest.approx(-found.difference), found.p)
    assert "6 to the first, 1 to the second" in found.text()


def test_pairs_of_one_request_are_resampled_together() -> None:
    alternating = "rw" * 50
    alone = compare("pairs/decided", judge("r" * 100), judge(alternating))
    # the same hundred pairs in two requests of fifty: the difference of each request is the same, so that nothing is uncertain
    together = compare("pairs/decided", judge("r" * 100, 50), judge(alternating, 50))
    assert together.requests == 2 and together.interval == (pytest.approx(0.5), pytest.approx(0.5))
    assert alone.interval[1] - alone.interval[0] > 0.1


def test_a_judge_against_itself() -> None:
    found = compare("pairs/decided", judge("rrw"), judge("rrw"))
    assert (found.difference, found.p, found.discordant, found.detectable, found.power) == (0.0, 1.0, 0.0, None, {})


def test_power_is_that_of_the_discordance() -> None:
    """reward-models.md 2.4.6: at 30 % discordance, 5 points need about 940 pairs for 80 %."""
    rng = random.Random(0)
    said = ["r" if rng.random() < 0.65 else "w" for _ in range(940)]
    flipped = [i for i in range(940) if i % 10 < 3]
    other = ["w" if i in flipped and one == "r" else "r" if i in flipped else one for i, one in enumerate(said)]
    found = compare("pairs/decided", judge("".join(said)), judge("".join(other)))
    assert found.discordant == pytest.approx(0.3)
    # "about": a normal approximation, rounded to two digits there
    assert found.detectable == pytest.approx(0.05, abs=0.001)
    assert found.power["5"] == pytest.approx(0.8, abs=0.01)


def test_orders_and_modes_pair_up() -> None:
    """A judge of pairs has two judgements a pair; with one of single pictures, each pair is one unit with its mean."""
    pairwise = [Judgement("p0", "0", 1.0, "", RIGHT, WRONG), Judgement("p1", "1", 1.0, "", RIGHT, RIGHT)]
    found = compare("pairs/decided", judge("rw"), pairwise)
    assert (found.n, found.first, found.second, found.modes) == (2, 0.5, 0.75, ("pointwise", "pairwise"))
    assert (found.first_better, found.second_better) == (1, 1)


def test_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different rows \(3 and 2 pairs; 1 only in the first, e\.g\. 'p2'\)"):
        compare("pairs/decided", judge("rrr"), judge("rr"))
    other = [dataclasses.replace(one, label=0.0) for one in judge("rr")]
    with pytest.raises(ValueError, match="'p0' has the label 1.0 in the first and 0.0 in the second"):
        compare("pairs/decided", judge("rr"), other)
    moved = [dataclasses.replace(one, group="9") for one in judge("rr")]
    with pytest.raises(ValueError, match="'p0' has the group"):
        compare("pairs/decided", judge("rr"), moved)


def result() -> object:
    rows = [Judgement(f"p{i}", str(i), 1.0, GENAI, said, said) for i, said in enumerate((RIGHT, RIGHT, WRONG, Unscored("late")))]
    return evaluate("genai-tiger/test_v1/decided", rows, Judge("outputs/critic", "0123abcd", "f00d", (64, 70.5, 96)))


def test_result_rows_to_json_and_back() -> None:
    one = evaluate("genai-tiger/test_v1/4way", [Judgement("a", "1", 1.0, GENAI, RIGHT)], ties=Ties(0.1, 0.5, "dev"))
    for row in (one, result()):
        assert result_from_json(json.loads(json.dumps(dataclasses.asdict(row)))) == row  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="no result row"):
        result_from_json({"protocol": "x"})


def test_a_result_as_a_table() -> None:
    table = markdown([result()])  # type: ignore[list-item]
    head, rule, row = table.splitlines()[:3]
    assert head.count("|") == rule.count("|") == row.count("|")
    for cell in ("outputs/critic (0123abcd)", "50.0 [", "66.7", "64 to 96, mean 70", "f00d", "0 (exact equality)", "75.0"):
        assert cell in row
    assert "4 pairs, but image_edition/test_v1 of TIGER-Lab/GenAI-Bench has 919" in table


def test_the_printed_table() -> None:
    text = published_table([result(), evaluate("pairs/decided", judge("rw"))])  # type: ignore[list-item]
    lines = text.splitlines()
    assert lines[0].split(" | ")[1:] == [*list(COLUMNS)[:-1], "GenAI Edit |"]
    assert (
        "| **RationalRewards" not in text
        and "| RationalRewards (Qwen3-VL-8B) | 64.2 (b) | 70.3 (b) | 66.2 (e) | 69.8 (h) | 80.1 (h) |" in lines
    )
    (ours,) = [line for line in lines if line.startswith("| **outputs/critic, pairwise**")]
    cells = ours.strip("| ").split(" | ")
    assert cells[1:5] == ["-"] * 4 and cells[5].startswith("**50.0 [") and "of answered 66.7" in cells[5]
    assert "`genai-tiger/test_v1/decided`" in cells[5]
    assert "Not in the table: unknown, pointwise, `pairs/decided` 50.0" in text
    marks = {cell[1] for cells in TABLE.values() for cell in cells if cell is not None}
    assert marks == set(MARKS)
    assert all(len(cells) == len(COLUMNS) for cells in TABLE.values())


def test_the_page_holds_the_printed_table_and_names_every_protocol() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert published_table() in page
    told = page.partition("## Protocols")[2].partition("##")[0]
    for name in PROTOCOLS:
        start, _, last = name.rpartition("/")
        assert f"`{name}`" in told or (f"`{start}/K3`" in told and f"`{last}`" in told), name
    named = re.findall(r"configs/evaluate/\w+\.yaml", page)
    assert named and all((ROOT / path).is_file() for path in named)


def test_every_protocol_has_a_config() -> None:
    read = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "configs" / "evaluate").glob("*.yaml")]
    given = [recipe["model"]["init_args"].get("protocol", []) for recipe in read]
    names = [name for one in given for name in ([one] if isinstance(one, str) else one)]
    assert set(names) == set(PROTOCOLS)
    for recipe, one in zip(read, given, strict=True):
        for wanted in recipe["data"]["init_args"].get("sets", []):
            whole = PreferenceSet(wanted["id"], "folder", wanted.get("split"), wanted.get("subset"))
            rows = "/".join(filter(None, (whole.subset, whole.split or whole.format.splits[0])))
            for name in [one] if isinstance(one, str) else one:
                assert rows in PROTOCOLS[name].sets[wanted["id"]]


def write(path: Path, judgements: list[Judgement]) -> str:
    path.write_text("".join(json.dumps(to_row(one)) + "\n" for one in judgements))
    return str(path)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (write(tmp_path / f"{name}.jsonl", judge(said)) for name, said in (("a", "rrw"), ("b", "rww"), ("c", "rr")))
    assert main(["compare", a, b, "--protocol", "pairs/decided"]) == 0
    assert "difference: +33.3 points" in capsys.readouterr().out
    main(["compare", a, b, "--protocol", "pairs/decided", "--json"])
    assert json.loads(capsys.readouterr().out)["first_better"] == 1
    main(["score", a, "--protocol", "pairs/decided", "--json"])
    assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(2 / 3)
    main(["score", a, "--protocol", "pairs/decided"])
    assert capsys.readouterr().out.startswith("| protocol |")
    main(["list"])
    assert "mmrb2/both-orders" in capsys.readouterr().out
    (tmp_path / "evaluation.json").write_text(json.dumps({"test/x": 1.0, "results": [dataclasses.asdict(result())]}))  # type: ignore[call-overload]
    main(["published", str(tmp_path / "evaluation.json")])
    assert "outputs/critic, pairwise" in capsys.readouterr().out
    (tmp_path / "plain.json").write_text(json.dumps({"test/x": 1.0}))
    for arguments, message in (
        (["compare", a, c, "--protocol", "pairs/decided"], "different rows"),
        (["score", a, "--protocol", "genai"], "it may be genai-tiger"),
        (["score", a, "--protocol", "mmrb2/both-orders"], "read that set"),
        (["published", str(tmp_path / "plain.json")], "holds no result rows"),
        (["score", a, "--protocol", "pairs/decided", "--fit-ties-on", b], "people left tied"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2 and message in capsys.readouterr().err


def test_thresholds_from_files_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin = "TIGER-Lab/EditReward-Bench@local (Apache-2.0), 2pair/train row 2 of x.parquet"
    rows = [
        Judgement("a", "1", 0.5, origin, (0.55, 0.5)),
        Judgement("b", "2", 1.0, origin, (0.9, 0.5)),
    ]
    dev = [dataclasses.replace(one, id=f"dev-{one.id}") for one in rows]
    test, other = write(tmp_path / "test.jsonl", rows), write(tmp_path / "dev.jsonl", dev)
    values = []
    for fit in ([], ["--fit-ties-on", other]):
        main(["score", test, "--protocol", "erbench-tiger/K2/3way", *fit, "--json"])
        values.append(json.loads(capsys.readouterr().out))
    assert [row["value"] for row in values] == [0.5, 1.0]
    assert values[1]["tie_threshold"] == pytest.approx((0.05 + 0.4) / 2)
    main(["compare", test, test, "--protocol", "erbench-tiger/K2/3way", "--fit-ties-on", other, other, "--json"])
    assert json.loads(capsys.readouterr().out)["first"] == 1.0
    with pytest.raises(SystemExit):
        main(["score", test, "--protocol", "erbench-tiger/K2/3way", "--fit-ties-on", test])
    assert "e.g. 'a'; fit it on other rows" in capsys.readouterr().err
