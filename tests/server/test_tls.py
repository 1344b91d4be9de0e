"""TLS at a real server: a whole call, a certificate made here, and what is said when one cannot be used."""

import asyncio
import datetime
import ssl
import stat
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509

from server import tls
from server.config import ServerConfig
from server.errors import ConfigError
from server.tls import Tls, open_tls
from tests.server.caller import calling, voice
from tests.server.live import LiveServer, serving, until


def trusting(cert: Path) -> ssl.SSLContext:
    """A client that knows this certificate alone, as strict as Python 3.13 is."""
    context = ssl.create_default_context(cafile=str(cert))
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def made_in(data_dir: Path, **settings: Any) -> Tls:
    made = open_tls(ServerConfig(data_dir=data_dir, tls_self_signed=True, **settings))
    assert made is not None
    return made


def secure(live: LiveServer) -> str:
    return live.url.replace("http://", "https://")


async def test_a_call_over_tls(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tiny, tls_self_signed=True, data_dir=tmp_path / "data", heartbeat_s=1.5) as live:
        context = trusting(tmp_path / "data" / "tls" / "cert.pem")
        async with calling(secure(live), ssl=context) as caller:
            await caller.greeted()
            await caller.talk(voice(8))
            await asyncio.sleep(1.8)
            await caller.talk(voice(4), answers=4)
            assert not caller.errors
        local = secure(live).replace("127.0.0.1", "localhost")
        async with aiohttp.ClientSession() as client, client.get(local + "/readyz", ssl=context) as response:
            assert response.status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            async with calling(secure(live), ssl=ssl.create_default_context()):
                pass
    assert not [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


async def test_a_slow_reader_over_tls_loses_only_its_own_sound(tiny: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tls_self_signed": True, "data_dir": tmp_path, "outbox_ms": 320}
    async with serving(tiny, inbox_ms=60_000, send_buffer_bytes=4096, **settings) as live:
        context = trusting(tmp_path / "tls" / "cert.pem")
        async with calling(secure(live), ssl=context) as quick, calling(secure(live), ssl=context) as slow:
            await quick.greeted()
            await slow.greeted()
            slow.socket.transport.pause_reading()
            frames = voice(400)
            await slow.send(1, b"".join(slow.encode(frame) for frame in frames))
            await quick.talk(voice(12))
            await until(lambda: live.server.desk.views()[1].dropped_ms > 0)
            assert not [note for note in quick.notes if note["type"] == "stats"]
            slow.socket.transport.resume_reading()


def test_a_certificate_made_here_is_kept_and_names_this_machine(tmp_path: Path) -> None:
    data = tmp_path / "srv" / "data"
    made = made_in(data, host="203.0.113.9")
    certificate = x509.load_pem_x509_certificate(made.cert.read_bytes())
    named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in named.get_values_for_type(x509.DNSName)
    addresses = {str(address) for address in named.get_values_for_type(x509.IPAddress)}
    assert {"127.0.0.1", "::1", "203.0.113.9"} <= addresses
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert stat.S_IMODE((data / "tls" / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700, "the journal will lie there, too"
    assert made.fingerprint == certificate.fingerprint(certificate.signature_hash_algorithm).hex(":").upper()  # type: ignore[arg-type]
    assert made_in(data, host="203.0.113.9").fingerprint == made.fingerprint
    assert not list((data / "tls").glob("*.new"))


def test_it_is_made_anew_with_the_same_key_for_a_new_address_or_when_it_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made_in(tmp_path)
    key = (tmp_path / "tls" / "key.pem").read_bytes()
    second = made_in(tmp_path, host="203.0.113.9")
    assert second.fingerprint != first.fingerprint
    later = tls._now() + datetime.timedelta(days=390)
    monkeypatch.setattr(tls, "_now", lambda: later)
    assert made_in(tmp_path, host="203.0.113.9").fingerprint != second.fingerprint
    assert (tmp_path / "tls" / "key.pem").read_bytes() == key
    (tmp_path / "tls" / "cert.pem").write_text("torn")
    made_in(tmp_path, host="203.0.113.9")
    (tmp_path / "tls" / "key.pem").write_text("torn")
    (tmp_path / "tls" / "cert.pem").unlink()
    made_in(tmp_path, host="203.0.113.9")


@pytest.mark.parametrize(
    ("cert", "key", "complaint"),
    [
        ("cert.pem", None, "one of certificate and key"),
        (None, "key.pem", "one of certificate and key"),
        ("none.pem", "key.pem", "No such file"),
        ("key.pem", "key.pem", "which cannot be used"),
        ("cert.pem", "other/tls/key.pem", "KEY_VALUES_MISMATCH"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, cert: str | None, key: str | None, complaint: str) -> None:
    made_in(tmp_path)
    made_in(tmp_path / "tls" / "other")
    folder = tmp_path / "tls"
    settings: dict[str, Any] = {name: folder / file for name, file in (("tls_cert", cert), ("tls_key", key)) if file}
    with pytest.raises(ConfigError, match=complaint):
        open_tls(ServerConfig(**settings))


def test_a_certificate_and_one_made_here_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        open_tls(ServerConfig(tls_self_signed=True, tls_cert=tmp_path, tls_key=tmp_path))
    assert open_tls(ServerConfig()) is None


async def test_a_new_certificate_is_shown_after_a_reload_and_calls_go_on(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = made_in(tmp_path / "a"), made_in(tmp_path / "b")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(made: Tls) -> None:
        cert.write_bytes(made.cert.read_bytes())
        key.write_bytes(made.cert.with_name("key.pem").read_bytes())

    install(first)
    async with (
        serving(tiny, tls_cert=cert, tls_key=key) as live,
        calling(secure(live), ssl=trusting(first.cert)) as caller,
    ):
        await caller.greeted()
        install(second)
        await asyncio.to_thread(live.server.reload)
        async with calling(secure(live), ssl=trusting(second.cert)) as newcomer:
            await newcomer.greeted()
        key.write_text("torn")
        await asyncio.to_thread(live.server.reload)
        assert "the certificate stays as it was" in caplog.text
        async with calling(secure(live), ssl=trusting(second.cert)) as newcomer:
            await newcomer.greeted()
        await caller.talk(voice(3))
