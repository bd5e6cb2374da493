"""Every way of combining, measured side by side: candidates, run, recommendation, report."""
