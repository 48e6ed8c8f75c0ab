"""The settings that MLflow's client and requests take from the environment and from files, read as they read them.

Sources: ``mlflow.utils.credentials``, ``mlflow.utils.rest_utils`` (MLflow 3.17.2) and ``requests.sessions``,
``requests.utils`` (requests 2.34.2).
"""

from __future__ import annotations

import base64
import contextlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from tracking_callbacks._delivery.failures import Blocked

__all__ = [
    "authorization",
    "certificates",
    "cloud_certificates",
    "proxy_for",
    "request_timeout",
    "workspace",
]

_TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_TIMEOUT_SECONDS = 30.0
_TRUE = ("true", "1")


def request_timeout() -> float:
    """Return the seconds within which a server must accept a connection, and answer."""
    text = os.environ.get(_TIMEOUT_VARIABLE, "")
    return float(text) if text.isdecimal() and int(text) else _TIMEOUT_SECONDS


def workspace() -> str:
    """Return the workspace that the user chose; empty means none."""
    return os.environ.get("MLFLOW_WORKSPACE", "").strip()


def authorization(uri: str) -> str | None:
    """Return the ``Authorization`` header for the server at `uri`; None means none.

    The first of these counts: the entry of ``~/.netrc`` for the host, the URI, user and password of MLflow's variables
    or of ``~/.mlflow/credentials``, ``MLFLOW_TRACKING_TOKEN``.
    """
    parts = urlsplit(uri)
    if (found := _netrc_entry(parts.hostname or "")) is not None:
        return _basic(*found)
    if parts.username or parts.password:
        return _basic(unquote(parts.username or ""), unquote(parts.password or ""))
    kept = _kept_credentials()
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or kept.get("mlflow_tracking_username")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or kept.get("mlflow_tracking_password")
    if user and password:
        return _basic(user, password)
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else None


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _netrc_entry(host: str) -> tuple[str, str] | None:
    named = os.environ.get("NETRC")
    for path in (named,) if named else ("~/.netrc", "~/_netrc"):
        place = os.path.expanduser(path)
        if os.path.exists(place):
            import netrc

            with contextlib.suppress(netrc.NetrcParseError, OSError):
                if (found := netrc.netrc(place).authenticators(host)) is not None:
                    login, account, password = found
                    return login or account or "", password or ""
            return None
    return None


def _kept_credentials() -> dict[str, str]:
    place = os.path.expanduser("~/.mlflow/credentials")
    if not os.path.exists(place):
        return {}
    import configparser

    kept = configparser.ConfigParser()
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        kept.read(place)
        return dict(kept["mlflow"]) if "mlflow" in kept else {}
    return {}


def certificates(uri: str) -> dict[str, Any]:
    """Return urllib3's settings for TLS to the server at `uri`.

    Raises:
        Blocked: They contradict each other, or a file is missing.
    """
    if urlsplit(uri).scheme != "https":
        return {}
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in _TRUE
    bundle = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    if insecure and bundle:
        raise Blocked("MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH are both set; unset one")
    settings: dict[str, Any] = {}
    if ours := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        settings["cert_file"] = _existing(ours, "MLFLOW_TRACKING_CLIENT_CERT_PATH")
    if insecure:
        return settings | _unchecked()
    return settings | _checked(_existing(bundle, "MLFLOW_TRACKING_SERVER_CERT_PATH") if bundle else _default_bundle())


def cloud_certificates(uri: str) -> dict[str, Any]:
    """Return urllib3's settings for TLS to a cloud store that a server sends its clients to."""
    if urlsplit(uri).scheme != "https":
        return {}
    insecure = os.environ.get("MLFLOW_S3_IGNORE_TLS", "").lower() in _TRUE
    return _unchecked() if insecure else _checked(_default_bundle())


def _unchecked() -> dict[str, Any]:
    import urllib3

    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return {"cert_reqs": "CERT_NONE", "assert_hostname": False}


def _checked(bundle: str) -> dict[str, Any]:
    return {"cert_reqs": "CERT_REQUIRED", "ca_cert_dir" if os.path.isdir(bundle) else "ca_certs": bundle}


def _existing(place: str, variable: str) -> str:
    if not Path(place).exists():
        raise Blocked(f"{variable} names {place}, which does not exist")
    return place


def _default_bundle() -> str:
    if bundle := os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE"):
        return bundle
    import certifi

    return certifi.where()


def proxy_for(uri: str) -> str | None:
    """Return the proxy through which requests to `uri` go; None means none."""
    parts = urlsplit(uri)
    host = parts.hostname or ""
    if _bypasses_proxies(host, parts.port):
        return None
    proxies = getproxies()
    for key in (f"{parts.scheme}://{host}", parts.scheme, f"all://{host}", "all"):
        if proxy := proxies.get(key):
            return proxy if "://" in proxy else f"http://{proxy}"
    return None


def _bypasses_proxies(host: str, port: int | None) -> bool:
    import ipaddress

    excluded = [one for one in getproxies().get("no", "").replace(" ", "").split(",") if one]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if any(host.endswith(one) or f"{host}:{port}".endswith(one) for one in excluded):
            return True
    else:
        for one in excluded:
            with contextlib.suppress(ValueError):
                if address in ipaddress.ip_network(one, strict=False):
                    return True
    return bool(proxy_bypass(host))
