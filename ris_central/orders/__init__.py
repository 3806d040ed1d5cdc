"""Service requests, devices, the day schedule and its worklist feed."""
