"""Foreign PACS: archives that are no part of the region and are not changed for it. Polled, listed, fetched from."""
