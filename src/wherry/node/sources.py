"""What pods read from the API: ConfigMaps, Secrets and tokens, each asked for once in a while."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from wherry.client.protocol import Client
from wherry.clock import Clock, parse_rfc3339
from wherry.errors import NotFound
from wherry.model.kinds import CONFIGMAPS, SECRETS, SERVICEACCOUNTS
from wherry.node.pods import Pod
from wherry.node.volumes import decode_keys

FRESH_S = 1.0
"""Cluster seconds for which an answer is used again: the containers of a pod, and pods of one template, ask for the same."""


@dataclass(frozen=True, slots=True)
class _Held:
    keys: Mapping[str, bytes] | None
    time: float


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    renew: float


class Sources:
    """Reads objects for the pods of one node, as that node."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._held: dict[tuple[str, str, str], _Held] = {}
        self._tokens: dict[tuple[str, str], _Token] = {}
        self._asking: dict[tuple[str, str, str], asyncio.Lock] = {}

    async def keys(self, namespace: str, kind: str, name: str) -> Mapping[str, bytes] | None:
        """The keys of a ConfigMap or Secret; None when it is not there."""
        place = (namespace, kind, name)
        lock = self._asking.setdefault(place, asyncio.Lock())
        async with lock:
            held = self._held.get(place)
            if held is not None and self._clock.now() - held.time < FRESH_S:
                return held.keys
            try:
                raw = await self._client.get(CONFIGMAPS if kind == "ConfigMap" else SECRETS, name, namespace)
                keys = decode_keys(msgspec.json.decode(raw, type=dict[str, Any]), kind)
            except NotFound:
                keys = None
            if len(self._held) > 1000:
                self._held.clear()
                self._asking.clear()
            self._held[place] = _Held(keys, self._clock.now())
            return keys

    async def token(self, pod: Pod, audience: str, seconds: int) -> str:
        """A token of the pod's service account, bound to the pod; a new one when 80 % of its life is over."""
        place = (pod.uid, audience)
        known = self._tokens.get(place)
        now = self._clock.now()
        if known is not None and now < known.renew:
            return known.text
        spec: dict[str, Any] = {
            "expirationSeconds": seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.uid},
        }
        if audience:
            spec["audiences"] = [audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        raw = await self._client.post(
            SERVICEACCOUNTS, pod.spec.service_account_name or "default", pod.metadata.namespace, "token", body
        )
        status = msgspec.json.decode(raw, type=dict[str, Any])["status"]
        life_s = parse_rfc3339(status["expirationTimestamp"]) - now
        self._tokens[place] = _Token(status["token"], now + 0.8 * life_s)
        return status["token"]

    def forget(self, uid: str) -> None:
        """A pod is gone."""
        for place in [place for place in self._tokens if place[0] == uid]:
            del self._tokens[place]
