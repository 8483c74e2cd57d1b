"""Making data files: cleaned from those that a user has, or fetched from public stores."""
