"""Signatures read from the zoo's own files, so that help and refusals needn't wait for torch."""

from __future__ import annotations

import ast
import builtins
import functools
import typing
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from zoo import ranges


@functools.cache
def outline(file: Path, name: str) -> Any:
    """A function or class of a file of the zoo with the signature, types, defaults and docstring that it has there, and
    nothing in it.

    Types are of `typing` and Python's own, without the ranges of zoo.ranges; all others are left out. Defaults are
    plain values.
    """
    node = next(node for node in ast.parse(file.read_text(encoding="utf-8")).body if getattr(node, "name", "") == name)
    known = (
        vars(typing) | vars(ranges) | {"dataclass": dataclass, "__name__": "builtins"}
    )  # a module of ours would be imported to look for it there
    exec(
        compile(
            ast.fix_missing_locations(ast.Module([_emptied(node, known)], [])), str(file), "exec", dont_inherit=True
        ),
        known,
    )
    found = known[name]
    signature = vars(found).get("__init__") if isinstance(found, type) else found
    if signature is not None and not is_dataclass(found):
        signature.__annotations__ = typing.get_type_hints(signature)
    return found


def _named(part: ast.stmt) -> str:
    """The name that a statement assigns to; empty for every other statement."""
    target = part.targets[0] if isinstance(part, ast.Assign) else getattr(part, "target", None)
    return getattr(target, "id", "")


def _emptied(node: ast.stmt, known: dict) -> ast.stmt:
    body = [part for part in node.body[:1] if isinstance(part, ast.Expr)]  # the docstring
    if isinstance(node, ast.ClassDef):
        data = any(getattr(getattr(mark, "func", mark), "id", "") == "dataclass" for mark in node.decorator_list)
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign)] if data else []
        said = [part for part in node.body if _named(part) in ("needs", "towers")]  # what a recipe is checked by
        body += fields + said + [_emptied(part, known) for part in node.body if getattr(part, "name", "") == "__init__"]
        node.bases, node.decorator_list = [], node.decorator_list if fields else []
    else:
        node.returns, node.decorator_list = None, []
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            names = (
                {part.id for part in ast.walk(argument.annotation) if isinstance(part, ast.Name)}
                if argument.annotation
                else set()
            )
            if not all(name in known or hasattr(builtins, name) for name in names):
                argument.annotation = None
    node.body = body or [ast.Pass()]
    return node
