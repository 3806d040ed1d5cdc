"""What DICOM, DICOMweb and HL7 say: pure Python, no Django, no I/O policy."""
