"""The ``tinynet`` command: its entry points, one module per subject, and what it prints."""
