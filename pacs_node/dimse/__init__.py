"""The DICOM port of a node: verification, storage, query/retrieve, worklist."""
