"""Which study, whose, which nodes hold which instances, verified how."""
