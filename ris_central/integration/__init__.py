"""HL7 v2 in and out, and the API that speaks to other systems."""
