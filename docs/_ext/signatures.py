"""The signatures and the members that pages of the reference show; a test compares the former with the docstrings."""

import inspect
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

VARIADIC = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD


class Shown:
    """A default as a page shows it: classes and functions by their names, other objects without a text as dots."""

    def __init__(self, default: Any) -> None:
        self.text = getattr(default, "__name__", None) or (
            "..." if " at 0x" in repr(default) else repr(default)
        )

    def __repr__(self) -> str:
        return self.text


def parameters(obj: Any) -> list[Parameter]:
    """What can be passed to a function or a class, without types, and without `**unknown`, which only raises."""
    found = _of_class(obj) if isinstance(obj, type) else list(inspect.signature(obj).parameters.values())
    shown = [p.replace(annotation=Parameter.empty) for p in found if p.name != "unknown"]
    return [p if p.default is Parameter.empty else p.replace(default=Shown(p.default)) for p in shown]


def _of_class(cls: type) -> list[Parameter]:
    """Those of __init__, with what its *args and **kwargs pass on to the __init__ of the classes above."""
    found: dict[str, Parameter] = {}
    positional = True
    for above in cls.__mro__:
        if "__init__" not in vars(above):
            continue
        own = list(inspect.signature(vars(above)["__init__"]).parameters.values())[1:]
        for p in own:
            if p.kind not in VARIADIC:
                found.setdefault(p.name, p if positional else p.replace(kind=Parameter.KEYWORD_ONLY))
        if not any(p.kind is Parameter.VAR_KEYWORD for p in own):
            break
        positional = positional and any(p.kind is Parameter.VAR_POSITIONAL for p in own)
    return sorted(found.values(), key=lambda p: p.kind)


def is_result(obj: Any) -> bool:
    """Whether a class is only returned: its docstring has sections, and no parameters."""
    doc = inspect.getdoc(obj) or ""
    return isinstance(obj, type) and "\n---" in doc and "\nParameters\n---" not in doc


def shown(app: "Sphinx", what: str, name: str, obj: Any, *_: Any) -> tuple[str, str] | None:
    """The signature on the page of a class or function; none for a class that is only returned."""
    if what not in ("class", "function") or not callable(obj):
        return None
    if is_result(obj):
        return "", ""
    return str(Signature(parameters(obj), __validate_parameters__=False)), ""


def foreign(app: "Sphinx", kind: str, name: str, member: Any, *_: Any) -> bool | None:
    """Leave out what a class has from another library, and the fields of named tuples, which are its attributes."""
    if "Alias for field number" in (getattr(member, "__doc__", None) or ""):
        return True
    module = getattr(getattr(member, "fget", member), "__module__", None) or "xhat"
    return None if module.startswith("xhat") else True


def setup(app: "Sphinx") -> dict[str, bool]:
    """Show these signatures in place of those that autodoc finds, and not all members."""
    app.connect("autodoc-process-signature", shown)
    app.connect("autodoc-skip-member", foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
