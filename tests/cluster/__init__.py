"""Several nodes: raylets on this machine, and nodes in network namespaces whose network can be cut."""
