"""Images, whole and in memory."""
