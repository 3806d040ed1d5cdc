"""DICOMweb of the whole region at ``/dicom-web/``: searches from the catalogue, images from the nearest holder."""
