"""The identity of a deployment: the nodes that share a store, and the key that only they know."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Deployment:
    """A store, with all its shards, and the nodes that run on it. The `id` is in the names of their
    channels. With the `key`, which is secret, they sign what they publish."""

    id: str
    key: bytes = field(repr=False)
