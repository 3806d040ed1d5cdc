"""Made-up modalities for the demo: real DICOM clients that ask the worklist, acquire phantoms and send them."""
