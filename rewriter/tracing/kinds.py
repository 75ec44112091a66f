"""The kind of an operation, whether it is a module, a function or a tensor method.

Passes ask for kinds, never for names.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)


class Kind(enum.StrEnum):
    """The kinds of operation that passes distinguish."""

    INPUT = "input"
    OUTPUT = "output"
    CONSTANT = "constant"
    CONV = "conv"
    LINEAR = "linear"
    MATMUL = "matmul"
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    EMBEDDING = "embedding"
    NORM = "norm"
    ACTIVATION = "activation"
    SOFTMAX = "softmax"
    DROPOUT = "dropout"
    FACTORY = "factory"
    AVG_POOL = "avg_pool"
    MAX_POOL = "max_pool"
    MEAN = "mean"
    INTERPOLATE = "interpolate"
    CONCAT = "concat"
    ADD = "add"
    MULTIPLY = "multiply"
    IDENTITY = "identity"
    VIEW = "view"
    SELECT = "select"
    OPAQUE = "opaque"
    OTHER = "other"


_MODULE_KINDS: tuple[tuple[tuple[type, ...], Kind], ...] = (
    ((_ConvNd, _ConvTransposeNd), Kind.CONV),
    ((nn.Linear, nn.Bilinear), Kind.LINEAR),
    ((nn.MultiheadAttention,), Kind.ATTENTION),
    ((nn.RNNBase, nn.RNNCellBase), Kind.RECURRENT),
    ((nn.Embedding, nn.EmbeddingBag), Kind.EMBEDDING),
    ((_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d), Kind.NORM),
    ((_DropoutNd,), Kind.DROPOUT),
    ((_AdaptiveAvgPoolNd, _AvgPoolNd), Kind.AVG_POOL),
    ((_AdaptiveMaxPoolNd, _MaxPoolNd, _LPPoolNd), Kind.MAX_POOL),
    ((nn.Softmax, nn.LogSoftmax, nn.Softmax2d), Kind.SOFTMAX),
    ((nn.Upsample,), Kind.INTERPOLATE),
    ((nn.Identity,), Kind.IDENTITY),
    ((nn.Flatten, nn.Unflatten), Kind.VIEW),
    ((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Fold, nn.Unfold), Kind.OTHER),
    ((_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd), Kind.OTHER),
)

_ACTIVATIONS = (
    nn.Threshold, nn.ReLU, nn.RReLU, nn.Hardtanh, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.ELU, nn.CELU, nn.SELU, nn.GLU, nn.GELU, nn.Hardshrink, nn.LeakyReLU, nn.LogSigmoid, nn.Softplus,
    nn.Softshrink, nn.PReLU, nn.Softsign, nn.Tanhshrink,
)  # fmt: skip

_FUNCTION_KINDS: dict[Kind, str] = {
    Kind.CONV: (
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution conv_tbc deform_conv2d"
    ),
    Kind.LINEAR: "linear bilinear addmm",
    Kind.MATMUL: (
        "matmul bmm mm mv dot vdot inner tensordot multi_dot linalg_multi_dot chain_matmul linalg_matmul vecdot "
        "linalg_vecdot rmatmul einsum baddbmm addbmm addmv scaled_dot_product_attention"
    ),
    Kind.ATTENTION: "multi_head_attention_forward",
    Kind.RECURRENT: "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    Kind.EMBEDDING: "embedding",
    Kind.NORM: "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm",
    Kind.ACTIVATION: (
        "relu relu6 leaky_relu prelu elu celu selu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh "
        "softplus softsign logsigmoid hardshrink softshrink tanhshrink glu rrelu threshold clamp clamp_min square"
    ),
    Kind.SOFTMAX: "softmax log_softmax",
    Kind.DROPOUT: "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout",
    Kind.FACTORY: (
        "new_empty new_zeros new_ones new_full new_tensor empty_like zeros_like ones_like full_like rand_like "
        "randn_like randint_like"
    ),
    Kind.AVG_POOL: "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    Kind.MAX_POOL: (
        "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "boolean_dispatch amax lp_pool1d lp_pool2d"
    ),
    Kind.MEAN: "mean",
    Kind.INTERPOLATE: "interpolate upsample grid_sample upsample_bilinear upsample_nearest",
    Kind.CONCAT: "cat concat concatenate hstack vstack",
    Kind.ADD: "add iadd radd",
    Kind.MULTIPLY: "mul multiply imul rmul div truediv true_divide itruediv divide",
    Kind.IDENTITY: "contiguous to float half bfloat16 double type type_as detach clone cuda cpu identity copy",
    Kind.VIEW: (
        "view reshape flatten unflatten permute transpose swapaxes swapdims movedim t T mT squeeze unsqueeze expand "
        "expand_as view_as reshape_as roll flip"
    ),
    Kind.SELECT: "getitem select narrow split chunk tensor_split unbind split_with_sizes index_select take_along_dim",
}

_BY_NAME = {name: kind for kind, names in _FUNCTION_KINDS.items() for name in names.split()}


def module_kind(module: nn.Module) -> Kind | None:
    """The kind of a leaf module; None for a module whose calls are recorded inside.

    A subclass that adds submodules (timm's ``BatchNormAct2d`` is a norm, a dropout and an activation in one) is not a
    leaf; a parametrization does not count as a submodule. A layer of a pass may declare its own kind in
    ``operation_kind``.
    """
    declared = getattr(module, "operation_kind", None)
    if isinstance(declared, Kind):
        return declared
    own = ("parametrizations", *(("out_proj",) if isinstance(module, nn.MultiheadAttention) else ()))
    if any(name not in own for name in module._modules):
        return None
    for classes, kind in _MODULE_KINDS:
        if isinstance(module, classes):
            return kind
    if isinstance(module, _ACTIVATIONS):
        return Kind.ACTIVATION
    if {"running_mean", "running_var"} <= module._buffers.keys():
        return Kind.NORM  # frozen batch norms are implemented as plain modules
    return None


def forward_owner(module: nn.Module) -> type:
    """The class that defines the ``forward`` that ``module`` gets from its class."""
    return next(cls for cls in type(module).__mro__ if "forward" in cls.__dict__)


def has_own_forward(module: nn.Module) -> bool:
    """Whether the computation of ``module`` is defined outside torch: in a subclass of a layer, or on the instance."""
    return "forward" in module.__dict__ or not forward_owner(module).__module__.startswith("torch.nn.")


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation, possibly with a built-in dropout and activation."""
    classes = next(classes for classes, kind in _MODULE_KINDS if kind is Kind.NORM)
    return module_kind(module) is Kind.NORM or isinstance(module, classes)


def function_kind(function: Callable[..., Any]) -> Kind:
    """The kind of a torch function or tensor method, in place or not."""
    return _BY_NAME.get(function_name(function), Kind.OTHER)


def function_name(function: Callable[..., Any]) -> str:
    """``add`` for ``torch.add``, ``Tensor.add_`` and ``Tensor.__iadd__``; ``T`` for the getter of ``x.T``."""
    if getattr(function, "__name__", "") == "__get__":
        return str(function.__self__.__name__)  # type: ignore[attr-defined]
    return getattr(function, "__name__", type(function).__name__).strip("_")


_OPERATORS = frozenset(dir(operator))
_IN_PLACE_OPERATORS = frozenset(
    n for n in _OPERATORS if n.startswith("__i") and n.replace("__i", "__", 1) in _OPERATORS
)


def is_in_place(function: Callable[..., Any]) -> bool:
    """Whether a function writes its result to its first argument: ``Tensor.add_``, ``x += y``."""
    name = getattr(function, "__name__", "")
    return name in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))


_DROPS_UNLESS_TOLD = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d"})


def is_active_dropout(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``training`` is on in this call of a dropout function, so that only its rate may make it inactive."""
    default = function_name(function) in _DROPS_UNLESS_TOLD
    given = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else default))
    return bool(given)
