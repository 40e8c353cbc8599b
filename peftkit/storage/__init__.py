"""Files: written atomically, and read strictly as JSON or YAML."""
