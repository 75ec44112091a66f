"""What ``rewriter.check`` finds: codes, lines, severities, what is active and what a rewrite mends."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.authoring import Contract, Kind, Lint, Outcome, Pass, Place, Recommendation, Trace
from rewriter.guideline.registry import installed_passes


def preact(place: str | tuple[str, ...], rate: float = 0.2) -> nn.Module:
    return zoo.create("zoo:dropout_preact_resnet", dropout_at=place, drop_rate=rate, depths=(1, 1, 1)).model


def codes(model: nn.Module, **options: Any) -> list[str]:
    return [finding.code for finding in rewriter.check(model, input_size=32, **options)]


@pytest.mark.parametrize(
    ("place", "code", "count"),
    [
        ("P0", "RW0203", 3), ("P1", "RW0201", 3), ("P4", "RW0201", 3), ("P6", "", 0), (("P5", "P6"), "RW0205", 3),
        ("H4", "", 0), ("H5", "RW0202", 1), ("H6", "RW0204", 1), (("H3", "H4"), "RW0205", 1),
    ],
)  # fmt: skip
def test_each_place_of_a_dropout_has_its_code(place: str | tuple[str, ...], code: str, count: int) -> None:
    assert codes(preact(place), select="RW02") == [code] * count


def test_a_finding_names_the_line_of_the_code_that_runs() -> None:
    model: Any = preact("P4")
    finding = rewriter.check(model, select="RW02", input_size=32)[0]
    forward = type(model.blocks[0]).forward
    lines, first = inspect.getsourcelines(forward)
    assert finding.file == inspect.getsourcefile(forward)
    assert finding.line == first + next(n for n, line in enumerate(lines) if "self.p4(" in line)
    assert finding.path == "blocks.0" and finding.severity == "warning" and finding.active and finding.fixable


def test_what_a_rewrite_mends_is_found_no_more() -> None:
    model = preact(("P1", "P4", "H5"))
    assert all(finding.fixable for finding in rewriter.check(model, select="RW02", input_size=32))
    assert codes(rewriter.rewrite(model, "dropout", input_size=32), select="RW02") == []


def test_a_default_vision_transformer_has_nothing_but_notes_and_inactive_places() -> None:
    findings = rewriter.check(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2), input_size=64)
    assert findings and not findings.faults
    assert {finding.code for finding in findings if not finding.active} == {"RW0201"}


def test_codes_are_selected_by_their_beginnings() -> None:
    model = preact(("P1", "H5"))
    assert set(codes(model, select=["RW0202", "rw0201"])) == {"RW0201", "RW0202"}
    assert set(codes(model, select="RW02", ignore="RW0201")) == {"RW0202"}
    assert set(codes(model, select="RW0201", ignore="RW02")) == {"RW0201"}
    with pytest.raises(rewriter.SelectorError, match=r"'RW99' is no code, nor the beginning of one; there are RW01"):
        rewriter.check(model, select="RW99", input_size=32)


def test_every_code_belongs_to_one_guideline() -> None:
    own = {name: cls.codes for name, cls in installed_passes().items() if cls.__module__.startswith("rewriter.")}
    beginnings = {name: {lint.code[:4] for lint in lints} for name, lints in own.items()}
    assert all(len(found) == 1 for found in beginnings.values())
    everything = [lint.code for lints in own.values() for lint in lints]
    assert len(set(everything)) == len(everything) and len(set().union(*beginnings.values())) == len(own)


def test_findings_are_data() -> None:
    findings = rewriter.check(preact("H5"), select="RW02", input_size=32)
    (as_json,) = json.loads(findings.to_json())
    assert list(as_json) == ["code", "path", "file", "line", "message", "severity", "active", "fixable"]
    run = json.loads(findings.to_sarif())["runs"][0]
    (result,) = run["results"]
    assert result["ruleId"] == "RW0202" == run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == Path(as_json["file"]).as_uri()
    assert place["region"]["startLine"] == as_json["line"]
    command = findings.to_github()
    assert command.startswith(f"::warning file={as_json['file']},line={as_json['line']},title=RW0202 ")


def test_what_ends_a_workflow_command_is_escaped() -> None:
    finding = rewriter.Finding("RW0201", "a,b:c", None, None, "50 %\nof it", "error")
    assert rewriter.Findings([finding]).to_github() == "::error title=RW0201 a%2Cb%3Ac::50 %25%0Aof it"


@dataclass(frozen=True)
class Batches(Pass):
    """Looks at the training alone."""

    name = "batches"
    summary = paper = "a test"
    contract = Contract()
    codes = (Lint("XX0101", "a batch of one", "error"),)

    def candidates(self, trace: Trace) -> Iterable[Place[Any]]:
        return ()

    def decide(self, place: Place[Any]) -> Outcome | None:
        return None

    def check_training(self, trace: Trace, training: Mapping[str, Any]) -> Iterator[Recommendation]:
        if training.get("batch_size") == 1 and list(trace.operations(Kind.NORM)):
            yield Recommendation("take more than one image", "a batch norm has no variance of one", "XX0101")


class Options:
    def __init__(self) -> None:
        self.batch_size = 1


@pytest.mark.parametrize("form", ["namespace", "mapping", "object", "yaml", "json"])
def test_a_training_configuration_is_read_from_what_scripts_hold(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("batch-size: 1\nlr: 0.1\n")
    (tmp_path / "a.json").write_text('{"batch_size": 1}')
    training = {
        "namespace": argparse.Namespace(batch_size=1), "mapping": {"batch_size": 1}, "object": Options(),
        "yaml": tmp_path / "a.yaml", "json": str(tmp_path / "a.json"),
    }[form]  # fmt: skip
    (finding,) = rewriter.check(timm.create_model("test_resnet"), Batches(), training=training)
    assert (finding.code, finding.severity, finding.file, finding.line) == ("XX0101", "error", None, None)
    assert finding.message == "a batch of one: take more than one image: a batch norm has no variance of one"


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    for training, text in ((3, "found int"), (tmp_path / "b.yaml", "cannot be read"), (tmp_path / "a.yaml", "neither")):
        with pytest.raises(rewriter.InputError, match=text):
            rewriter.check(timm.create_model("test_resnet"), Batches(), training=training)


def test_a_code_that_a_pass_does_not_list_is_its_error() -> None:
    @dataclass(frozen=True)
    class Careless(Batches):
        def candidates(self, trace: Trace) -> Iterable[Place[Any]]:
            return [Place(trace, "", "model")]

        def decide(self, place: Place[Any]) -> Outcome:
            return Recommendation("rest", "a test", "XX0102")

    with pytest.raises(
        rewriter.PassError, match=r"'batches' finds a fault 'XX0102' that is not among its codes \(XX0101\)"
    ):
        rewriter.check(timm.create_model("test_resnet"), Careless())


def test_checking_leaves_the_model_as_it_was() -> None:
    model = preact("P1")
    before, mode, state = str(model), model.training, torch.get_rng_state()
    rewriter.check(model, input_size=32)
    assert str(model) == before and model.training is mode and torch.equal(torch.get_rng_state(), state)


def test_the_page_lists_every_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    for cls in installed_passes().values():
        for lint in cls.codes if cls.__module__.startswith("rewriter.") else ():
            assert f"| {lint.code} | {lint.severity} | {lint.title} |" in page


def test_what_torch_runs_is_at_the_line_of_the_code_that_calls_it() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layers(x)
            return result

    found = rewriter.check(Sequence(), select="RW13", input_size=65)
    assert len(found) == 2 and {finding.file for finding in found} == {__file__}
    assert len({finding.line for finding in found}) == 1
