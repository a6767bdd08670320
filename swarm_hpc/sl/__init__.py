"""SL, the swarm learning node: beside one ML program, it exchanges and merges parameters with its peers."""
