"""tokens and issuer: which tokens are taken, whose they are, and when keys are fetched."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import zlib
from collections.abc import Mapping
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from agent_executor import issuer as issuer_module
from agent_executor.callers import Caller
from agent_executor.errors import Forbidden, Unavailable
from agent_executor.issuer import Issuer
from agent_executor.settings import SettingsError, load
from agent_executor.tokens import Claims, Tokens

NAME = "https://issuer.example"
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
SECRET = b"a secret that the world knows, of 32 bytes"


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    algorithm = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
    name = next((name for kind, name in algorithm.items() if isinstance(key, kind)), "EdDSA")
    made = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)
    return {**made, "kid": kid, **more}


class World:
    """Stands for the issuer's server."""

    def __init__(self) -> None:
        self.keys: list[Any] = [jwk(RSA, "one", alg="RS256", use="sig"), jwk(EC, "ec"), jwk(ED, "ed")]
        self.asked: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.away = False
        self.issuer = NAME
        self.jwks_uri = f"{NAME}/keys"

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        self.headers.append(request.headers)
        if self.away:
            raise httpx.ConnectError("away")
        if request.url.path == "/keys":
            return httpx.Response(200, json={"keys": self.keys})
        return httpx.Response(200, json={"issuer": self.issuer, "jwks_uri": self.jwks_uri})


@pytest.fixture
def world() -> World:
    return World()


def made(world: World, claims: Claims | None = None, **more: Any) -> Tokens:
    http = httpx.AsyncClient(transport=httpx.MockTransport(world.answer))
    return Tokens(Issuer(NAME, http, **more), "executor", claims or Claims(), 30)


def good(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {"iss": NAME, "aud": "executor", "sub": "alice", "iat": now, "exp": now + 60, "scope": "jobs:read x"}
    return {name: value for name, value in {**claims, **changed}.items() if value is not None}


def sign(claims: dict[str, Any], key: Any = RSA, algorithm: str = "RS256", **header: Any) -> str:
    headers = {name: value for name, value in {"kid": "one", **header}.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers=headers)


def raw(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "one"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")])
async def test_a_good_token_is_let_in(world: World, key: Any, algorithm: str, kid: str) -> None:
    claims = good()
    admitted = await made(world).admit(sign(claims, key, algorithm, kid=kid))
    assert admitted is not None
    assert admitted[0] == Caller("alice", "default", frozenset({"jobs:read"}), claims["exp"])
    assert admitted[1]()


PEM = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def hmac_signed(header: dict[str, Any], key: bytes) -> str:
    """With the public key as the secret of an HMAC, which PyJWT itself refuses to do."""
    import hashlib
    import hmac

    unsigned = raw(header, good()).rpartition(".")[0]
    digest = hmac.digest(key, unsigned.encode(), hashlib.sha256)
    return f"{unsigned}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def signed(header: bytes | dict[str, Any], claims: bytes | dict[str, Any]) -> str:
    """Signed with the issuer's key, whatever it is."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, claims)]
    unsigned = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = RSA.sign(unsigned, padding.PKCS1v15(), hashes.SHA256())
    return f"{unsigned.decode()}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


NOW = int(time.time())
HEADER = {"alg": "RS256", "kid": "one"}
GOOD = json.dumps(good(exp=NOW + 3600)).encode()
WRONG = {
    "nothing": "",
    "no token": "x.y.z",
    "an API key": "ae_abcdefghijkl_0",
    "no algorithm": raw({"alg": "none", "kid": "one"}, good()),
    "no algorithm, in other letters": raw({"alg": "nOnE", "kid": "one"}, good()),
    "no algorithm and no key": raw({"alg": "none"}, good()),
    "no header's object": "W10.W10.",
    "the public key as a secret": hmac_signed({"alg": "HS256", "kid": "one"}, PEM),
    "a secret": hmac_signed({"alg": "HS256", "kid": "one"}, SECRET),
    "an algorithm that the key does not say": sign(good(), RSA, "RS512"),
    "another's key": sign(good(), OTHER),
    "another kind of key": sign(good(), EC, "ES256"),
    "no kid": sign(good(), kid=None),
    "a kid that is a path": sign(good(), kid="../../../../dev/null"),
    "a kid that is SQL": sign(good(), kid="' or 1=1 --"),
    "a kid that is a URL": sign(good(), kid="https://evil.example/key"),
    "a kid that is long": sign(good(), kid="x" * 1000),
    "a kid that is no text": raw({"alg": "RS256", "kid": 5}, good()),
    "a key of its own": sign(good(), OTHER, jwk=jwk(OTHER, "one")),
    "a key elsewhere": sign(good(), OTHER, jku="https://evil.example/keys", x5u="https://evil.example/cert"),
    "what we do not understand": sign(good(), crit=["exp"]),
    "what the library understands, and we do not": sign(good(), crit=["b64"], b64=True),
    "nothing critical": raw({"alg": "RS256", "kid": "one", "crit": []}, good()),
    "another type": sign(good(), typ="dpop+jwt"),
    "a type that is no text": raw({"alg": "RS256", "kid": "one", "typ": 1}, good()),
    "another issuer": sign(good(iss="https://evil.example")),
    "no issuer": sign(good(iss=None)),
    "another audience": sign(good(aud="somebody")),
    "no audience": sign(good(aud=None)),
    "no audience in a list": sign(good(aud=[])),
    "no subject": sign(good(sub=None)),
    "no end": sign(good(exp=None)),
    "an end in the past": sign(good(exp=NOW - 31)),
    "an end that is no number": sign(good(exp="tomorrow")),
    "an end beyond numbers": raw({"alg": "RS256", "kid": "one"}, good(exp=10**400)),
    "an end that is a text of digits": signed(HEADER, good(exp=str(NOW + 3600))),
    "an end that is not a number": signed(HEADER, good(exp=float("nan"))),
    "an end that never comes": signed(HEADER, good(exp=float("inf"))),
    "an end that is true": signed(HEADER, good(exp=True)),
    "an end in a list": signed(HEADER, good(exp=[NOW + 3600])),
    "an end that was before": signed(HEADER, b'{"exp": 99999999999, ' + GOOD[1:-1] + b', "exp": 1}'),
    "an issuer in a list": signed(HEADER, good(iss=[NAME])),
    "an audience with something else": signed(HEADER, good(aud=["executor", 5])),
    "an audience that is an object": signed(HEADER, good(aud={"executor": True})),
    "a subject that is a number": signed(HEADER, good(sub=5)),
    "a subject that is a list": signed(HEADER, good(sub=["alice"])),
    "claims that are a list": signed(HEADER, b"[" + GOOD + b"]"),
    "claims that are nothing": signed(HEADER, b""),
    "claims that are nested deep": signed(HEADER, b'{"x":' * 2000 + b"1" + b"}" * 2000),
    "compressed claims": signed({**HEADER, "zip": "DEF"}, zlib.compress(GOOD, wbits=-15)),
    "a body that is not in it": signed({**HEADER, "b64": False}, GOOD),
    "a body that is not in it, critically": signed({**HEADER, "b64": False, "crit": ["b64"]}, GOOD),
    "two kids": signed(b'{"alg": "RS256", "kid": "one", "kid": "two"}', GOOD),
    "two algorithms": signed(b'{"alg": "RS256", "kid": "one", "alg": "none"}', GOOD),
    "a kid with a line break": signed({**HEADER, "kid": "one\n"}, GOOD),
    "a kid with a NUL": signed({**HEADER, "kid": "one\0"}, GOOD),
    "a kid with half a character": signed({**HEADER, "kid": "\ud800"}, GOOD),
    "a kid in a list": signed({**HEADER, "kid": ["one"]}, GOOD),
    "a kid that is an object": signed({**HEADER, "kid": {"one": 1}}, GOOD),
    "a kid in other letters": signed({**HEADER, "kid": "ONE"}, GOOD),
    "a key of its own and no kid": raw({"alg": "RS256", "jwk": jwk(RSA, "one")}, good()),
    "a key of its own, symmetric": hmac_signed({**HEADER, "alg": "HS256", "jwk": {"kty": "oct", "k": "YQ"}}, b"a"),
    "a certificate of its own": raw({**HEADER, "x5c": ["MIIB"], "x5t": "AAAA"}, good(), b"x" * 256),
    "a signature of zeros": raw({"alg": "ES256", "kid": "ec"}, good(), bytes(64)),
    "a signature of nothing": raw({"alg": "ES256", "kid": "ec"}, good()),
    "five parts": f"{signed(HEADER, GOOD)}.x.y",
    "two parts": signed(HEADER, GOOD).rpartition(".")[0],
    "a header that is no text": signed(b"\xff\xfe{}", GOOD),
    "a header with a long number": signed(b'{"alg": "RS256", "kid": "one", "n": ' + b"9" * 5000 + b"}", GOOD),
    "letters of another kind": signed(HEADER, GOOD).replace(".", "\uff0e"),
    "all in capitals": signed(HEADER, GOOD).upper(),
    "a begin in the future": sign(good(nbf=NOW + 3600)),
    "made in the future": sign(good(iat=NOW + 3600)),
    "a broken signature": sign(good())[:-8] + "AAAAAAAA",
    "deep nesting": f"{base64.urlsafe_b64encode(b'[' * 9000).decode().rstrip('=')}.x.y",
}


@pytest.mark.parametrize("what", WRONG)
async def test_anything_else_is_not(world: World, what: str) -> None:
    world.keys.append(jwk(WEAK, "weak"))
    assert await made(world).admit(WRONG[what]) is None
    assert {httpx.URL(each).host for each in world.asked} <= {"issuer.example"}


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
@pytest.mark.parametrize(
    "key",
    [
        jwk(OTHER, "two", use="enc"),
        jwk(OTHER, "two", key_ops=["encrypt"]),
        jwk(OTHER, "two", alg="RSA-OAEP"),
        jwk(OTHER, "two", alg="none"),
        {"kty": "oct", "kid": "two", "k": "c2VjcmV0"},
        jwk(WEAK, "two"),
    ],
    ids=[
        "for encryption",
        "for encryption by its operations",
        "of another algorithm",
        "of none",
        "symmetric",
        "too short",
    ],
)
async def test_a_key_that_is_not_for_this_verifies_nothing(world: World, key: dict[str, Any]) -> None:
    world.keys = [key, jwk(RSA, "one")]
    tokens = made(world)
    assert await tokens.admit(sign(good(), WEAK if "n" in key and len(key["n"]) < 200 else OTHER, kid="two")) is None
    assert await tokens.admit(hmac_signed({"alg": "HS256", "kid": "two"}, b"secret")) is None
    assert await tokens.admit(sign(good())) is not None


async def test_no_key_is_looked_for_where_the_header_is_wrong(world: World) -> None:
    wrong: list[dict[str, Any]] = [
        *({"crit": ["exp"]}, {"crit": []}, {"typ": "dpop+jwt"}, {"kid": ""}, {"kid": "x" * 257}),
    ]
    for header in wrong:
        assert await made(world).admit(raw({"alg": "RS256", "kid": "one", **header}, good())) is None
    assert world.asked == []


async def test_clocks_may_differ_a_little(world: World) -> None:
    tokens = made(world)
    now = int(time.time())
    admitted = await tokens.admit(sign(good(exp=now - 25, nbf=now + 25, iat=now + 25)))
    assert admitted is not None
    assert admitted[1]()


async def test_a_stream_ends_with_its_token(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    admitted = await made(world).admit(sign(good()))
    assert admitted is not None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 91)
    assert not admitted[1]()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were verified, each time."""
    seen: list[str] = []
    decode = jwt.decode

    def noted(token: str, *args: Any, **more: Any) -> Any:
        seen.append(token)
        return decode(token, *args, **more)

    monkeypatch.setattr(jwt, "decode", noted)
    return seen


async def test_a_good_token_is_verified_once(world: World, decoded: list[str]) -> None:
    tokens, token = made(world), sign(good())
    found = [await tokens.admit(token) for _ in range(5)]
    assert {each[0].name for each in found if each} == {"alice"}
    assert decoded == [token]
    for _ in range(2):
        assert await tokens.admit(sign(good(), OTHER)) is None
    assert len(decoded) == 3  # what was no good is no better known
    assert token not in repr(tokens._verified)


async def test_a_known_token_is_known_until_its_end(
    world: World, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, token, now = made(world), sign(good()), time.time()
    for at, times in ((now, 1), (now + 89, 1), (now + 91, 2)):
        monkeypatch.setattr(time, "time", lambda at=at: at)
        await tokens.admit(token)
        assert len(decoded) == times


@pytest.mark.parametrize("left", [[], [jwk(OTHER, "one")]], ids=["withdrawn", "exchanged"])
async def test_a_known_token_ends_with_its_key(world: World, monkeypatch: pytest.MonkeyPatch, left: Any) -> None:
    tokens, token = made(world), sign(good())
    assert await tokens.admit(token)
    world.keys = left
    monkeypatch.setattr(tokens._issuer, "_tried_at", None)
    monkeypatch.setattr(tokens._issuer, "_fetched_at", None)
    assert await tokens.admit(token) is None
    assert not tokens._verified


async def test_known_tokens_take_a_bounded_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_executor.tokens._MOST_KEPT", 3)
    tokens = made(world)
    signed_here = [sign(good(jti=str(number))) for number in range(5)]
    for token in [*signed_here, *signed_here]:
        assert await tokens.admit(token)
        assert len(tokens._verified) <= 3


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        ("jobs:read jobs:submit nonsense", {"jobs:read", "jobs:submit"}),
        (["jobs:read", 5, "nonsense", ["admin"]], {"jobs:read"}),
        ("", set()),
        ([], set()),
        ({"admin": True}, set()),
        (True, set()),
        (None, {"metrics:read"}),
    ],
)
async def test_scopes_come_from_their_claim_alone_if_there_is_one(world: World, scope: Any, found: set[str]) -> None:
    claims = Claims(default_scopes=frozenset({"metrics:read"}), subjects=("al*",))
    admitted = await made(world, claims).admit(sign(good(scope=scope)))
    assert admitted is not None
    assert admitted[0].scopes == found


KUBERNETES = {
    "sub": "system:serviceaccount:team-a:runner",
    "kubernetes.io": {"namespace": "team-a", "serviceaccount": {"name": "runner"}},
    "scope": None,
    "aud": ["executor"],
}


async def test_a_service_account_of_kubernetes_is_let_in(world: World) -> None:
    claims = Claims(
        "/kubernetes.io/namespace", "scope", frozenset({"jobs:submit"}), ("system:serviceaccount:team-a:*",)
    )
    admitted = await made(world, claims).admit(sign(good(**KUBERNETES)))
    assert admitted is not None
    assert (admitted[0].name, admitted[0].tenant) == (KUBERNETES["sub"], "team-a")
    assert admitted[0].scopes == {"jobs:submit"}
    with pytest.raises(Forbidden):
        await made(world, claims).admit(sign(good(**KUBERNETES | {"sub": "system:serviceaccount:team-b:runner"})))


@pytest.mark.parametrize("subject", ["", "a\nb", "\x1b[2J"])
async def test_a_subject_that_is_no_name_is_of_no_use(world: World, subject: str) -> None:
    with pytest.raises(Forbidden, match="subject"):
        await made(world).admit(sign(good(sub=subject)))


@pytest.mark.parametrize("tenant", [None, "", "a.b", 5, ["a"], "*"])
async def test_a_token_without_the_tenant_it_has_to_name_is_of_no_use(world: World, tenant: Any) -> None:
    with pytest.raises(Forbidden, match="tenant"):
        await made(world, Claims(tenant="org")).admit(sign(good(org=tenant)))


async def test_keys_are_fetched_once_and_when_they_were_rotated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = made(world)
    for _ in range(5):
        assert await tokens.admit(sign(good()))
    assert world.asked == [f"{NAME}/.well-known/openid-configuration", f"{NAME}/keys"]
    world.keys = [jwk(OTHER, "two")]
    for number in range(20):
        assert await tokens.admit(sign(good(), OTHER, kid=f"unknown-{number}")) is None
    assert len(world.asked) == 2  # nobody can have us flood the issuer
    monkeypatch.setattr(issuer_module, "_PAUSE_S", 0)
    assert await tokens.admit(sign(good(), OTHER, kid="two"))
    assert await tokens.admit(sign(good())) is None  # what the issuer took away


async def test_keys_serve_on_while_the_issuer_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = made(world)
    world.away = True
    with pytest.raises(Unavailable):
        await tokens.admit(sign(good()))
    world.away = False
    monkeypatch.setattr(tokens._issuer, "_tried_at", None)
    assert await tokens.admit(sign(good()))
    world.away = True
    monkeypatch.setattr(issuer_module, "_FRESH_S", 0)
    monkeypatch.setattr(issuer_module, "_PAUSE_S", 0)
    for _ in range(3):
        assert await tokens.admit(sign(good()))
    monkeypatch.setattr(issuer_module, "_KEPT_S", 0)
    with pytest.raises(Unavailable):
        await tokens.admit(sign(good()))


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"},
        {"jwks_uri": "http://issuer.example/keys"},
        {"keys": [{"kid": "x" * 100}] * 5_000},
    ],
)
async def test_what_the_issuer_says_is_not_believed_blindly(world: World, change: dict[str, Any]) -> None:
    vars(world).update(change)
    with pytest.raises(Unavailable):
        await made(world).admit(sign(good()))


@pytest.mark.parametrize(
    "said",
    [b"", b"{}", b"[]", b"null", b'{"error": "away"}', b'{"keys": 5}', b'{"issuer": 5}', b"\xff", b"[" * 100_000],
    ids=["nothing", "no keys", "a list", "null", "an error", "a number", "another", "no text", "nesting"],
)
@pytest.mark.parametrize("jwks_url", [None, f"{NAME}/keys"])
async def test_an_issuer_that_talks_nonsense_gives_no_keys(said: bytes, jwks_url: str | None) -> None:
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, content=said)))
    tokens = Tokens(Issuer(NAME, http, jwks_url=jwks_url), "executor", Claims(), 30)
    with pytest.raises(Unavailable):
        await tokens.admit(sign(good()))


@pytest.mark.parametrize(
    "odd",
    [
        *(None, 5, "key", [], {}, {"kid": "odd"}, {"kid": "odd", "kty": ["RSA"]}, jwk(EC, "odd", crv=["P-256"])),
        *(jwk(EC, "odd", x="AA"), jwk(EC, "odd", crv="secp256k1"), jwk(ED, "odd", x=5), jwk(ED, "odd", crv="Ed448")),
        *(jwk(RSA, "odd", n="AQ"), jwk(RSA, "odd", e="AA"), jwk(RSA, "odd", n="\u00e9"), jwk(RSA, "odd", key_ops=5)),
        jwk(RSA, "", alg="RS256"),
    ],
)
async def test_a_key_that_nobody_understands_is_in_nobodys_way(world: World, odd: Any) -> None:
    world.keys.insert(0, odd)
    tokens = made(world)
    assert await tokens.admit(sign(good())) is not None
    assert await tokens.admit(sign(good(), kid="odd")) is None


async def test_a_rotation_under_load_refuses_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The issuer shows the new key before it takes the old one away."""
    monkeypatch.setattr(issuer_module, "_PAUSE_S", 0)
    tokens = made(world)
    old, new = sign(good()), sign(good(), OTHER, kid="two")
    assert await tokens.admit(old)
    world.keys.append(jwk(OTHER, "two"))
    world.asked.clear()
    admitted = await asyncio.gather(*(tokens.admit(each) for each in [old, new] * 100))
    assert all(admitted)
    assert len(world.asked) == 2  # all waited for one fetch
    world.keys = [jwk(OTHER, "two")]
    monkeypatch.setattr(tokens._issuer, "_fetched_at", None)
    found = await asyncio.gather(*(tokens.admit(each) for each in [new, old] * 100))
    assert found[1::2] == [None] * 100
    assert all(found[::2])


async def test_an_issuer_that_hangs_holds_up_no_token_of_a_known_key(world: World) -> None:
    asked, hangs = asyncio.Event(), asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        if not asked.is_set():
            return world.answer(request)
        await hangs.wait()
        raise httpx.ReadTimeout("away")

    issuer = Issuer(NAME, httpx.AsyncClient(transport=httpx.MockTransport(answer)), jwks_url=f"{NAME}/keys")
    tokens = Tokens(issuer, "executor", Claims(), 30)
    assert await tokens.admit(sign(good()))
    asked.set()
    issuer._tried_at = None
    stranger = asyncio.create_task(tokens.admit(sign(good(), OTHER, kid="two")))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(tokens.admit(sign(good())), 5)
    assert not stranger.done()
    hangs.set()
    assert await stranger is None


async def test_the_issuer_may_want_to_see_a_token(world: World, tmp_path: Any) -> None:
    (tmp_path / "token").write_text("pod-token\n")
    tokens = made(world, jwks_url=f"{NAME}/keys", token_path=str(tmp_path / "token"))
    assert await tokens.admit(sign(good()))
    assert world.asked == [f"{NAME}/keys"]
    assert world.headers[0]["authorization"] == "Bearer pod-token"


async def test_no_other_host_sees_that_token(world: World, tmp_path: Any) -> None:
    (tmp_path / "token").write_text("pod-token\n")
    world.jwks_uri = "https://elsewhere.example/keys"
    assert await made(world, token_path=str(tmp_path / "token")).admit(sign(good()))
    assert ["authorization" in each for each in world.headers] == [True, False]


def test_what_a_jwt_needs_is_named(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_MODE", "jwt")
    monkeypatch.setenv("AUTH_JWT_SCOPES", "jobs:read")
    with pytest.raises(SettingsError, match="AUTH_JWT_ISSUER, AUTH_JWT_AUDIENCE, AUTH_JWT_SUBJECTS"):
        load()
    for name, value in (("ISSUER", NAME), ("AUDIENCE", "x"), ("SUBJECTS", "a*")):
        monkeypatch.setenv(f"AUTH_JWT_{name}", value)
    load()
    wrong = {"ISSUER": "http://issuer.example", "SCOPES": "jobs:all", "LEEWAY_S": "61", "SUBJECTS": " , "}
    for name, value in wrong.items():
        with monkeypatch.context() as changed:
            changed.setenv(f"AUTH_JWT_{name}", value)
            with pytest.raises(SettingsError, match=f"AUTH_JWT_{name}"):
                load()
