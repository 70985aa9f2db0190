"""The before/after page: its template and the figures in it."""
