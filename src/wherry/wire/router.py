"""Routes: from a method and a path to a handler and the path's parameters."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wherry.errors import MethodNotAllowed, NotFound
from wherry.wire.http import Handler

_PARAMETER = re.compile(r"\{([a-z_]+)(:path)?\}")


@dataclass(frozen=True, slots=True)
class Route:
    """A path pattern: `{name}` takes one segment, `{name:path}` one or more. The first route that matches wins.

    `method` "*" takes every method; HEAD falls back to GET.
    """

    method: str
    pattern: str
    handler: Handler


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A compiled pattern. `head`: its fixed first segment; `depth`: its slashes; `open`: `:path` lets it take more."""

    regex: re.Pattern[str]
    methods: Mapping[str, Handler]
    head: str | None
    depth: int
    open: bool


class Router:
    """Finds the route of a request: exact paths by one look-up, the others by first segment and depth, in order."""

    def __init__(self, routes: Sequence[Route]) -> None:
        exact: dict[str, dict[str, Handler]] = {}
        ordered: dict[str, dict[str, Handler]] = {}
        for route in routes:
            table = ordered if "{" in route.pattern else exact
            table.setdefault(route.pattern, {}).setdefault(route.method, route.handler)
        self._exact = exact
        self._patterns = [
            _Pattern(_compile(text), methods, _head(text), text.count("/"), ":path}" in text)
            for text, methods in ordered.items()
        ]
        self._heads = {pattern.head for pattern in self._patterns}
        self._deepest = max((pattern.depth for pattern in self._patterns), default=0) + 1
        self._candidates: dict[tuple[str | None, int], list[_Pattern]] = {}

    def match(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """Return the handler and the parameters of a path.

        Raises NotFound for a path that no route has, MethodNotAllowed (naming the methods) for another method.
        """
        allowed: list[str] = []
        methods = self._exact.get(path)
        if methods is not None:
            handler = _choose(methods, method)
            if handler is not None:
                return handler, {}
            allowed.extend(methods)
        end = path.find("/", 1)
        key = (path[1:] if end < 0 else path[1:end], path.count("/"))
        candidates = self._candidates.get(key)
        for pattern in self._find(key) if candidates is None else candidates:
            found = pattern.regex.fullmatch(path)
            if found is None:
                continue
            handler = _choose(pattern.methods, method)
            if handler is not None:
                return handler, found.groupdict()
            allowed.extend(pattern.methods)
        if allowed:
            raise MethodNotAllowed(f"{path} does not take {method}; it takes {', '.join(sorted(set(allowed)))}")
        raise NotFound(f"there is nothing at {path}")

    def _find(self, key: tuple[str, int]) -> "list[_Pattern]":
        """Choose the patterns that may match; kept for heads that routes name (what else clients ask for is unbounded)."""
        head, depth = key
        known = head if head in self._heads else None
        depth = min(depth, self._deepest)
        candidates = self._candidates.get((known, depth))
        if candidates is None:
            candidates = [
                pattern
                for pattern in self._patterns
                if pattern.head in (None, known)
                and (pattern.depth == depth or (pattern.open and depth > pattern.depth))
            ]
            self._candidates[known, depth] = candidates
        return candidates


def _choose(methods: Mapping[str, Handler], method: str) -> Handler | None:
    handler = methods.get(method)
    if handler is None and method == "HEAD":
        handler = methods.get("GET")
    return handler if handler is not None else methods.get("*")


def _head(pattern: str) -> str | None:
    """Return the fixed first segment of a pattern, or None when it is a parameter."""
    head = pattern[1:].partition("/")[0]
    return None if "{" in head else head


def _compile(pattern: str) -> re.Pattern[str]:
    regex = ""
    position = 0
    for found in _PARAMETER.finditer(pattern):
        regex += re.escape(pattern[position : found.start()])
        regex += f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})"
        position = found.end()
    return re.compile(regex + re.escape(pattern[position:]), re.DOTALL)
