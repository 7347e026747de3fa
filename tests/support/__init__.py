"""Models, folders, commands and fixtures that several tests share."""
