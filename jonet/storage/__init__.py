"""Files and folders: atomic writes, locks, identity by content, safe names, bounded reading."""
