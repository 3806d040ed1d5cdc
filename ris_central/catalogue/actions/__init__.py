"""Every write to the catalogue: arrivals (events of nodes), completeness (manifests), grants."""
