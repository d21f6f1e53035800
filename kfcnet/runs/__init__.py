"""What a run leaves behind: its folder, its records, its checkpoint, and what it is called."""
