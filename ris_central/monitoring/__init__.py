"""The state of the region: sites, nodes, mirrors, health."""
