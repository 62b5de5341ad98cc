"""``fedddp report``: one HTML file on a run, or on several side by side."""
