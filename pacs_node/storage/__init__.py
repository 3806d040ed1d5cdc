"""Files of a node: laid out so that a person can walk them, written durably, with a journal per study."""
