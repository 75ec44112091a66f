"""Decorators that hold the edited method in different ways."""

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
