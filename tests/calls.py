"""Small models of which the edited method is called in some unusual way, for four passes."""

from __future__ import annotations

import textwrap

_IMPORTS = """
import collections, functools, types
from dataclasses import dataclass
import torch
import torch.nn.functional as F
from torch import nn
"""

LAYERS = {
    "dropout": """
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.pool, self.drop, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.Linear(8, 4)
        """,
    "stochastic-pooling": """
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        """,
    "group-count": """
        self.conv, self.fc = nn.Conv2d(3, 64, 3), nn.Linear(64, 4)
        """,
    "scale-equalizer": """
        self.conv, self.other, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)
        """,
}
WORK = {
    "dropout": """
        x = self.pool(self.bn(self.conv(x)).relu()).flatten(1)
        x = self.drop(x)
        return self.fc(x)
        """,
    "stochastic-pooling": """
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))
        """,
    "group-count": """
        return self.fc(F.relu(F.group_norm(self.conv(x), 32)).mean((2, 3)))
        """,
    "scale-equalizer": """
        x = self.conv(x)
        y = F.interpolate(self.other(F.avg_pool2d(x, 2)), scale_factor=2, mode="bilinear")
        return self.fc(torch.cat([x, y], 1))
        """,
}

HELD = {
    "attribute": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.run = self._work
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.run(x)
        """,
    "dict in a list": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.table = [{"work": self._work}, collections.OrderedDict(other=None)]
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.table[0]["work"](x)
        """,
    "tuple in a named tuple": """
        Ways = collections.namedtuple("Ways", "first rest")
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.ways = Ways(None, (self._work,))
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.ways.rest[0](x)
        """,
    "partial": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.run = functools.partial(self._work, scale=1)
            def _work(self, x, scale):
                WORK
            def forward(self, x):
                return self.run(x)
        """,
    "partial over a function": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.run = functools.partial(Net._work, self)
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.run(x)
        """,
    "object": """
        @dataclass
        class Choice:
            run: object
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.choice = Choice(self._work)
                self.spaces = types.SimpleNamespace(run=self._work)
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.choice.run(x)
        """,
    "namespace": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.spaces = types.SimpleNamespace(run=self._work)
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.spaces.run(x)
        """,
    "another module": """
        class Inner(Layers):
            def _work(self, x):
                WORK
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Inner()
                self.run = self.inner._work
            def forward(self, x):
                return self.run(x)
        """,
    "another module of the class": """
        class Net(Layers):
            def __init__(self, inner=True):
                super().__init__()
                self.inner = Net(False) if inner else None
                self.run = self.inner._work if inner else None
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.run(x)
        """,
    "child": """
        class Inner(nn.Module):
            def __init__(self, callback):
                super().__init__()
                self.callback = callback
            def forward(self, x):
                return self.callback(x)
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.inner = Inner(self._work)
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.inner(x)
        """,
    "closure": """
        class Net(Layers):
            def _work(self, x):
                WORK
            def forward(self, x):
                work = self._work
                return (lambda y: work(y))(x)
        """,
    "set and queue": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.some, self.queue = {self._work}, collections.deque([self._work])
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.queue[0](x) if self.training else next(iter(self.some))(x)
        """,
    "loop over a list": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.stages = [self._before, self._work]
            def _before(self, x):
                return x * 1
            def _work(self, x):
                WORK
            def forward(self, x):
                for stage in self.stages:
                    x = stage(x)
                return x
        """,
    "inherited": """
        class Base(Layers):
            def __init__(self):
                super().__init__()
                self.run = self._work
            def _work(self, x):
                WORK
        class Net(Base):
            def forward(self, x):
                return self.run(x)
        """,
    "forward": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.forward = self._work
            def _work(self, x):
                WORK
        """,
    "forward made by hand": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.forward = types.MethodType(Net._work, self)
            def _work(self, x):
                WORK
        """,
    "forward as accelerate keeps it": """
        def around(module, *args, **kwargs):
            return module._old_forward(*args, **kwargs)
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self._old_forward = self.forward
                self.forward = functools.update_wrapper(functools.partial(around, self), self._old_forward)
            def forward(self, x):
                WORK
        """,
    "plain function": """
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.run = type(self)._work
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.run(self, x)
        """,
}

NAMED = {
    "parent's forward": """
        class A(Layers):
            def forward(self, x):
                WORK
        class Net(A):
            def forward(self, x):
                return A.forward(self, x)
        """,
    "several levels": """
        class A(Layers):
            def forward(self, x):
                WORK
        class B(A):
            def forward(self, x):
                return A.forward(self, x)
        class C(B):
            pass
        class Net(C):
            def forward(self, x):
                return C.forward(self, x=x)
        """,
    "parent's method": """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            def _work(self, x):
                return A._work(self, *(x,)) * 1
            def forward(self, x):
                return self._work(x)
        """,
    "private method": """
        class Net(Layers):
            def __work(self, x):
                WORK
            def forward(self, x):
                return Net.__work(self, x)
        """,
    "not overridden": """
        class Net(Layers):
            def _work(self, x):
                WORK
            def forward(self, x):
                return (
                    Net._work(
                        self,  # the module
                        (x),
                    )
                )
        """,
    "dict of the class": """
        class A(Layers):
            def forward(self, x):
                WORK
        class Net(A):
            def forward(self, x):
                return A.__dict__["forward"](self, x)
        """,
    "getattr of the class": """
        class A(Layers):
            def forward(self, x):
                WORK
        class Net(A):
            def forward(self, x):
                return getattr(A, "forward")(self, x)
        """,
    "name of the module": """
        class A(Layers):
            def forward(self, x):
                WORK
        work_of_a = A.forward
        class Net(A):
            def forward(self, x):
                return work_of_a(self, x)
        """,
    "local name": """
        class A(Layers):
            def forward(self, x):
                WORK
        class Net(A):
            def forward(self, x):
                parent = A
                return parent.forward(self, x)
        """,
    "closure": """
        def made():
            class A(Layers):
                def forward(self, x):
                    WORK
            class Net(A):
                def forward(self, x):
                    return A.forward(self, x)
            Net.__qualname__ = "Net"
            return Net
        Net = made()
        """,
    "class cell": """
        class Net(Layers):
            def _work(self, x):
                WORK
            def forward(self, x):
                return __class__._work(self, x)
        """,
    "type": """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            def forward(self, x):
                return type(self)._work(self, x)
        """,
    "super of a name": """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            def forward(self, x):
                return super(Net, self)._work(x)
        """,
    "super, not overridden": """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            def forward(self, x):
                return super()._work(x)
        """,
    "in both branches": """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            flag = False
            def _work(self, x):
                if self.flag:
                    return A._work(self, x) * 1
                return A._work(self, x)
            def forward(self, x):
                return self._work(x)
        """,
    "mixin": """
        class Mixin:
            def forward(self, x):
                WORK
        class Net(Mixin, Layers):
            def forward(self, x):
                return Mixin.forward(self, x)
        """,
    "child of the same class": """
        class Net(Layers):
            def __init__(self, inner=True):
                super().__init__()
                self.inner = Net(False) if inner else None
            def _work(self, x):
                WORK
            def forward(self, x):
                return Net._work(self.inner, x)
        """,
    "child's forward": """
        class Inner(Layers):
            def forward(self, x):
                WORK
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Inner()
            def forward(self, x):
                return Inner.forward(self.inner, x)
        """,
}

ALIASES = {
    "alias": """
        class Net(Layers):
            def _work(self, x):
                WORK
            run = _work
            def forward(self, x):
                return self.run(x)
        """,
    "alias called forward": """
        class Net(Layers):
            def _work(self, x):
                WORK
            forward = _work
        """,
    "alias in a subclass": """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            run = A._work
            def forward(self, x):
                return self.run(x)
        """,
    "partialmethod": """
        class Net(Layers):
            def _work(self, x, scale):
                WORK
            run = functools.partialmethod(_work, scale=1)
            def forward(self, x):
                return self.run(x)
        """,
    "static method": """
        class Net(Layers):
            def _work(self, x):
                WORK
            run = staticmethod(_work)
            def forward(self, x):
                return self.run(self, x)
        """,
    "table of the class": """
        class Net(Layers):
            def _work(self, x):
                WORK
            table = {"work": (_work, 1)}
            def forward(self, x):
                return self.table["work"][0](self, x)
        """,
    "property": """
        class Net(Layers):
            def _work(self, x):
                WORK
            @property
            def run(self):
                return self._work
            def forward(self, x):
                return self.run(x)
        """,
    "call": """
        class Inner(Layers):
            def __call__(self, x):
                WORK
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Inner()
            def forward(self, x):
                return self.inner(x)
        """,
}


DECORATORS = {
    "default argument": """
        def decorated(function):
            def wrapper(self, *args, function=function):
                return function(self, *args)
            return wrapper
        """,
    "keyword default, and wraps": """
        def decorated(function):
            @functools.wraps(function)
            def wrapper(self, *args, **kwargs):
                return wrapper.__kwdefaults__["function"](self, *args)
            wrapper.__kwdefaults__ = {"function": function}
            return wrapper
        """,
    "callable object": """
        class decorated:
            def __init__(self, function):
                self.function, self.calls = function, []
            def __get__(self, module, owner=None):
                return types.MethodType(self, module) if module is not None else self
            def __call__(self, module, x):
                self.calls.append(module)
                return self.function(module, x)
        """,
    "object with slots": """
        class Holder:
            __slots__ = ("function", "unset")
        class decorated:
            __slots__ = ("holder", "__dict__")
            def __init__(self, function):
                self.holder = Holder()
                self.holder.function = function
            def __get__(self, module, owner=None):
                return functools.partial(self.holder.function, module)
        """,
    "object in a wrapper": """
        class Caller:
            def __init__(self, function):
                self.function = function
            def __call__(self, *args):
                return self.function(*args)
        def decorated(function):
            caller = Caller(function)
            @functools.wraps(function)
            def wrapper(*args):
                return caller(*args)
            return wrapper
        """,
    "bound method of an object": """
        class Caller:
            def __init__(self, function):
                self.function = function
            def run(self, *args):
                return self.function(*args)
        def decorated(function):
            run = Caller(function).run
            return lambda *args: run(*args)
        """,
    "partial": """
        def call(function, *args):
            return function(*args)
        def decorated(function):
            run = functools.partial(call, function)
            def wrapper(*args):
                return run(*args)
            return wrapper
        """,
    "chain of wraps": """
        def decorated(function):
            for _ in range(3):
                def wrapper(*args, inner=function):
                    return inner(*args)
                function = functools.update_wrapper(wrapper, function)
            return function
        """,
    "attribute of the wrapper": """
        def decorated(function):
            def wrapper(*args):
                return wrapper.function(*args)
            wrapper.function = function
            return wrapper
        """,
    "wrapped": """
        def decorated(function):
            @functools.wraps(function)
            def wrapper(*args):
                return wrapper.__wrapped__(*args)
            return wrapper
        """,
    "dict in a closure": """
        def decorated(function):
            state = {"function": function, "calls": 0}
            def wrapper(*args):
                state["calls"] += 1
                return state["function"](*args)
            return wrapper
        """,
    "dispatch on the type": """
        def decorated(function):
            method = functools.singledispatchmethod(lambda self, x: None)
            method.register(torch.Tensor, function)
            return method
        """,
    "dispatching function": """
        def decorated(function):
            dispatched = functools.singledispatch(function)
            dispatched.register(int, lambda *args: None)
            return lambda *args: dispatched(*args)
        """,
    "cache": """
        def decorated(function):
            return functools.lru_cache(maxsize=1)(function)
        """,
    "autocast": """
        def decorated(function):
            return torch.amp.custom_fwd(function, device_type="cpu")
        """,
    "not compiled": """
        def decorated(function):
            return torch.compiler.disable(function)
        """,
    "gradient mode": """
        def decorated(function):
            return torch.enable_grad()(function)
        """,
}


def decorated(text: str) -> str:
    """A model whose method is decorated so."""
    model = """
        class Net(Layers):
            @decorated
            def forward(self, x):
                WORK
        """
    return textwrap.dedent(text) + textwrap.dedent(model)


def model_text(name: str, text: str) -> str:
    """A module of code with the model ``text`` that does the work of the pass ``name``."""
    header = "class Layers(nn.Module):\n    def __init__(self):\n        super().__init__()"
    lines = [_IMPORTS, header, _indented(LAYERS[name], 8)]
    for line in textwrap.dedent(text).splitlines():
        indent = len(line) - len(line.lstrip())
        lines.append(_indented(WORK[name], indent) if line.strip() == "WORK" else line)
    return "\n".join(lines) + "\n"


def _indented(text: str, spaces: int) -> str:
    return textwrap.indent(textwrap.dedent(text).strip("\n"), " " * spaces).rstrip()
