"""Who saw or changed what: a hash-chained table."""
