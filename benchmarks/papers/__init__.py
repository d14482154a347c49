"""Does what the papers say reproduce? Small settings, their controls, and a page of results."""
