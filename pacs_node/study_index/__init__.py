"""The index of a node: which studies, series and instances it holds, and where their files lie."""
