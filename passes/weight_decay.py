"""Decide which gammas of norms decay, by their place in the dataflow.

Rule (Kim et al., *Guidelines for the Regularization of Gammas in Batch Normalization for Deep Residual Networks*,
arXiv:2205.07260, abstract): there are four categories of gamma with a guideline each. L2 regularization suits some and
harms others, by two analyses: variance control that makes a residual network behave like an identity map, and a better
effective learning rate.

Why, in short (our derivation): the variance of a branch scales with the square of its last gamma, so decaying it pulls
the block towards the identity; decaying a gamma on the shortcut does the opposite. A gamma inside the branch has its
scale removed by the next norm: decaying it costs no capacity and raises the effective learning rate.

Not from the paper: which category decays, the dataflow that defines the categories, the treatment of dense layers,
transformer blocks, gates and norms other than batch norm, and that the same groups serve decoupled decay (AdamW), a
penalty other than the L2 regularization that the paper studies.

Dataflow::

    … ─ norm ─┬─ weight ─ norm ─ act ─ weight ─ norm ─ add ─ …           main: stem, final, after a sum
       main   │           branch_other        branch_last │
              └─ weight ─ norm ───────────────────────────┘
                        shortcut
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.analysis.gamma_positions import Category, GammaPosition
from rewriter.authoring import Lint, Pass, Place, Reason, Recommendation, Refused

if TYPE_CHECKING:
    from rewriter.analysis.gammas import Gamma
    from rewriter.tracing.trace import Trace

_GUIDELINE = {Category.BRANCH_LAST: True, Category.BRANCH_OTHER: True, Category.SHORTCUT: False, Category.MAIN: False}

_POLICIES = {
    "guideline": _GUIDELINE,
    "exclude-all": dict.fromkeys(Category, False),
    "decay-all": dict.fromkeys(Category, True),
}

_REASONS = {
    GammaPosition.LAST: "a smaller one brings the block closer to the identity",
    GammaPosition.INSIDE: "a later norm of the branch takes its scale out: no capacity is lost, steps become larger",
    GammaPosition.GATE: "it scales no output of the branch",
    GammaPosition.DENSE: "norms of later layers take its scale out: no capacity is lost, steps become larger",
    GammaPosition.TRANSITION: "the norms of the next dense block take its scale out: no capacity is lost",
    GammaPosition.SHORTCUT: "a smaller one takes the block away from the identity",
    GammaPosition.MAIN: "it is in no branch alone: it scales the stream or what the head reads",
    GammaPosition.CONSTANT: "no input reaches it: it scales a table",
    GammaPosition.UNSEEN: "no recording reached it, so its place is not known: treated as on the main path",
}


@dataclass(frozen=True)
class WeightDecay(Pass):
    """Recommend which gammas decay. The model is not edited: :func:`rewriter.param_groups` applies the recommendation.

    Attributes:
        gamma: ``"guideline"``, ``"exclude-all"``, ``"decay-all"``, or ``{category: bool}`` with the categories
            ``branch_last``, ``branch_other``, ``shortcut`` and ``main``; categories left out follow the guideline.
    """

    name = "weight-decay"
    summary = "which gammas of norms decay, by their place; for rewriter.param_groups, the model is not edited"
    paper = (
        "Kim et al., Guidelines for the Regularization of Gammas in Batch Normalization for Deep Residual Networks, "
        "arXiv:2205.07260"
    )
    after = ("atrous-rates", "dropout", "group-count", "scale-equalizer", "stochastic-pooling")

    default = True
    codes = (Lint("RW0601", "the weight decay of a gain", "note"),)

    gamma: str | Mapping[str, bool] = "guideline"

    def __post_init__(self) -> None:
        if isinstance(self.gamma, Mapping):
            unknown = [str(key) for key in self.gamma if key not in list(Category)]
            if unknown:
                raise ValueError(f"gamma: unknown category {unknown[0]!r}; the categories: {', '.join(Category)}")
            for category, decays in self.gamma.items():
                if not isinstance(decays, bool):
                    raise ValueError(f"gamma: expected True or False for {category}, found {decays!r}")
            object.__setattr__(self, "gamma", {str(category): decays for category, decays in self.gamma.items()})
        elif not isinstance(self.gamma, str) or self.gamma not in _POLICIES:
            raise ValueError(
                f"gamma: expected one of {', '.join(map(repr, _POLICIES))} or a dict of {', '.join(Category)} to True "
                f"or False, found {self.gamma!r}"
            )

    def policy(self, gamma: Gamma) -> tuple[bool, str]:
        """Whether ``gamma`` decays, and why."""
        if isinstance(self.gamma, str):
            decays, given = _POLICIES[self.gamma][gamma.category], self.gamma != "guideline"
        else:
            decays = self.gamma.get(gamma.category, _GUIDELINE[gamma.category])
            given = gamma.category in self.gamma
        return decays, f"as asked for ({gamma.position})" if given else _REASONS[gamma.position]

    def candidates(self, trace: Trace) -> Iterator[Place[Gamma]]:
        from rewriter.analysis.gammas import find_gammas

        trainable = {name for name, parameter in trace.model.named_parameters() if parameter.requires_grad}
        for gamma in find_gammas(trace):
            trained = gamma.name in trainable
            yield Place(trace, gamma.path, f"{gamma.category}, {gamma.position}" if trained else gamma.position, gamma)

    def decide(self, place: Place[Gamma]) -> Recommendation:
        gamma = place.subject
        if gamma.name is None:
            raise Refused(Reason.NO_GAMMA, "the norm has no gamma that could be trained")
        if place.pattern == gamma.position:
            raise Refused(Reason.FROZEN, "its gamma is frozen")
        decays, reason = self.policy(gamma)
        return Recommendation("decay" if decays else "no decay", reason, "RW0601")
