"""A whole swarm on one host: what `swarm-hpc local` runs, shows and checks."""
