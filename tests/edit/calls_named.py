"""Models that call the edited method by the name of its class."""

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
    "bound by hand": """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            def _work(self, x):
                return types.MethodType(A._work, self)(x)
            def forward(self, x):
                return self._work(x)
        """,
    "bound by the descriptor": """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            def _work(self, x):
                return A._work.__get__(self, Net)(x)
            def forward(self, x):
                return self._work(x)
        """,
    "partial of the class": """
        class A(Layers):
            def _work(self, x):
                WORK
        class Net(A):
            def _work(self, x):
                return functools.partial(A._work, self)(x)
            def forward(self, x):
                return self._work(x)
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
