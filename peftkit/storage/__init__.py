"""Files: written atomically, and parsed strictly as JSON or YAML."""
