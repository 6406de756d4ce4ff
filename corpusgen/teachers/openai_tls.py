"""Decide which certificate authorities are trusted, as users of curl expect it."""

from __future__ import annotations

import os
import ssl

from corpusgen.errors import ConfigError


def trusted(ca_file: str | None, key: str) -> ssl.SSLContext | None:
    """Return a context that trusts the system's authorities and those of a PEM file.

    Without a file in the configuration, `CURL_CA_BUNDLE` is read, as curl does. Null: the default
    context, which honours `SSL_CERT_FILE` and `SSL_CERT_DIR`. `key` names the file's place in the
    configuration. Raises `ConfigError` on a file that cannot be read.
    """
    path = ca_file or os.environ.get("CURL_CA_BUNDLE")
    if not path:
        return None
    where = key if ca_file else "the environment variable CURL_CA_BUNDLE"
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{where}: {path} cannot be read as PEM certificates: {reason}. Correct the path."
        ) from None
    return context
