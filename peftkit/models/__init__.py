"""What is known of each architecture, and the modules that strategies add to one."""
