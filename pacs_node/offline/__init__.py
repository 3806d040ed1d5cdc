"""A node that lives alone for days: accession numbers of its own, local registration, report drafts, what waits."""
