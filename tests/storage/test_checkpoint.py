"""Weights from files: the layouts of training scripts, what is refused and why, and what shapes tell."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import rewriter
from rewriter.model.checkpoint_file import read_checkpoint
from rewriter.storage.checkpoint import check_weights, classes_and_channels

State = dict[str, torch.Tensor]


def model(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", **options)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


class TestLayouts:
    @pytest.mark.parametrize(
        "made",
        [
            dict,
            lambda state: {"epoch": 1, "optimizer": {"state": {}}, "state_dict": state},
            lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
            lambda state: {"model_state_dict": state, "loss": 0.5},
            lambda state: {"state_dict": zeros(state), "state_dict_ema": state},
            lambda state: {"model": zeros(state), "model_ema": state},
            prefixed("module."),
            prefixed("_orig_mod."),
            prefixed("module._orig_mod."),
            prefixed("_orig_mod.module."),
            lambda state: {"state_dict": prefixed("module.")(state)},
        ],
    )
    def test_of_torch(self, made: Callable[[State], Any], tmp_path: Path) -> None:
        state = model().state_dict()
        torch.save(made(state), tmp_path / "weights.pt")
        found = read_checkpoint(tmp_path / "weights.pt")
        assert list(found) == list(state) and all(torch.equal(found[key], state[key]) for key in state)
        theirs = timm.models.load_state_dict(str(tmp_path / "weights.pt"))
        if set(theirs) == set(state):  # it does not know model_state_dict
            assert all(torch.equal(found[key], theirs[key]) for key in state)

    @pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
    def test_safetensors(self, name: str, tmp_path: Path) -> None:
        state = model().state_dict()
        safetensors.torch.save_file(prefixed("module.")(state), tmp_path / name)
        found = read_checkpoint(tmp_path / name)
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)

    def test_compiled_and_parallel_models(self, tmp_path: Path) -> None:
        original = model()
        torch.save(nn.DataParallel(torch.compile(original)).state_dict(), tmp_path / "weights.pt")
        check_weights(original, read_checkpoint(tmp_path / "weights.pt"), "they")

    def test_a_prefix_of_some_keys_stays(self, tmp_path: Path) -> None:
        torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "weights.pt")
        assert set(read_checkpoint(tmp_path / "weights.pt")) == {"module.a", "b"}


class Calls:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "found an empty file. Copy or download it again"),
            (b"i", "found text, which begins with 'i'. Give the file"),
            (b"<!DOCTYPE html>\n<html>" + 200 * "é€".encode(), "text, which begins with '<!DOCTYPE html> <html>"),
            (b'version {"a": 1}', "found text, which begins with 'version {"),
            (np.random.default_rng(0).bytes(2000), "found a file that is damaged or of another kind"),
            (pickle.dumps({"a": np.zeros(3)}), "found a file that is damaged or of another kind"),
        ],
    )
    def test_what_is_no_checkpoint(self, content: bytes, words: str, tmp_path: Path) -> None:
        for name in ("weights.pt", "weights.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(rewriter.StorageError) as caught:
                read_checkpoint(tmp_path / name)
            told = str(caught.value)
            assert told.startswith(f"{tmp_path / name}: expected a state dict, in safetensors or of torch.save(")
            assert words in told and "weights_only" not in told

    @pytest.mark.parametrize("form", ["zip", "pickle", "safetensors"])
    @pytest.mark.parametrize("length", [100, -30])
    def test_truncated(self, form: str, length: int, tmp_path: Path) -> None:
        path = tmp_path / "weights"
        if form == "safetensors":
            safetensors.torch.save_file(model().state_dict(), path)
        else:
            torch.save(model().state_dict(), path, _use_new_zipfile_serialization=form == "zip")
        path.write_bytes(path.read_bytes()[:length])
        words = "the beginning of one only" if form == "zip" else "damaged"
        with pytest.raises(rewriter.StorageError, match=rf"{words}.*Copy or download it again"):
            read_checkpoint(path)

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ([1, 2], "found a list"),
            ({}, "found a dict with nothing in it"),
            ({"epoch": 1, "optimizer": {}}, r"found a dict with epoch \(int\), optimizer \(dict\)"),
            ({"state_dict": {"a": torch.zeros(1), "b": 3}}, r"found a dict with b \(int\)"),
            ({3: torch.zeros(1)}, r"found a dict with 3 \(Tensor\)"),
        ],
    )
    def test_other_things_of_torch(self, value: Any, words: str, tmp_path: Path) -> None:
        torch.save(value, tmp_path / "weights.pt")
        with pytest.raises(rewriter.StorageError, match=words + r".*Write it with torch\.save\(model\.state_dict\(\)"):
            read_checkpoint(tmp_path / "weights.pt")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_nothing_is_executed(self, zipped: bool, tmp_path: Path) -> None:
        path = tmp_path / "weights.pt"
        torch.save({"state_dict": model().state_dict(), "x": Calls(tmp_path / "made")}, path,
                   _use_new_zipfile_serialization=zipped)  # fmt: skip
        with pytest.raises(rewriter.StorageError, match=r"a pickle that calls \w+\.mkdir: it could run any code"):
            read_checkpoint(path)
        assert not (tmp_path / "made").exists()
        torch.load(path, weights_only=False)
        assert (tmp_path / "made").is_dir()  # what it would have done
        torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(rewriter.StorageError, match=r"calls torch\.nn\.modules\.linear\.Linear.*Write it with"):
            read_checkpoint(path)

    def test_scripted(self, tmp_path: Path) -> None:
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "weights.pt"))
        with pytest.raises(rewriter.StorageError, match="found a TorchScript archive"):
            read_checkpoint(tmp_path / "weights.pt")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(rewriter.StorageError, match="no such file"):
            read_checkpoint(tmp_path / "weights.pt")
        with pytest.raises(rewriter.StorageError, match="is a directory"):
            read_checkpoint(tmp_path)


@pytest.mark.thorough
def test_weights_of_a_rewritten_model_are_told_from_the_originals() -> None:
    original = timm.create_model("test_efficientnet_gn", num_classes=4)
    rewritten = rewriter.rewrite(original, "group-count", input_size=64)
    with pytest.raises(
        rewriter.StorageError, match=r"rewriter_plan says that they are a rewritten model's.*plan_file="
    ):
        check_weights(original, rewritten.state_dict(), "the weights in FILE")


class TestShapes:
    @pytest.mark.parametrize(
        ("name", "made", "told"),
        [
            ("test_resnet", {}, (None, None)),
            ("test_resnet", {"in_chans": 1}, (None, 1)),
            ("test_resnet", {"num_classes": 7}, (7, None)),
            ("test_vit", {"num_classes": 7, "in_chans": 4}, (7, 4)),
            ("test_efficientnet", {"num_classes": 7, "in_chans": 1}, (7, 1)),
            ("test_vit", {"num_classes": 7, "img_size": 64}, (None, None)),  # the size of images too
            ("test_resnet", {"num_classes": 0}, (None, None)),  # no classifier
            ("test_resnet", {"channels": (32, 64, 96, 128)}, (None, None)),  # other widths
        ],
    )
    def test_classes_and_channels(self, name: str, made: dict[str, Any], told: tuple[Any, Any]) -> None:
        state = timm.create_model(name, **made).state_dict()
        assert classes_and_channels(timm.create_model(name), state) == told
        if "channels" not in made:
            check_weights(timm.create_model(name, **made), state, "they")
