"""Who a patient is, in one place: identifiers scoped by issuer, names, care links."""
