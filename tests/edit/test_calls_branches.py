"""Methods that are kept or named by their class have other branches too: both are edited, or the place is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import calls
import pytest
from test_calls_reached import in_force

import rewriter

Load = Callable[[str], ModuleType]

WORK = """
        flag = True
        def _work(self, x):
            x = self.bn(self.conv(x)).relu()
            if self.flag:
                x = self.pool(x).flatten(1)
                x = self.drop(x)
                return self.fc(x)
            else:
                x = self.pool(x).flatten(1)
                x = self.drop(x)
                return self.fc(x) * 1
"""
KEPT = {
    "attribute": """
        def __init__(self):
            super().__init__()
            self.run = self._work
        def forward(self, x):
            return self.run(x)
""",
    "function": """
        def __init__(self):
            super().__init__()
            self.run = type(self)._work
        def forward(self, x):
            return self.run(self, x)
""",
    "alias": """
        forward = _work
""",
}


def text(rest: str) -> str:
    return f"    class Net(Layers):{WORK}{rest}"


@pytest.mark.parametrize("way", KEPT)
def test_both_branches_of_a_kept_method_are_edited(way: str, import_text: Load) -> None:
    model = import_text(calls.model_text("dropout", text(KEPT[way]))).Net()
    rewritten = rewriter.rewrite(model, "dropout", input_size=16)
    for flag in (True, False):
        rewritten.flag = flag
        assert in_force("dropout", rewritten)
    assert rewriter.report(rewritten).applied


def test_a_method_of_another_module_is_edited_in_both_branches(import_text: Load) -> None:
    rest = """
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Net()
        def forward(self, x):
            return self.inner._work(x)
    """
    model = import_text(calls.model_text("dropout", text(rest))).Outer()
    rewritten = rewriter.rewrite(model, "dropout", input_size=16)
    assert rewriter.report(rewritten).applied
    for flag in (True, False):
        rewritten.inner.flag = flag
        assert in_force("dropout", rewritten)


def test_a_branch_that_cannot_be_looked_at_is_refused(import_text: Load) -> None:
    rest = """
        def forward(self, x):
            return Net._work(self, x)
    """
    model = import_text(calls.model_text("dropout", text(rest))).Net()
    plan = rewriter.plan(model, "dropout", input_size=16)
    assert not plan.sites
    (skip,) = plan.skipped
    assert skip.reason == "one-branch" and "called by the name of its class" in skip.detail


def test_a_caller_that_does_not_run_is_edited_too(import_text: Load) -> None:
    model_text = """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            def _work(self, x):
                return A._work(self, x)
            def in_tests(self, x):
                return A._work(self, x)
            def forward(self, x):
                return self._work(x)
    """
    model = import_text(calls.model_text("dropout", model_text)).Net()
    rewritten = rewriter.rewrite(model, "dropout", input_size=16)
    assert rewriter.report(rewritten).applied
    assert in_force("dropout", rewritten)
    rewritten.forward = rewritten.in_tests
    assert in_force("dropout", rewritten)
