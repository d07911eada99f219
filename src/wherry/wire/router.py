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
    regex: re.Pattern[str]
    methods: Mapping[str, Handler]


class Router:
    """Finds the route of a request: exact paths by one look-up, the others by their first segment, in order."""

    def __init__(self, routes: Sequence[Route]) -> None:
        exact: dict[str, dict[str, Handler]] = {}
        ordered: dict[str, dict[str, Handler]] = {}
        for route in routes:
            table = ordered if "{" in route.pattern else exact
            table.setdefault(route.pattern, {}).setdefault(route.method, route.handler)
        self._exact = exact
        self._anywhere: list[_Pattern] = []
        self._by_head: dict[str, list[_Pattern]] = {}
        heads = {_head(pattern) for pattern in ordered} - {None}
        for head in heads:
            if head is not None:
                self._by_head[head] = []
        for pattern, methods in ordered.items():
            compiled = _Pattern(_compile(pattern), methods)
            head = _head(pattern)
            if head is None:  # it may match below any head: it keeps its place among each head's routes
                self._anywhere.append(compiled)
                for others in self._by_head.values():
                    others.append(compiled)
            else:
                self._by_head[head].append(compiled)

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
        head = path[1:].partition("/")[0]
        for pattern in self._by_head.get(head, self._anywhere):
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
