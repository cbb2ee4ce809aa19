"""TLS on a port: which files it needs, what may be wrong with them, the context made from them.

For both front ends alike. Knows nothing of HTTP or gRPC but the names that they pass in, and holds
no key longer than it takes to hand it on: OpenSSL reads the files itself.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from naiad_backends.errors import NaiadError, invalid

HANDSHAKE_S: Final = 20.0
"""How long a client may take for its handshake."""

_GOODBYE_S: Final = 5.0
"""How long a client may take to answer the end of a connection. One that is idle in a client's pool
is not looked at, so this is how long it holds up the end of the server."""


@dataclass(frozen=True)
class Tls:
    """TLS 1.2 or newer with these files, all in PEM.

    protocol: the beginning of the options' names, for errors: `http` or `grpc`.
    certificate: the server's, followed by those between it and its root.  key: its private key.
    roots: whose clients are let in; empty if clients need no certificate.
    handshake: seconds that one may take.
    """

    protocol: str
    certificate: str
    key: str
    roots: str = ""
    handshake: float = HANDSHAKE_S

    def check(self) -> None:
        """Raises INVALID_ARG for a file that cannot be read or holds something else, or for a key
        that is another certificate's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._check_certificates(context, "server-cert", self.certificate)
        if self.roots:
            self._check_certificates(context, "root-cert", self.roots)
        self._read("server-key", self.key)
        try:
            self._load(context)
        except ssl.SSLError as error:
            raise self._bad_key(error) from None

    def context(self, protocol: str) -> ssl.SSLContext:
        """What a listener speaks TLS with; to be used after `check`.

        protocol: the one that is spoken inside, by its name in ALPN.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols([protocol])
        self._load(context)
        if self.roots:
            context.load_verify_locations(self.roots)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        # Without a password at hand OpenSSL would ask for one on the terminal.
        context.load_cert_chain(self.certificate, self.key, password="")

    def _check_certificates(self, context: ssl.SSLContext, option: str, path: str) -> None:
        self._read(option, path)
        try:
            context.load_verify_locations(path)
        except ssl.SSLError:
            raise self._wrong(option, f"{path} holds no certificate in PEM") from None

    def _bad_key(self, error: ssl.SSLError) -> NaiadError:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            return self._wrong(
                "server-key", f"the key in {self.key} is not that of {self.certificate}"
            )
        if "ENCRYPTED" in Path(self.key).read_text("latin-1"):
            return self._wrong(
                "server-key", f"the key in {self.key} is encrypted", "decrypt it with openssl pkey"
            )
        return self._wrong("server-key", f"{self.key} holds no private key in PEM that fits")

    def _read(self, option: str, path: str) -> None:
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise self._wrong(option, f"cannot read {path}: {error.strerror}") from None

    def _wrong(self, option: str, message: str, hint: str = "") -> NaiadError:
        return invalid(message, field=f"--{self.protocol}-{option}", hint=hint)


def choose(
    protocol: str, use: bool, mutual: bool, certificate: str, key: str, roots: str
) -> Tls | None:
    """The TLS that the options of one front end ask for; None for none.

    protocol: the beginning of the options' names.  mutual: clients need a certificate; implies
    `use`. Raises INVALID_ARG for options that contradict each other, and as `Tls.check`.
    """
    files = {"server-cert": certificate, "server-key": key}
    if not use and not mutual:
        for option, path in (files | {"root-cert": roots}).items():
            if path:
                raise invalid(
                    "is given, but TLS is off, so nothing would be encrypted",
                    field=f"--{protocol}-{option}",
                    hint=f"add --{protocol}-use-ssl=true, or leave it out",
                )
        return None
    if roots and not mutual:
        raise invalid(
            "is given, but clients are not asked for a certificate",
            field=f"--{protocol}-root-cert",
            hint=f"add --{protocol}-use-ssl-mutual=true, or leave it out",
        )
    mode = f"--{protocol}-use-ssl{'-mutual' if mutual else ''}"
    for option, path in (files | ({"root-cert": roots} if mutual else {})).items():
        if not path:
            raise invalid(
                f"is missing: {mode} needs it",
                field=f"--{protocol}-{option}",
                hint="name a file in PEM",
            )
    tls = Tls(protocol, certificate, key, roots)
    tls.check()
    return tls


def listening(tls: Tls | None, protocol: str) -> dict[str, Any]:
    """What `loop.create_server` is to be told of TLS; nothing if there is none.

    protocol: as for `Tls.context`.
    """
    if tls is None:
        return {}
    return {
        "ssl": tls.context(protocol),
        "ssl_handshake_timeout": tls.handshake,
        "ssl_shutdown_timeout": _GOODBYE_S,
    }
