"""The proxy's certificate: a mounted Secret of type kubernetes.io/tls, read again when it changes."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path

log = logging.getLogger(__name__)

ALPN = "postgresql"
# Seconds between two looks at the files.
_LOOK_EVERY = 1.0


class Certificate:
    """`tls.crt` and `tls.key` in `directory`, as a server's TLS context (1.2 and later)."""

    def __init__(self, directory: Path) -> None:
        self._files = directory / "tls.crt", directory / "tls.key"
        self._context: ssl.SSLContext | None = None
        self._seen: object = None
        self._look_at = 0.0

    def context(self) -> ssl.SSLContext | None:
        """The context of the files as they are now; None while there is no certificate that loads.

        A renewal that does not load leaves the one before in use, and is logged once.
        """
        now = time.monotonic()
        if now < self._look_at:
            return self._context
        self._look_at = now + _LOOK_EVERY
        problem: OSError | None = None
        try:
            seen = [(s.st_ino, s.st_mtime_ns, s.st_size) for s in (f.stat() for f in self._files)]
        except OSError as error:
            seen, problem = [], error
        if seen != self._seen:
            self._seen = seen
            self._load(problem)
        return self._context

    def _load(self, problem: OSError | None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([ALPN])
        try:
            if problem:
                raise problem
            context.load_cert_chain(*self._files)
        except (OSError, ssl.SSLError) as error:
            kept = "the one before stays in use" if self._context else "TLS is not offered"
            log.error("certificate %s does not load (%s); %s", self._files[0], error, kept)
        else:
            self._context = context
