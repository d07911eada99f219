"""Service-account tokens: made and checked here, bound to objects, and dead when those are gone.

A token is a JWT signed with ES256. Its life is cluster time. Checking costs one signature for each new token; the claims
of a token seen before are kept by its hash, while expiry and the bound objects are looked at every time.
Source: Kubernetes, "Managing Service Accounts", "Bound service account tokens".
"""

import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.api.cache import Cache, Meta
from wherry.api.pki import Authority
from wherry.api.settings import Settings
from wherry.clock import Clock, parse_rfc3339
from wherry.errors import Unauthorized
from wherry.model.kinds import NODES, PODS, SECRETS, SERVICEACCOUNTS, Kind
from wherry.model.users import User

_PRIVATE = "kubernetes.io"
_LEEWAY_S = 10
_DELETED_GRACE_S = 60
_KEPT = 1024
_BOUND: Mapping[str, Kind] = {"pod": PODS, "secret": SECRETS, "node": NODES}


@dataclass(frozen=True, slots=True)
class Bound:
    """The object that a token lives and dies with: `kind` is Pod, Secret or Node."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A good token: who it is, and which of the asked audiences it is for."""

    user: User
    audiences: Sequence[str]


class Tokens:
    """Makes and checks the tokens of one cluster."""

    def __init__(self, authority: Authority, cache: Cache, settings: Settings, clock: Clock) -> None:
        self._authority = authority
        self._cache = cache
        self._settings = settings
        self._clock = clock
        self._kept: OrderedDict[bytes, dict[str, Any]] = OrderedDict()

    def make(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        audiences: Sequence[str],
        seconds: int,
        bound: Bound | None = None,
        node: tuple[str, str] | None = None,
    ) -> tuple[str, float]:
        """A token for a service account, for `seconds` of cluster time; return it and when it expires.

        `node` is the (name, uid) of the node that a bound pod runs on: it goes into the claims, and is not checked.
        """
        import jwt

        now = int(self._clock.now())
        private: dict[str, Any] = {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}}
        if bound is not None:
            private[bound.kind.lower()] = {"name": bound.name, "uid": bound.uid}
        if node is not None:
            private["node"] = {"name": node[0], "uid": node[1]}
        claims = {
            "aud": list(audiences or self._settings.api_audiences),
            "exp": now + seconds,
            "iat": now,
            "iss": self._settings.issuer,
            "jti": str(uuid.uuid4()),
            _PRIVATE: private,
            "nbf": now,
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        key = self._authority.signing_key()
        return jwt.encode(claims, key, algorithm="ES256", headers={"kid": self._authority.key_id()}), now + seconds

    def check(self, token: str, audiences: Sequence[str] = ()) -> Checked:
        """Say whose token this is. Raises Unauthorized for one that is not ours, not for us, over, or revoked."""
        claims = self._claims(token)
        now = self._clock.now()
        if now > float(claims.get("exp", 0)) or now + _LEEWAY_S < float(claims.get("nbf", 0)):
            raise Unauthorized("the token has expired, or is not valid yet: request a new one")
        wanted = audiences or self._settings.api_audiences
        fitting = [audience for audience in wanted if audience in claims.get("aud", ())]
        if not fitting:
            raise Unauthorized(f"the token is for {claims.get('aud')}, not for {list(wanted)}")
        return Checked(self._user(claims), fitting)

    def jwks(self) -> dict[str, Any]:
        """The public keys that tokens can be checked with, as /openid/v1/jwks."""
        import jwt.algorithms

        key: dict[str, Any] = jwt.algorithms.ECAlgorithm.to_jwk(self._authority.verifying_key(), as_dict=True)
        return {"keys": [{"use": "sig", "kid": self._authority.key_id(), "alg": "ES256", **key}]}

    def _claims(self, token: str) -> dict[str, Any]:
        digest = hashlib.sha256(token.encode()).digest()
        found = self._kept.get(digest)
        if found is not None:
            self._kept.move_to_end(digest)
            return found
        import jwt

        options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._authority.verifying_key(),
                algorithms=["ES256"],
                issuer=self._settings.issuer,
                options=options,  # pyright: ignore[reportArgumentType]  # a TypedDict of jwt's own
            )
        except jwt.PyJWTError as error:
            raise Unauthorized(f"the bearer token is not one of this cluster: {error}") from error
        self._kept[digest] = claims
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return claims

    def _user(self, claims: dict[str, Any]) -> User:
        private: dict[str, Any] = claims.get(_PRIVATE, {})
        namespace = str(private.get("namespace", ""))
        account: dict[str, str] = private.get("serviceaccount", {})
        name, uid = account.get("name", ""), account.get("uid", "")
        self._must_live(SERVICEACCOUNTS, namespace, name, uid, "service account")
        extra: dict[str, Sequence[str]] = {
            "authentication.kubernetes.io/credential-id": (f"JTI={claims.get('jti', '')}",)
        }
        bound = next((key for key in ("pod", "secret", "node") if key in private), "")
        if bound:
            kind, which = _BOUND[bound], private[bound]
            self._must_live(kind, namespace if kind.namespaced else "", which["name"], which["uid"], bound)
        if "pod" in private:
            extra["authentication.kubernetes.io/pod-name"] = (private["pod"]["name"],)
            extra["authentication.kubernetes.io/pod-uid"] = (private["pod"]["uid"],)
        if "node" in private:
            extra["authentication.kubernetes.io/node-name"] = (private["node"]["name"],)
            extra["authentication.kubernetes.io/node-uid"] = (private["node"]["uid"],)
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        return User(f"system:serviceaccount:{namespace}:{name}", groups, uid, extra)

    def _must_live(self, kind: Kind, namespace: str, name: str, uid: str, label: str) -> None:
        item = self._cache.get(kind.root, kind.key(namespace, name))
        meta: Meta | None = item.meta if item is not None else None
        if meta is None or meta.uid != uid:
            raise Unauthorized(f"the token was revoked: its {label} {name} is gone")
        deleted = meta.deletion_timestamp
        if deleted and parse_rfc3339(deleted) + _DELETED_GRACE_S < self._clock.now():
            raise Unauthorized(f"the token was revoked: its {label} {name} is being deleted")
