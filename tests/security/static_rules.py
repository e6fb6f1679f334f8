"""What no line of the code may do: a walk over the syntax tree, so that names in text or comments do not count.

``findings(source)`` gives (line, rule) pairs. A rule looks at calls by the last part of their name, because what is imported
under which name differs: ``torch.load(...)`` and ``load(...)`` after ``from torch import load`` are told apart from
``json.load`` by the imports of the module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

OBJECT_COLLECTIVES = {
    "broadcast_object_list", "gather_object", "all_gather_object", "scatter_object_list", "send_object_list",
    "recv_object_list",
}  # fmt: skip
"""They pickle between ranks."""
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"}
STARTERS = {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "SafeLoader", "CSafeLoader"}
UNPICKLERS = {
    f"{module}.{name}"
    for module in ("pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
    for name in ("load", "loads", "Unpickler", "open")
} | {"pandas.read_pickle", "torch.jit.load", "torch.package.PackageImporter", "numpy.lib.format.read_array"}


def _names(tree: ast.AST) -> dict[str, str]:
    """What the imports of a module call things: ``{"np": "numpy", "load": "torch.load"}``."""
    out = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            out |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return out


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``np.load`` → ``numpy.load``, ``f(x).load`` → ``?.load``."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return "?"


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def findings(source: str) -> list[tuple[int, str]]:
    """Lines of a module that break a rule, with the rule."""
    tree = ast.parse(source)
    names = _names(tree)
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            out += [(node.lineno, rule) for rule in _broken(node, names)]
        elif isinstance(node, ast.Attribute | ast.Name):  # handed on without being called here
            name = _dotted(node, names)
            if name in UNPICKLERS | SHELLS or name in ("yaml.unsafe_load", "yaml.UnsafeLoader", "yaml.Loader"):
                out.append((node.lineno, f"{name}"))
    return sorted(set(out))


def _broken(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    name = _dotted(call.func, names)
    last = name.rsplit(".", 1)[-1]
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    first = call.args[0] if call.args else None
    if name in ("eval", "exec", "compile", "__import__") or name in ("builtins.eval", "builtins.exec"):
        yield f"{last}()"
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if name in ("yaml.load", "yaml.load_all"):
        loader = given.get("Loader") or (call.args[1] if len(call.args) > 1 else None)
        if loader is None or _dotted(loader, names) not in SAFE_LOADERS:
            yield "yaml.load without SafeLoader"
    if name in ("yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load_all"):
        yield name
    if "shell" in given and not _is(given["shell"], False):
        yield "shell=True"
    if name in STARTERS and _is_text(first):
        yield f"{name} of one text"
    if last in ("extractall", "unpack_archive"):
        yield last
    if "allow_pickle" in given and not _is(given["allow_pickle"], False):
        yield "allow_pickle=True"
    if "trust_remote_code" in given and not _is(given["trust_remote_code"], False):
        yield "trust_remote_code=True"
    if "weights_only" in given and not _is(given["weights_only"], True):
        yield "weights_only=False"
    if last in OBJECT_COLLECTIVES:
        yield f"{last} pickles between ranks"
    if last == "from_pretrained" and _is(given.get("use_safetensors"), False):
        yield "use_safetensors=False"
    if (last in ("from_pretrained", "snapshot_download", "hf_hub_download") or name == "torch.hub.load") and (
        isinstance(first, ast.Constant) and "revision" not in given
    ):
        yield f"{last} of a repository without its revision"
    if name == "torch.hub.load":
        yield "torch.hub.load runs a repository's code"
