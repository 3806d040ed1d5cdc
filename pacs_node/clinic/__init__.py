"""The people and devices of the site around a node: AE registry, cached worklist, roster, local pages."""
