"""Who is calling; law: keys are compared in constant time or by their hash, and whoever shows a wrong key is refused, however open the door.

Three kinds of keys: the manager token (`X-Manager-Token`), API tokens, and short-lived JSON web tokens made from either; the latter two as
`Authorization: Bearer …`. With auth_mode none callers on this machine need no key, and nobody else is let in.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

import jwt
from jwt.types import Options

from orchestrator.clock import Clock
from orchestrator.errors import FleetError, SettingsError
from orchestrator.keys import hashed
from orchestrator.store import Store, tokens
from schemas.access import MAY, Principal, Role
from schemas.codes import ErrorCode
from schemas.settings import Settings

MANAGER = "manager"
ANYBODY = Principal("anonymous", Role.ADMIN)
NOBODY = "unknown"

SECRET_BYTES_MIN = 32  # RFC 7518 wants no less for HS256
LEEWAY_S = 5.0  # by which clocks may differ
KEY_CHARACTERS_MAX = 4096

_ISSUER = "orchestrator"
_ALGORITHM = "HS256"


def is_local(address: str | None) -> bool:
    """Whether an address is one of this machine; None is a socket in the file system."""
    if address is None:
        return True
    try:
        return ipaddress.ip_address(address.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return address.lower() == "localhost"


class Admission:
    """Finds out who calls, and whether they may. Raises SettingsError if its settings cannot keep anybody out."""

    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._secret = settings.jwt_secret.get_secret_value()
        if self._secret and len(self._secret.encode()) < SECRET_BYTES_MIN:
            raise SettingsError(f"jwt_secret is too short to keep anybody out; it needs {SECRET_BYTES_MIN} bytes: openssl rand -hex 32")
        if settings.auth_mode == "jwt" and not self._secret:
            raise SettingsError("auth_mode is jwt, but there is no jwt_secret to sign with; set ORCHESTRATOR_JWT_SECRET")

    def admit(self, headers: Mapping[str, str], peer: str | None, needed: Role) -> Principal:
        """The caller, if they may do what needs this role. Raises FleetError (unauthorized, forbidden)."""
        principal = self.principal(headers, peer, needed)
        if principal.role not in MAY[needed]:
            message = f"{principal.actor} is {principal.role}; this needs {' or '.join(sorted(MAY[needed]))}"
            raise Forbidden(message, actor=principal.actor)
        return principal

    def principal(self, headers: Mapping[str, str], peer: str | None, needed: Role) -> Principal:
        """The caller; who shows two keys is whom the bearer's key names, and both must be good. Raises FleetError (unauthorized)."""
        shown, authorization = headers.get("x-manager-token"), headers.get("authorization")
        is_manager = shown is not None and bool(self._settings.manager_tokens)
        if is_manager and not self._is_manager_token(shown or ""):
            raise _unauthorized("the X-Manager-Token is not one that counts")
        if authorization is not None:
            return self._bearer(authorization)
        if is_manager:
            return Principal(MANAGER, Role.AGENT if self._settings.auth_mode == "jwt" else Role.ADMIN)
        if self._settings.auth_mode != "none" or (needed is Role.AGENT and self._settings.manager_tokens):
            ways = "X-Manager-Token" if needed is Role.AGENT else "Authorization: Bearer"
            raise _unauthorized(f"this call needs a key ({ways}); `orchestrator token create` makes one")
        return _anybody(headers, peer)

    def issue(self, principal: Principal) -> str:
        """A web token that is good for jwt_ttl_s, for a caller who has shown another kind of key."""
        if not self._secret:
            raise FleetError("this server signs no web tokens; set ORCHESTRATOR_JWT_SECRET", code=ErrorCode.INVALID_REQUEST)
        now = self._clock.now()
        claims = {
            "iss": _ISSUER,
            "sub": principal.actor,
            "role": str(principal.role),
            "tid": principal.token_id,
            "iat": int(now),
            "exp": int(now + self._settings.jwt_ttl_s),
        }
        return jwt.encode(claims, self._secret, algorithm=_ALGORITHM)

    def _is_manager_token(self, shown: str) -> bool:
        # All of them, whichever fits: the time it takes tells nothing.
        given = shown.encode("utf-8", "replace")
        return sum(hmac.compare_digest(given, token.encode()) for token in self._settings.manager_tokens) > 0

    def _bearer(self, authorization: str) -> Principal:
        scheme, _, key = authorization.strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key or len(key) > KEY_CHARACTERS_MAX:
            raise _unauthorized("the Authorization header must be `Bearer` and a key")
        return self._web_token(key) if key.count(".") == 2 else self._api_token(key)

    def _api_token(self, key: str) -> Principal:
        with self._store.transaction(readonly=True) as tx:
            found = tokens.by_hash(tx, hashed(key))
        if found is None or not found.valid:
            raise _unauthorized("the key is unknown, expired or revoked")
        if found.last_used_at is None or self._clock.now() - found.last_used_at > tokens.USED_EVERY_S:
            with self._store.transaction(purpose="tokens.used") as tx:
                tokens.used(tx, found.id)
        return Principal(f"token:{found.name}", found.role, found.id)

    def _web_token(self, key: str) -> Principal:
        if not self._secret:
            raise _unauthorized("this server takes no web tokens")
        # Times are judged by our clock, below.
        options: Options = {"require": ["exp", "iat", "sub"], "verify_exp": False, "verify_iat": False, "verify_nbf": False}
        try:
            claims = jwt.decode(key, self._secret, algorithms=[_ALGORITHM], issuer=_ISSUER, options=options)
            principal = Principal(str(claims["sub"]), Role(claims["role"]), str(claims["tid"]))
            expires_at, issued_at = float(claims["exp"]), float(claims["iat"])
        except (jwt.PyJWTError, KeyError, ValueError, TypeError) as error:
            raise _unauthorized("the web token is not one of ours") from error
        if not issued_at - LEEWAY_S <= self._clock.now() < expires_at:
            raise _unauthorized("the web token has expired; ask for another one")
        if principal.token_id:
            with self._store.transaction(readonly=True) as tx:
                token = tokens.by_id(tx, principal.token_id)
            if token is None or not token.valid:
                raise _unauthorized("the key that this web token was made from has expired or was revoked")
        return principal


class Forbidden(FleetError):
    """The caller is known, and may not do this."""

    def __init__(self, message: str, *, actor: str) -> None:
        super().__init__(message, code=ErrorCode.FORBIDDEN)
        self.actor = actor


def _unauthorized(message: str) -> FleetError:
    return FleetError(message, code=ErrorCode.UNAUTHORIZED)


def _anybody(headers: Mapping[str, str], peer: str | None) -> Principal:
    """Whoever is on this machine, and no web page that somebody reads there."""
    if not is_local(peer):
        raise _unauthorized("this server asks for no key, so it answers only callers on its own machine; set ORCHESTRATOR_AUTH_MODE")
    host = urlsplit(f"//{headers.get('host', '')}").hostname
    if host and not is_local(host):
        raise _unauthorized(f"this server asks for no key, so it answers only to names of its own machine, not to {host!r}")
    origin = headers.get("origin")
    if origin and urlsplit(origin).netloc != headers.get("host"):
        raise _unauthorized("this server asks for no key, so it answers no web pages from elsewhere")
    return ANYBODY
