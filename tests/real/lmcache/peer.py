"""What controller.py and worker.py share: lmcache without torch, and an end when whoever started them is gone.

Import this before lmcache: it stands in for the packages that lmcache names while it is imported, and that neither a
controller nor a worker without an engine ever calls.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import threading
import types
from queue import SimpleQueue

ABSENT = {"cupy", "numba", "nvtx", "safetensors", "torch", "transformers"}


class Anything(type):
    """A class that stands for whatever an absent package has: base class, annotation, decorator."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return anything(f"{cls.__name__}.{name}")

    def __call__(cls, *arguments, **options):
        decorated = arguments[0] if len(arguments) == 1 and not options else None
        return decorated if isinstance(decorated, types.FunctionType) else type.__call__(cls)

    def __getitem__(cls, _):
        return cls

    def __or__(cls, _):
        return cls

    __ror__ = __or__


def anything(name):
    def call(self, *arguments, **_):
        return arguments[0] if arguments else self

    body = {"__init__": lambda self, *_, **__: None, "__call__": call, "__getattr__": lambda _, name: anything(name)}
    return Anything(name, (), body)


class Module(types.ModuleType):
    """An absent package: has every name but those by which lmcache recognises hardware."""

    HARDWARE = {"backends", "cuda", "hpu", "mlu", "musa", "neuron", "npu", "rbln", "xpu"}

    def __getattr__(self, name):
        if name.startswith("__") or name in self.HARDWARE:
            raise AttributeError(name)
        value = anything(name)
        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the absent packages; asked last, so that an installed one wins."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = Module(spec.name)
        module.__path__ = []
        if spec.name == "torch":
            module.__version__ = "0.0"
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(Finder())
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")


def lines():
    """The lines of standard input from now on. Where they end, so does the process, whatever it waits for."""
    queue = SimpleQueue()

    def read():
        for line in sys.stdin:
            queue.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return iter(queue.get, None)
