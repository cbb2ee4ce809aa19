"""The options of TLS: what they ask for, and every way in which they can be wrong."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from tests.certificates import Certificates

from naiad.settings import Settings
from naiad.tls import Tls, choose, listening
from naiad_backends.errors import Code, NaiadError


def wrong(*arguments: Any) -> str:
    """What is said of such options."""
    with pytest.raises(NaiadError) as caught:
        choose(*arguments)
    assert caught.value.code is Code.INVALID_ARG
    return str(caught.value)


def files(certificates: Certificates) -> tuple[str, str, str]:
    pair = certificates.server
    return str(pair.certificate), str(pair.key), str(certificates.roots)


def test_off_by_default() -> None:
    assert Settings().http_tls() is Settings().grpc_tls() is None
    assert listening(None, "h2") == {}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_on(certificates: Certificates, protocol: str) -> None:
    certificate, key, roots = files(certificates)
    options = {"use_ssl": True, "server_cert": certificate, "server_key": key}
    settings = Settings(**{f"{protocol}_{name}": value for name, value in options.items()})  # type: ignore[arg-type]  # names that are put together

    assert getattr(settings, f"{protocol}_tls")() == Tls(protocol, certificate, key)
    assert choose(protocol, True, True, certificate, key, roots) == Tls(
        protocol, certificate, key, roots
    )


@pytest.mark.parametrize("use", [False, True])
def test_mutual_means_on_and_asks_for_certificates(certificates: Certificates, use: bool) -> None:
    tls = choose("grpc", use, True, *files(certificates))

    assert tls is not None
    assert tls.context("h2").verify_mode is ssl.CERT_REQUIRED


def test_one_file_may_hold_both(certificates: Certificates, tmp_path: Path) -> None:
    pair = certificates.server
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())

    assert choose("http", True, False, str(both), str(both), "") is not None


@pytest.mark.parametrize("option", ["server-cert", "server-key", "root-cert"])
def test_a_file_without_tls(option: str) -> None:
    names = ("server-cert", "server-key", "root-cert")
    text = wrong("grpc", False, False, *("x.pem" if option == name else "" for name in names))

    assert text.startswith(f"--grpc-{option}: is given, but TLS is off")
    assert "--grpc-use-ssl=true" in text


@pytest.mark.parametrize("option", [0, 1, 2])
def test_a_file_that_is_not_named(certificates: Certificates, option: int) -> None:
    named = list(files(certificates))
    named[option] = ""
    flag = ("server-cert", "server-key", "root-cert")[option]

    assert wrong("http", True, True, *named).startswith(
        f"--http-{flag}: is missing: --http-use-ssl-mutual needs it"
    )


def test_roots_without_mutual(certificates: Certificates) -> None:
    text = wrong("grpc", True, False, *files(certificates))

    assert text.startswith("--grpc-root-cert: ") and "--grpc-use-ssl-mutual=true" in text


@pytest.mark.parametrize("option", [0, 1, 2])
@pytest.mark.parametrize("content", [None, b"", b"no PEM", b"\x30\x82\x01"])
def test_a_file_that_is_none(
    certificates: Certificates, tmp_path: Path, option: int, content: bytes | None
) -> None:
    named = list(files(certificates))
    bad = tmp_path / "bad.pem"
    named[option] = str(bad)
    if content is not None:
        bad.write_bytes(content)
    flag = ("server-cert", "server-key", "root-cert")[option]
    reason = "No such file" if content is None else "in PEM"

    text = wrong("http", True, True, *named)

    assert text.startswith(f"--http-{flag}: ") and str(bad) in text and reason in text


def test_a_key_of_another_certificate(certificates: Certificates) -> None:
    certificate, _, _ = files(certificates)
    text = wrong("grpc", True, False, certificate, str(certificates.client.key), "")

    assert text.startswith("--grpc-server-key: ") and f"is not that of {certificate}" in text


def test_an_encrypted_key(certificates: Certificates, tmp_path: Path) -> None:
    certificate, key, _ = files(certificates)
    private = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )

    text = wrong("http", True, False, certificate, str(locked), "")

    assert text.startswith("--http-server-key: ") and "is encrypted" in text
