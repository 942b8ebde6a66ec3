"""What is told of a build while it goes on, from streams as Docker's engine sends them."""

from __future__ import annotations

import base64

import pytest

from tier3.image import buildkit, progress
from tier3.image.errors import BuildError


def varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def field(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def time(seconds: int, nanos: int) -> bytes:
    return field(1, seconds) + field(2, nanos)


def vertex(digest: str, name: str, *, done: bool = True, cached: bool = False, error: str = "") -> bytes:
    ended = field(6, time(1_700_000_002, 250_000_000)) if done else b""
    started = field(5, time(1_700_000_000, 750_000_000))
    said = field(7, error) if error else b""
    more = varint(9 << 3 | 1) + b"12345678" + varint(10 << 3 | 5) + b"1234"  # of a later BuildKit
    return field(
        1, field(1, digest) + field(2, "input") + field(3, name) + field(4, cached) + started + ended + said + more
    )


def trace(*parts: bytes) -> dict[str, object]:
    return {"id": "moby.buildkit.trace", "aux": base64.b64encode(b"".join(parts)).decode()}


def log(digest: str, text: str) -> bytes:
    return field(3, field(1, digest) + field(2, time(1, 0)) + field(3, 1) + field(4, text))


def test_a_vertex_and_its_output_are_read() -> None:
    found = list(buildkit.read(str(trace(vertex("d", "[runtime 1/2] RUN x", cached=True), log("d", "out\n"))["aux"])))
    assert found == [
        buildkit.Vertex(digest="d", name="[runtime 1/2] RUN x", cached=True, seconds=1.5, error=""),
        buildkit.Output(digest="d", text="out\n"),
    ]


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x80", b"\x0b"], ids=["cut off", "cut off number", "group"])
def test_what_is_no_progress_is_told(data: bytes) -> None:
    with pytest.raises(ValueError, match="BuildKit's progress"):
        list(buildkit.read(base64.b64encode(data).decode()))


def test_buildkits_steps_are_told_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    taken = progress.BuildKit()
    taken.take(trace(vertex("a", "[internal] load build definition"), vertex("b", "[1/2] FROM base", done=False)))
    taken.take(trace(vertex("b", "[1/2] FROM base", cached=True), log("c", "not shown")))
    taken.take(trace(vertex("b", "[1/2] FROM base", cached=True), vertex("c", "[2/2] RUN\n x")))
    taken.take({"id": "moby.image.id", "aux": {"ID": "sha256:1"}})
    assert capsys.readouterr() == ("", "    1.5 s  [1/2] FROM base  (cached)\n    1.5 s  [2/2] RUN x\n")
    assert taken.image_id == "sha256:1"


def test_a_step_of_buildkit_that_fails_shows_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    taken = progress.BuildKit()
    taken.take(trace(log("a", "first\n"), log("a", "second\n")))
    taken.take(trace(vertex("a", "[1/1] RUN false", error="exit code: 1")))
    with pytest.raises(BuildError, match="failed to solve"):
        taken.take({"errorDetail": {"message": "failed to solve"}, "error": "failed to solve"})
    assert capsys.readouterr().err.splitlines() == [
        *("           | first", "           | second", "    1.5 s  [1/1] RUN false  (failed)")
    ]


def test_the_classic_builders_steps_are_told_when_they_end(capsys: pytest.CaptureFixture[str]) -> None:
    taken = progress.Classic()
    for text in ("Step 1/2 : FROM base\n", " ---> 123\n", "Step 2/2 : RUN x\n", " ---> Using cache\n", " ---> 456\n"):
        taken.take({"stream": text})
    taken.take({"aux": {"ID": "sha256:1"}})
    taken.take({"stream": "Successfully built 456\n"})
    taken.end()
    assert capsys.readouterr() == ("", "    0.0 s  [1/2] FROM base\n    0.0 s  [2/2] RUN x  (cached)\n")
    assert taken.image_id == "sha256:1"


def test_a_step_of_the_classic_builder_that_fails_shows_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    taken = progress.Classic()
    for text in ("Step 1/1 : RUN false\n", " ---> Running in 1\n", "why\n", "Removing intermediate container 1\n"):
        taken.take({"stream": text})
    with pytest.raises(BuildError, match="code 1"):
        taken.take({"errorDetail": {"code": 1}, "error": "returned code 1"})
    assert capsys.readouterr().err.splitlines() == ["           | why", "    0.0 s  [1/1] RUN false  (failed)"]


def test_a_push_tells_layers_and_keeps_the_digest(capsys: pytest.CaptureFixture[str]) -> None:
    taken = progress.Push()
    taken.take({"status": "Pushing", "id": "a", "progressDetail": {"current": 1}})
    taken.take({"status": "Pushed", "id": "a"})
    taken.take({"status": "Layer already exists", "id": "b"})
    taken.take({"progressDetail": {}, "aux": {"Tag": "t", "Digest": "sha256:2", "Size": 1}})
    assert capsys.readouterr().err.splitlines() == [
        *("    0.0 s  layer a: Pushed", "    0.0 s  layer b: Layer already exists")
    ]
    assert taken.digest == "sha256:2"
    with pytest.raises(BuildError, match="denied"):
        taken.take({"errorDetail": {"message": "denied"}, "error": "denied"})
