"""The `regis` command, the demo region, and what production installs are made of."""
