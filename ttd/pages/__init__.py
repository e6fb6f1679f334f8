"""Web pages made from run folders: one file each, everything embedded, nothing loaded from elsewhere."""
