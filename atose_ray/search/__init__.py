"""Search spaces, study records and the report. Knows nothing of Ray."""
