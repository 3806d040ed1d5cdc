"""The PACS node: a Django project that stores, indexes and serves images at a site or as the archive."""
