"""Modality Worklist and MPPS over Protocols, and the wire form of the centre-to-node schedule feed."""
