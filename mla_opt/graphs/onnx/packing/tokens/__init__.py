"""Whether a graph over packed tokens computes each of them by itself.

The tokens of all sequences lie one behind the other on one axis, so nothing but PagedAttention may
bring two of them together. Every value is the same whatever the tokens are; or a count, which
follows from how many there are; or a cache; or it has one axis along which tokens lie, and what it
holds of a token follows from that token alone. A node has to keep it so, by what its operator is
defined to do (`rules`); the first that does not is the answer (`mixing`).
"""
