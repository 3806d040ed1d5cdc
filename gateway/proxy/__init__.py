"""The in-line DICOM proxy between modalities and an old PACS: passes everything, takes copies, mends by rule.

It knows no Django and no database: what it takes lies in a folder (``spool``) until the node has taken it in. Whatever
breaks here, modality and old PACS keep talking (docs/adr/0018-in-line-proxy.md).
"""
