"""Reports: written, signed, rendered, stored back to the archive."""
