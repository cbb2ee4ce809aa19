"""Certificates made for one run of the tests: an authority, what it signs, and what it does not."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, two files in PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """roots: the authority's own.  server: for 127.0.0.1 and localhost.  stranger: a client that
    another authority knows."""

    roots: Path
    server: Pair
    client: Pair
    stranger: Pair

    def context(self, client: Pair | None = None) -> ssl.SSLContext:
        """A client that trusts the authority and may show a certificate."""
        context = ssl.create_default_context(cafile=str(self.roots))
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        return context


def make(folder: Path) -> Certificates:
    """Write them into an existing folder."""
    authority = trustme.CA()
    roots = folder / "roots.pem"
    authority.cert_pem.write_to_path(str(roots))
    return Certificates(
        roots,
        issue(authority, folder / "server", "127.0.0.1", "localhost"),
        issue(authority, folder / "client", "client@example.org"),
        issue(trustme.CA(), folder / "stranger", "stranger@example.org"),
    )


def issue(authority: trustme.CA, folder: Path, *names: str) -> Pair:
    """A certificate for these names, in a new folder."""
    folder.mkdir()
    issued = authority.issue_cert(*names)
    pair = Pair(folder / "certificate.pem", folder / "key.pem")
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(pair.certificate), append=number > 0)
    issued.private_key_pem.write_to_path(str(pair.key))
    return pair
