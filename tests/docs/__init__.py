"""The documentation runs: code blocks, docstrings, examples, generated pages."""
