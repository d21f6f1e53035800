"""What a run leaves: folder, records, checkpoint; its identity and its names in figures."""
