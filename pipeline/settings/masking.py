"""How secrets look where people read them: logs, metric labels, `pipeline check-config`.

A masked SDK key ends with the key's own last characters, so its owner finds it in Optimizely's list of environments.
"""

from __future__ import annotations

import re
from hashlib import blake2b

HIDDEN = "***"
_SHOWN = 4
_USER_INFO = re.compile(r"(?<=://)[^/@\s]*@")


def masked(sdk_key: str) -> str:
    """A checksum, `…`, and the last four characters; of a key shorter than 16 characters, its last quarter.

    The checksum tells keys apart that end alike: as a label of metrics, each must have series of its own.
    """
    shown = min(_SHOWN, len(sdk_key) // 4)
    return f"{blake2b(sdk_key.encode(), digest_size=2).hexdigest()}…{sdk_key[len(sdk_key) - shown :]}"


def without_password(address: str) -> str:
    """An address without the user and password that stand before its host."""
    return _USER_INFO.sub(f"{HIDDEN}@", address)
