"""What a run leaves behind: its directory, its record and its artifact."""
