"""Positions of byte code in the text: all at once, and once for all instructions of a forced path."""

from __future__ import annotations

import textwrap
from unittest import mock

import rewriter
from rewriter.edit import forcing
from rewriter.edit.source import code_span, code_spans
from rewriter.passes import GaussianAttentionBias


def test_all_positions_are_those_of_each_instruction() -> None:
    for function in (textwrap.indent, rewriter.plan, code_span):
        code = function.__code__
        each = [code_span(code, instruction, 3) for instruction in range(0, len(code.co_code), 2)]
        assert len(set(each)) > 3
        assert code_spans(code, 3) == each


def test_a_function_is_scanned_once_for_a_forced_path() -> None:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=3, num_heads=2, num_classes=5)
    with mock.patch.object(forcing, "_named", wraps=forcing._named) as scans:
        plan = rewriter.plan(model, GaussianAttentionBias(plain=True), input_size=32)
    assert len(plan.sites) == 3
    assert all("also where" in site.action for site in plan.sites)  # so paths were forced
    recordings = 1 + len(plan.sites)  # of the other path: as it is, and with each site edited
    assert 0 < scans.call_count <= 4 * recordings  # as written and as forced; where a site is edited, of that text too
