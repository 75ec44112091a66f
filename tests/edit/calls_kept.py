"""Models that keep the edited method as a value, or have it under another name."""

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
