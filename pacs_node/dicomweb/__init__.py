"""QIDO-RS, WADO-RS and STOW-RS at /dicom-web/, and the viewer at /viewer/."""
