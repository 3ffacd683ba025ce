"""Files and folders: replaced by rename, locked while one process works in them, known by what they hold."""
