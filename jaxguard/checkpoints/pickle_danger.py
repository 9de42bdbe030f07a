"""Names that make a pickle an attack: a file that refers to one is refused, with all its other content."""

_MODULES = frozenset(
    {
        # processes, files, the network
        *("os", "posix", "nt", "subprocess", "_posixsubprocess", "popen2", "pty", "shutil", "socket", "socketserver"),
        *("ssl", "webbrowser", "urllib", "urllib2", "requests", "aiohttp", "httplib", "httpx", "ftplib", "smtplib"),
        *("asyncio", "multiprocessing", "_winapi", "winreg", "msvcrt", "tempfile", "fileinput", "sqlite3"),
        # modules and code
        *("sys", "runpy", "importlib", "imp", "zipimport", "pkgutil", "pkg_resources", "pip", "ensurepip", "venv"),
        *("codeop", "_ctypes", "ctypes", "cffi", "timeit", "cProfile", "pdb", "bdb", "doctest", "idlelib", "lib2to3"),
        # attributes by name, and other deserialisers
        *("_aix_support", "_osx_support", "_pyrepl", "commands", "distutils", "imaplib", "profile", "pydoc", "test"),
        *(
            "trace",
            "uuid",
            "functools",
            "operator",
            "_operator",
            "pickle",
            "_pickle",
            "cPickle",
            "dill",
            "cloudpickle",
            "shelve",
            "marshal",
        ),
    }
)
_PREFIXES = (
    *("numpy.testing", "numpy.f2py", "numpy.distutils", "numpy.load", "numpy.lib.npyio"),
    *("torch.hub", "torch.load", "torch.serialization.load", "torch.utils.cpp_extension", "torch._inductor"),
    *("torch.serialization.load", "torch._dynamo.guards.GuardBuilder", "torch.fx.experimental.symbolic_shapes"),
    *("torch.utils._config_module", "torch.utils.bottleneck", "torch.utils.collect_env", "torch.utils.data.datapipes"),
    *(
        "logging.FileHandler",
        "torch.jit.unsupported_tensor_ops",
        "torch.package",
        "torch.multiprocessing",
        "torch.distributed.rpc",
    ),
    *("types.FunctionType", "types.CodeType", "types.MethodType", "code.InteractiveInterpreter", "code.interact"),
    *("io.open", "_io.open", "io.FileIO", "_io.FileIO", "codecs.open", "commands.Popen", "commands.getoutput"),
    *("logging.config", "pandas.eval", "pandas.read_pickle", "joblib.load", "yaml.load", "yaml.unsafe_load"),
)
_BUILTINS = frozenset(("builtins", "__builtin__", "__builtins__"))
_HARMLESS_BUILTINS = frozenset(
    {
        *("bool", "bytearray", "bytes", "complex", "dict", "enumerate", "filter", "float", "frozenset", "int", "list"),
        *("long", "map", "object", "print", "property", "range", "reversed", "set", "slice", "staticmethod", "str"),
        *("classmethod", "super", "tuple", "type", "unicode", "xrange", "zip", "Ellipsis", "NotImplemented"),
        *("Exception", "ValueError", "TypeError", "KeyError", "IndexError", "RuntimeError", "StopIteration"),
        *("abs", "len", "max", "min", "pow", "round", "sorted", "sum"),
    }
)
_ATTRIBUTES = frozenset(
    {
        *("system", "popen", "eval", "exec", "execfile", "compile", "__import__", "import_module", "getattr"),
        *("__getattribute__", "__globals__", "__builtins__", "__subclasses__", "__class__", "__mro__", "__dict__"),
        *("__code__", "__init__", "__call__", "__reduce__", "__reduce_ex__", "runstring", "check_output", "Popen"),
    }
)


def runs_code(module: str, name: str) -> bool:
    """Whether `name` of `module` is known to run code, to open files or to reach the network when called.

    The list decides between two messages, not about safety: a name that is missing here is not imported either.

    >>> runs_code("os", "system"), runs_code("torch", "os.system"), runs_code("models.net", "Net")
    (True, True, False)
    """
    full, parts = f"{module}.{name}", name.split(".")
    if module in _BUILTINS:
        return name not in _HARMLESS_BUILTINS
    return (
        module.split(".", 1)[0] in _MODULES
        or any(full == prefix or full.startswith(prefix + ".") for prefix in _PREFIXES)
        or (len(parts) > 1 and any(part in _MODULES or part in _ATTRIBUTES for part in parts))
    )
