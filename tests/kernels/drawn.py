"""Weights that all backends are tested with."""


def weights_of(num_peers: int, kind: str) -> list[float]:
    return {
        "equal": [1.0] * num_peers,
        "unequal": [float(1 + (7 * peer) % 5) for peer in range(num_peers)],
        "one zero": [float(peer != num_peers // 2 or num_peers == 1) for peer in range(num_peers)],
    }[kind]
