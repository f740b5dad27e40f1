"""Seeds as a function of what they are for; nothing but the standard library, so that whatever needs one loads in no time."""

from __future__ import annotations

import hashlib


def seed_for(*key: int | str) -> int:
    """A 63-bit seed from a key such as ``(seed, epoch, group, copy, "train noise", step)``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
