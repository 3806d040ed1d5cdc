"""A signed report as people and machines keep it: PDF, structured report, and the DICOM objects that carry them."""
