"""The report of a comparison: one HTML page, its drawings and its words."""
