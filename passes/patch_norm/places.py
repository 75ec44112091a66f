"""Which patch embeddings get a norm, which do not and why, and the edits."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rewriter.analysis.absolute_positions import AbsolutePosition, find_absolute_positions
from rewriter.analysis.layout import channel_dimension
from rewriter.analysis.patches import PatchEmbedding, patch_embedding, weight_before
from rewriter.authoring import Change, Place, Reason, Refused, Trace, name_of
from rewriter.passes.patch_norm.layers import RawPatchNorm, TokenNorm
from rewriter.tracing.facts import facts

_NAME, _CODE = "patch_norm", "RW0901"
_NO_PATCHES = "patch-norm/no-patches"
_FOLLOWS = "the position is added to tokens that follow the contrast of the image"


def find_places(trace: Trace) -> Iterator[Place[AbsolutePosition]]:
    """A place for each sum with positions whose tokens come from one weight, at that weight."""
    for position in find_absolute_positions(trace.flow, trace.model):
        weight = weight_before(position, trace.flow)
        if weight is not None:
            yield Place(trace, weight, "patch embedding", position)


def normalise(place: Place[AbsolutePosition], where: str) -> Change:
    """Insert a norm before the position is added.

    Raises:
        Refused: the scale of the image is taken out already, the tokens are not made of patches, or the place cannot be
            edited.
    """
    position = place.subject
    if position.norm is not None:
        raise Refused(Reason.ALREADY_DONE, f"{name_of(position.norm)} normalises before the position is added")
    embedding = patch_embedding(place.flow, place.model, position)
    if embedding is None:
        raise Refused(_NO_PATCHES, f"{name_of(position.sum)} adds positions to what is made of no patches side by side")
    place.interference.refuse_other_readers([embedding.tokens[0]], [position.sum], "be normalised too")
    if where == "patches":
        _before_projection(place, embedding)
        action = f"normalise each patch of {embedding.width} values before {name_of(embedding.projection)}"
        reason = f"{_FOLLOWS}; images of any contrast and brightness then give the same tokens"
        return Change(action, reason, code=_CODE)
    _behind_projection(place, embedding)
    return Change(f"normalise each token that {name_of(embedding.projection)} makes", _reason(embedding), code=_CODE)


def _reason(embedding: PatchEmbedding) -> str:
    projection = name_of(embedding.projection)
    if not embedding.bias:
        return f"{_FOLLOWS}; {projection} has no bias, so images of any contrast then give the same tokens"
    return f"{_FOLLOWS}; the bias of {projection} still counts more the lower the contrast (not with where='patches')"


def _before_projection(place: Place[AbsolutePosition], embedding: PatchEmbedding) -> None:
    if embedding.kernel:
        channels, kernel = place.trace.shape(embedding.image)[1], list(embedding.kernel)
        place.edit.insert_before(
            embedding.projection, embedding.image, RawPatchNorm, name=_NAME, channels=channels, kernel=kernel
        )
    else:
        place.edit.insert_before(embedding.projection, embedding.image, TokenNorm, name=_NAME, width=embedding.width)


def _tokens(place: Place[AbsolutePosition], embedding: PatchEmbedding) -> list[tuple[fx.Node, int]]:
    """The layouts of the tokens with their channel dimension, those first behind which the norm is to stand."""
    owner = facts(embedding.projection)["owner"].path
    found = []
    for number, node in enumerate(embedding.tokens):
        channels, last = channel_dimension(place.flow, node, place.model), len(place.trace.shape(node)) - 1
        if channels is not None and channels in (1, last):
            inside = facts(node)["owner"].path == owner
            found.append((channels != last, not inside, -number if inside else number, node, channels))
    return [(node, channels) for *_, node, channels in sorted(found, key=lambda entry: entry[:3])]


def _behind_projection(place: Place[AbsolutePosition], embedding: PatchEmbedding) -> None:
    """Insert a norm of tokens, at the end of the module that projects if that can be edited."""
    refused: Refused | None = None
    for node, channels in _tokens(place, embedding):
        shape = place.trace.shape(node)
        first = channels != len(shape) - 1
        try:
            place.edit.insert_after(node, TokenNorm, name=_NAME, width=shape[channels], channels_first=first)
            return
        except Refused as error:
            refused = refused or error
    raise refused or Refused(_NO_PATCHES, f"{name_of(embedding.projection)} makes no tokens before positions are added")
